"""The picture size that a model was made for."""
import math

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import SDXL, ModelType, SDXLRefiner

CELL = 8  # px of most latents' cell, which sides are multiples of


def native_side(model) -> int:
    """The side in px of a square picture of the model's training.

    A model may say it as `side` of its config, as the miniature does.
    """
    network = model.model
    said = getattr(network.model_config, "side", None)
    if said:
        return said
    if not isinstance(network.diffusion_model, UNetModel) or isinstance(network, (SDXL, SDXLRefiner)):
        return 1024
    return 768 if network.model_type == ModelType.V_PREDICTION else 512  # SD2.x at 768 is the one with v prediction


def cell(model) -> int:
    """The px of a cell of its latent."""
    return max(CELL, getattr(model.model.latent_format, "spacial_downscale_ratio", CELL))


def fitted(height: int, width: int, side: int, cell=CELL) -> tuple[int, int]:
    """(height, width) of the same shape and of side² px, each rounded to whole cells."""
    scale = side / math.sqrt(height * width)
    return max(round(height * scale / cell), 1) * cell, max(round(width * scale / cell), 1) * cell
