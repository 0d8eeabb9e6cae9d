"""Hooks on weights: a LoRA for one prompt alone."""
from collections.abc import Iterable, Mapping

from comfy.hooks import (
    EnumHookMode,
    EnumHookType,
    EnumWeightTarget,
    Hook,
    HookGroup,
    create_hook_lora,
    create_target_dict,
    set_hooks_for_conditioning,
)
from torch import Tensor


def with_weights_on(conditioning: list, weights: Mapping[str, Tensor], strength: float) -> list:
    """A CONDITIONING under which the network has a LoRA file's weights."""
    return set_hooks_for_conditioning(conditioning, create_hook_lora(dict(weights), strength, 0.0))


def hooks_of(conditionings: Iterable[list]) -> list[Hook]:
    """The hooks that some CONDITIONINGs carry."""
    return [hook for conditioning in conditionings for _, extras in conditioning
            for hook in getattr(extras.get("hooks"), "hooks", ())]


def weight_hooks(conditioning: list) -> list[Hook]:
    """Those of a CONDITIONING that change weights."""
    return [hook for hook in hooks_of([conditioning]) if hook.hook_type == EnumHookType.Weight]


def weights_changed(model, conditioning: list) -> int:
    """How many of a MODEL's weights a CONDITIONING changes in the run that goes on."""
    return len({key for hook in weight_hooks(conditioning) for key in model.hook_patches.get(hook.hook_ref, ())})


def known_hooks(guider) -> list[Hook]:
    """The hooks that the host applies in a guider's run."""
    return getattr(guider.model_options.get("registered_hooks"), "hooks", [])


def require_changeable(guider):
    """ValueError where the host would stop at the first hook on weights: its way to them breaks on quantised ones
    (weights.py)."""
    if not any(hook.hook_type == EnumHookType.Weight for hook in known_hooks(guider)):
        return
    try:
        guider.model_patcher.get_key_patches("diffusion_model.")
    except AttributeError as error:
        raise ValueError("A prompt has a LoRA of its own (ComfyUI's hooks), and ComfyUI cannot change the quantised "
                         "weights of this MODEL in the middle of a run: load a checkpoint of fp8, fp16 or bf16, or put "
                         "the LoRA on the MODEL.") from error


def register_weights(guider, conditionings: Iterable[list]):
    """Lets the host apply the weights of further CONDITIONINGs in the run that begins, as it does those of the guider's
    own, which alone it looks for. The host forgets them at the run's end."""
    hooks = hooks_of(conditionings)
    if not hooks:
        return
    if getattr(guider.model_patcher, "is_dynamic", bool)():  # as the guider does where its own prompts have hooks
        guider.model_patcher = guider.model_patcher.get_non_dynamic_delegate()
    registered = guider.model_options.get("registered_hooks") or HookGroup()
    every = HookGroup()
    for hook in (*registered.hooks, *hooks):
        every.add(hook)
    guider.model_options["registered_hooks"] = guider.model_patcher.register_all_hook_patches(
        every, create_target_dict(EnumWeightTarget.Model), guider.model_options, registered)
    guider.model_patcher.hook_mode = EnumHookMode.MaxSpeed  # the host puts it back
