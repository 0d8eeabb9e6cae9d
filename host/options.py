"""Changes of model_options, each on a copy of what it changes; the host and other nodes share the rest.

Whatever stands in a slot stays in it: patches are added after it, replacements are built around it, wrappers stand
beside it.
"""
from collections.abc import Callable, Mapping
from functools import partial

from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS

__all__ = ["WrappersMP", "add_wrappers", "compiled", "uncached", "with_hooks", "with_patches", "with_replaced",
           "with_transformer", "with_wrapper"]
EASY_CACHE = "easycache"  # the key of its wrappers


def compiled(model_options: dict) -> bool:
    """Whether a node has the network, or blocks of it, compiled by torch."""
    return TORCH_COMPILE_KWARGS in model_options


def with_transformer(model_options: dict, **changed) -> dict:
    """model_options with other transformer_options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **changed}}


def with_patches(model_options: dict, **added: Callable) -> dict:
    """model_options with one more patch in each of some slots, such as attn1_patch."""
    held = model_options["transformer_options"].get("patches", {})
    return with_transformer(model_options, patches={**held, **{slot: [*held.get(slot, ()), patch]
                                                               for slot, patch in added.items()}})


def with_replaced(model_options: dict, slot: str, wrap: Mapping[tuple, Callable], default: Callable) -> dict:
    """model_options with other functions in a slot of the network's blocks, such as attn1.

    wrap: {(section, block, depth): function(inner) -> the new one}, where inner is what computes there now: another
    node's function, or the default."""
    held = model_options["transformer_options"].get("patches_replace", {})
    slots = dict(held.get(slot, {}))
    for position, around in wrap.items():
        slots[position] = around(slots.get(position, slots.get(position[:2], default)))
    return with_transformer(model_options, patches_replace={**held, slot: slots})


def with_wrapper(model_options: dict, kind: str, key: str, *functions: Callable) -> dict:
    """model_options with wrappers of one of the host's kinds (WrappersMP); those of one key replace each other."""
    held = model_options["transformer_options"].get("wrappers", {})
    return with_transformer(model_options, wrappers={**held, kind: {**held.get(kind, {}), key: list(functions)}})


def uncached(model_options: dict) -> dict:
    """model_options whose forwards the host's EasyCache neither skips nor keeps anything of."""
    held = model_options["transformer_options"].get("wrappers", {})
    return with_transformer(model_options, wrappers={
        kind: {key: functions for key, functions in found.items() if key != EASY_CACHE}
        for kind, found in held.items()})


def with_hooks(model_options: dict, key: str, register: Callable) -> dict:
    """model_options whose forwards run under the hooks that register(network, transformer_options) gives.

    The hooks live for one forward, so nothing stays in the shared network. Those of one key replace each other."""
    return with_wrapper(model_options, WrappersMP.APPLY_MODEL, key, partial(_forward, register))


def _forward(register, executor, *args, **kwargs):
    """One forward of the host's apply_model, whose sixth argument is transformer_options."""
    hooks = []
    try:
        hooks.extend(register(executor.class_obj.diffusion_model, args[5]))
        return executor(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()


def add_wrappers(model, key: str, wrappers: Mapping[str, Callable]):
    """Adds wrappers of the host's kinds to a MODEL, a clone, that has none of this key yet."""
    for kind, wrapper in wrappers.items():
        if not model.get_wrappers(kind, key):
            model.add_wrapper_with_key(kind, key, wrapper)
