"""Files of words that no embedding's file can hold: safetensors, with everything that is no tensor as JSON."""
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ..host.concept_files import lora_file, read_file
from ..host.sampling import Fingerprint
from .concepts import NAME, Concept, WordTable

KEY, VERSION = "palimpsest.word", 1
SUFFIX = ".word.safetensors"


def word_file(concept: Concept, name: str) -> bytes:
    """The bytes of one word's file."""
    table = concept.tables[name]
    about = {"version": VERSION, "name": name, "places": table.places, "fingerprint": asdict(concept.fingerprint),
             "notes": dict(concept.notes)}
    return lora_file({f"{part}.{encoder}": v for part, found in (("vectors", table.vectors), ("added", table.added))
                      for encoder, v in found.items()}, {KEY: json.dumps(about)})


def read_word(path) -> Concept:
    """The CONCEPT of one word's file."""
    tensors, metadata = read_file(path)
    about = json.loads(metadata.get(KEY, "{}"))
    if about.get("version", 0) > VERSION:
        raise ValueError(f"{Path(path).name} is of version {about['version']}, this pack reads up to {VERSION}: update "
                         "the pack.")
    parts: dict[str, dict] = {"vectors": {}, "added": {}}
    for key, value in tensors.items():
        part, _, encoder = key.partition(".")
        parts.get(part, {})[encoder] = value.float()
    vectors, places = parts["vectors"], tuple((section, block) for section, block in about.get("places", ()))
    sizes = {tuple(v.shape[:2]) for found in parts.values() for v in found.values() if v.ndim == 4}
    whole = len(sizes) == 1 and all(v.ndim == 4 and torch.isfinite(v).all() for v in tensors.values())
    if not vectors or not whole or not NAME.fullmatch(about.get("name", "")) or {len(places) or 1} != {
            count for _, count in sizes}:
        raise ValueError(f"{Path(path).name} has {len(tensors)} tensors and {len(about)} notes of {VERSION} version, "
                         "which are no whole word: choose a file that Save Concept wrote.")
    return Concept({}, {}, Fingerprint(**about["fingerprint"]), notes=about["notes"],
                   tables={about["name"]: WordTable(vectors, places, parts["added"])})
