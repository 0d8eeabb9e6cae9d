"""Files of words that no embedding's file can hold: safetensors, with everything that is no tensor as JSON."""
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

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
    return read_concept(path, KEY, VERSION, "word", _concept)


def read_concept(path, key, version, what, made: Callable[[dict, dict], Concept | None]) -> Concept:
    """The CONCEPT that `made` makes of a file's tensors and of what its metadata says. ValueError where it is none, or
    of a later version."""
    tensors, metadata = read_file(path)
    try:
        about = json.loads(metadata[key])
        if about["version"] > version:
            raise ValueError(f"{Path(path).name} is of version {about['version']}, this pack reads up to {version}: "
                             "update the pack.")
        found = made(tensors, about)
    except (KeyError, TypeError, IndexError, json.JSONDecodeError):
        found = None
    if found is None:
        raise ValueError(f"{Path(path).name} has {len(tensors)} tensors and {len(metadata)} notes, which make no whole "
                         f"{what}: choose a file that Save Concept wrote.")
    return found


def _concept(tensors, about) -> Concept | None:
    parts: dict[str, dict] = {"vectors": {}, "added": {}}
    for key, value in tensors.items():
        part, _, encoder = key.partition(".")
        parts[part][encoder] = value.float()
    places, name = tuple((section, block) for section, block in about["places"]), about["name"]
    shapes = {value.shape[:2] if value.ndim == 4 else () for value in tensors.values()}
    whole = len(shapes) == 1 and shapes.pop()[1:] == (len(places) or 1,) and parts["vectors"] and NAME.fullmatch(name)
    if not whole or not all(value.isfinite().all() for value in tensors.values()):
        return None
    return Concept({}, {}, Fingerprint(**about["fingerprint"]), notes=about["notes"],
                   tables={name: WordTable(parts["vectors"], places, parts["added"])})
