"""Style Aligned."""
from palimpsest.host.network import turned
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned

from editors.case import CROSS_END, EditorCase


def style_aligned(case, model=None):
    """Normalised where no token's place turns its query and key."""
    model = model or case.model
    normalise = not turned(model.model.diffusion_model)
    return PalimpsestStyleAligned.execute(model, 0.0, CROSS_END, 0.69, 1.0, normalise, "", False,
                                          case.inversion).result[0]


CASES = (EditorCase("style aligned", style_aligned, 230, features=True, joint=True),)
