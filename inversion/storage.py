"""Inversions as files: safetensors, with everything that is no tensor as JSON in the metadata. Nothing is unpickled."""
import json
import math
import os
from dataclasses import fields, is_dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .trajectory import Inversion, Theta

VERSION = 1
KEY = "palimpsest.inversion"
FIELDS = "sigmas", "latents", "conditioning", "fingerprint", "method", "trajectory", "theta", "provenance"


def save(path, inversion: Inversion, known=()):
    """Write an INVERSION to `path`, at once or not at all. known: the dataclasses of plain values that it may hold
    beside Theta.

    ValueError, naming where it stands, on anything that is neither a tensor nor a plain value (ControlNets, hooks).
    """
    tensors = {}
    names = {kind.__name__: kind for kind in (Theta, *known)}
    value = {name: _pack(getattr(inversion, name), name, tensors, names) for name in FIELDS}
    text = json.dumps({"version": VERSION, "inversion": value})
    part = Path(f"{path}.part")
    try:
        save_file(tensors, part, metadata={KEY: text})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path, known=()) -> Inversion:
    """The INVERSION of a file that `save` wrote; its tensors are mapped from the file.

    ValueError on a truncated file, on one that holds no INVERSION, and on one of a newer version of the pack.
    """
    name = Path(path).name
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise ValueError(f"{name} is a safetensors file of {len(file.keys())} tensors without an INVERSION: "
                                 "choose one that Save Inversion wrote.")
            record = json.loads(text)
            if record["version"] > VERSION:
                raise ValueError(f"{name} has INVERSION format {record['version']}, this version of Palimpsest reads up to "
                                 f"{VERSION}: update Palimpsest, or invert again.")
            names = {kind.__name__: kind for kind in (Theta, *known)}
            return Inversion(**{name: _unpack(v, file, names) for name, v in record["inversion"].items()})
    except (SafetensorError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        size = os.path.getsize(path)
        raise ValueError(f"{name} ({size} bytes) cannot be read as an INVERSION ({error}): it is truncated or of "
                         "another kind; copy it again, or invert again.") from error


def _pack(value, place, tensors, names):
    """JSON for a value; its tensors go into `tensors` by their place."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous()
        if any(t is not tensors[place] and t.untyped_storage().data_ptr() == tensors[place].untyped_storage().data_ptr()
               for t in tensors.values()):
            tensors[place] = tensors[place].clone()  # the format refuses tensors that share memory
        return {"tensor": place}
    if value is None or isinstance(value, (str, bool, int)) or isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        items = [_pack(v, f"{place}.{i}", tensors, names) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if is_dataclass(value) and names.get(type(value).__name__) is type(value):
        held = {f.name: _pack(getattr(value, f.name), f"{place}.{f.name}", tensors, names) for f in fields(value)}
        return {type(value).__name__: held}
    if hasattr(value, "items") and all(isinstance(k, str) for k in value):
        return {"dict": {k: _pack(v, f"{place}.{k}", tensors, names) for k, v in value.items()}}
    raise ValueError(f"The INVERSION holds a {type(value).__name__} at {place}, which a file of tensors and plain "
                     "values cannot keep: remove the node that put it into the source CONDITIONING, and invert again.")


def _unpack(value, file, names):
    if isinstance(value, list):
        return [_unpack(v, file, names) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise KeyError(f"{len(value)} kinds of one value")
    (kind, held), = value.items()
    if kind == "tensor":
        return file.get_tensor(held)
    if kind == "tuple":
        return tuple(_unpack(v, file, names) for v in held)
    held = {k: _unpack(v, file, names) for k, v in held.items()}
    return held if kind == "dict" else names[kind](**held)
