"""Files of weights' changes in few numbers, as SVDiff's: what makes the changes again beside a MODEL's own weights."""
import json
from dataclasses import asdict, replace

from ..host.concept_files import lora_file
from ..host.sampling import Fingerprint, check_family
from .concepts import Concept, WeightBasis
from .deltas import regrown
from .word_files import read_concept

KEY, VERSION = "palimpsest.compact", 1
SUFFIX = ".spectral.safetensors"


def compact_file(concept: Concept) -> bytes:
    """The bytes of a concept's file."""
    about = {"version": VERSION, "fingerprint": asdict(concept.fingerprint), "notes": dict(concept.notes)}
    return lora_file(concept.compact, {KEY: json.dumps(about)})


def load_compact(path, model, basis: WeightBasis) -> Concept:
    """The CONCEPT of a file, its changes made of a MODEL's weights. ValueError where it is none, or does not fit."""
    held = read_concept(path, KEY, VERSION, "concept in few numbers", _concept)
    check_family(model, held, "CONCEPT", "learn")
    return replace(held, weights=regrown(model, basis, held.compact))


def _concept(tensors, about) -> Concept | None:
    if not tensors or not all(value.ndim == 1 and value.isfinite().all() for value in tensors.values()):
        return None
    return Concept({}, {}, Fingerprint(**about["fingerprint"]), notes=about["notes"], compact=tensors)
