"""Inversions as files: safetensors, with everything that is no tensor as JSON in the metadata. Nothing is unpickled."""
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .method import check, methods
from .trajectory import Inversion, Theta

# 1: without the widths of the prompt that the model reads, and the words' names; 2: settings among the provenance
VERSION = 3
KEY = "palimpsest.inversion"
FIELDS = "sigmas", "latents", "conditioning", "fingerprint", "method", "trajectory", "theta", "settings", "provenance"


def save(path, inversion: Inversion, known=()):
    """Write an INVERSION to `path`, at once or not at all. known: the dataclasses of plain values that it may hold
    beside Theta.

    ValueError, naming where it stands, on anything that is neither a tensor nor a plain value (ControlNets, hooks), and
    where the file cannot be written.
    """
    tensors = {}
    names = {kind.__name__: kind for kind in (Theta, *known)}
    value = {name: pack(getattr(inversion, name), name, tensors, names) for name in FIELDS}
    write(path, tensors, {KEY: json.dumps({"version": VERSION, "inversion": value})})


def write(path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]):
    """Write a safetensors file, at once or not at all. ValueError where it cannot be written."""
    part = Path(f"{path}.part")
    try:
        save_file(dict(tensors), part, metadata=dict(metadata))
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        name = Path(path).name
        raise ValueError(f"{name[:20]}… (a name of {len(os.fsencode(name))} bytes) cannot be written to {part.parent} "
                         f"({error}): give a shorter name, and a folder with room for it that may be written "
                         "to.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def load(path, known=()) -> Inversion:
    """The INVERSION of a file that `save` wrote; its tensors are mapped from the file.

    ValueError on a truncated file, on one that holds no INVERSION or one that no inversion makes, and on one of a newer
    version of the pack.
    """
    name = Path(path).name
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            count, text = len(file.keys()), (file.metadata() or {}).get(KEY)
            record = {} if text is None else json.loads(text)
            if text is not None and record["version"] <= VERSION:
                names = {kind.__name__: kind for kind in (Theta, *known)}
                values = {name: unpack(v, file, names) for name, v in record["inversion"].items()}
                found = Inversion(**values if record["version"] > 2 else _with_settings(values))
                _check(found)
                return found
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} ({os.path.getsize(path)} bytes) cannot be read as an INVERSION ({error}): it is "
                         "truncated, changed or of another kind; copy it again, or invert again.") from error
    if text is None:
        raise ValueError(f"{name} is a safetensors file of {count} tensors without an INVERSION: choose one that Save "
                         "Inversion wrote.")
    raise ValueError(f"{name} has INVERSION format {record['version']}, this version of Palimpsest reads up to "
                     f"{VERSION}: update Palimpsest, or invert again.")


def _with_settings(values) -> dict:
    """What an older file holds, with the settings that its method needs taken out of the provenance."""
    notes, method = dict(values["provenance"]), methods().get(values["method"])
    needed = method.needed if method else []
    return {**values, "settings": {n: notes.pop(n) for n in needed if n in notes}, "provenance": notes}


def _check(inversion):
    """ValueError on what no inversion makes, though each value is of a kind that a file may hold."""
    (text, extras), = inversion.conditioning
    latents, batch = inversion.latents, inversion.batch
    if type(inversion.fingerprint).__name__ != "Fingerprint":
        raise ValueError("it does not tell the model it was made with")
    if inversion.trajectory not in ("deterministic", "independent"):
        raise ValueError(f"its trajectory is {inversion.trajectory!r}, neither deterministic nor independent")
    if latents is not None and (latents[0].ndim < 3 or not latents[0].numel()):
        raise ValueError(f"its latents are {list(latents[0].shape)}, not pictures, channels and places")
    for embedding, dimensions in (text, 3), (extras.get("pooled_output"), 2):
        if embedding is not None and (embedding.ndim != dimensions or not embedding.numel() or batch % len(embedding)):
            raise ValueError(f"its source has an embedding {list(embedding.shape)} for {batch} pictures")
    tokens = inversion.tokens
    if tokens is not None and not (isinstance(tokens, tuple) and all(type(t).__name__ == "Tokens" for t in tokens)):
        raise ValueError("its source's tokens are of another kind")
    check(inversion)


def pack(value, place: str, tensors: dict[str, Tensor], names: Mapping[str, type], what: str = "INVERSION",
         cure: str = "into the source CONDITIONING, and invert again") -> Any:
    """JSON for a value; its tensors go into `tensors` by their place.

    names: the dataclasses that it may hold.
    what, cure: of the error where it holds what is neither a tensor nor plain.
    """
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous()
        if any(t is not tensors[place] and t.untyped_storage().data_ptr() == tensors[place].untyped_storage().data_ptr()
               for t in tensors.values()):
            tensors[place] = tensors[place].clone()  # the format refuses tensors that share memory
        return {"tensor": place}
    if value is None or isinstance(value, (str, bool, int)) or isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        items = [pack(v, f"{place}.{i}", tensors, names, what, cure) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if is_dataclass(value) and names.get(type(value).__name__) is type(value):
        held = {f.name: pack(getattr(value, f.name), f"{place}.{f.name}", tensors, names, what, cure)
                for f in fields(value)}
        return {type(value).__name__: held}
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: pack(v, f"{place}.{k}", tensors, names, what, cure) for k, v in value.items()}}
    raise ValueError(f"The {what} holds a {type(value).__name__} at {place}, which a file of tensors and plain "
                     f"values cannot keep: remove the node that put it {cure}.")


def unpack(value, file, names: Mapping[str, type]) -> Any:
    """The value of JSON that `pack` made. file: gives its tensors, as safetensors' safe_open does."""
    if isinstance(value, list):
        return [unpack(v, file, names) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise KeyError(f"{len(value)} kinds of one value")
    (kind, held), = value.items()
    if kind == "tensor":
        return file.get_tensor(held)
    if kind == "tuple":
        return tuple(unpack(v, file, names) for v in held)
    held = {k: unpack(v, file, names) for k, v in held.items()}
    if kind == "dict":
        return held
    made = names[kind](**held)
    for field in fields(made):
        if not _fits(getattr(made, field.name), field.type):
            raise TypeError(f"the {field.name} of a {kind} is of another kind")
    return made


def _fits(value, kind) -> bool:
    """Whether a value is of the type that a dataclass gives its field."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(kind)[0]) for v in value)
    return not isinstance(kind, (type, UnionType)) or isinstance(value, kind)
