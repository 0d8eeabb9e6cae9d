"""Hooks on modules of the host's network that live for one forward, so that nothing stays in the shared model."""
from functools import partial

from comfy.patcher_extension import WrappersMP


def hooked(model_options, key, register) -> dict:
    """model_options whose forwards run under the hooks that register(network, transformer_options) returns.

    key: tells these hooks from others; those of one key replace each other."""
    to = model_options["transformer_options"]
    wrappers = to.get("wrappers", {})
    around = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), key: [partial(_forward, register)]}
    return {**model_options, "transformer_options": {**to, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: around}}}


def _forward(register, executor, *args, **kwargs):
    """One forward of the host's apply_model, whose sixth argument is transformer_options."""
    hooks = []
    try:
        hooks.extend(register(executor.class_obj.diffusion_model, args[5]))
        return executor(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
