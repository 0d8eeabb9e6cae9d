"""What the host knows of a MODEL that was distilled: to few steps, to whole steps, or to a guidance that it is told."""
import comfy.model_base
import comfy.supported_models

from .sampling import prediction_type

GUIDANCE = {comfy.model_base.Flux: 3.5, comfy.model_base.HunyuanVideo: 6.0,
            comfy.model_base.HunyuanImage21: 6.0}  # the host's, where a prompt names none


def few_steps(model) -> str:
    """What shows that a MODEL may be distilled to few steps, as a clause. Empty where nothing does: most Turbo and
    Lightning checkpoints have the class and the schedule of those that they were made from."""
    config, sampling = model.model.model_config, model.get_model_object("model_sampling")
    schnell = isinstance(config, comfy.supported_models.FluxSchnell)
    if schnell and config.unet_config.get("vec_in_dim"):  # the host takes Ovis-Image for Schnell too
        return "has no guidance embedding, as Schnell"
    if any(kind.__name__ == "LCM" for kind in type(sampling).__mro__):  # of a node's file
        return "samples by lcm"
    return "predicts x0, as Lightning in one step" if prediction_type(model) == "x0" else ""


def whole_steps(model) -> bool:
    """Whether the network is told where a step ends too (meanflow); the host knows that at the sampled levels alone."""
    return bool(model.model.model_config.unet_config.get("meanflow"))


def reads_guidance(model) -> bool:
    """Whether a MODEL was distilled to a guidance that it is told."""
    return bool(model.model.model_config.unet_config.get("guidance_embed", False))


def lacked_guidance(model, conditioning) -> float | None:
    """The GUIDANCE that the host puts into a prompt, where the MODEL reads one and the CONDITIONING names none."""
    if not reads_guidance(model) or all("guidance" in extras for _, extras in conditioning):
        return None
    return next((value for kind, value in GUIDANCE.items() if isinstance(model.model, kind)), None)
