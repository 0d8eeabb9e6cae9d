"""Files of encoded prompts: safetensors, with everything that is no tensor as JSON."""
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .storage import pack, unpack, write

KEY, VERSION = "palimpsest.prompt", 1
SUFFIX = ".prompt.safetensors"


def save_prompt(path, conditioning: list, known=()):
    """Write a CONDITIONING. known: the dataclasses of plain values that it may hold.

    ValueError on anything that is neither a tensor nor a plain value (ControlNets, hooks)."""
    tensors: dict = {}
    held = pack(conditioning, "prompt", tensors, _names(known), "CONDITIONING",
                "there, and put it behind Load Conditioning")
    write(path, tensors, {KEY: json.dumps({"version": VERSION, "prompt": held})})


def load_prompt(path, known=()) -> list:
    """The CONDITIONING of a file."""
    name = Path(path).name
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            record = json.loads((file.metadata() or {})[KEY])
            if record["version"] <= VERSION:
                found = unpack(record["prompt"], file, _names(known))
                if _whole(found):
                    return found
                raise ValueError("its entries are no prompts")
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read as a CONDITIONING ({error!r}): it is truncated, changed or of another "
                         "kind; choose a file that Save Conditioning wrote, or save it again.") from error
    raise ValueError(f"{name} has CONDITIONING format {record['version']}, this version of Palimpsest reads up to "
                     f"{VERSION}: update Palimpsest, or save it again.")


def _names(known) -> dict:
    return {kind.__name__: kind for kind in known}


def _whole(found) -> bool:
    return isinstance(found, list) and bool(found) and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], Tensor) and entry[0].ndim == 3
        and entry[0].numel() and entry[0].isfinite().all() and isinstance(entry[1], dict) for entry in found)
