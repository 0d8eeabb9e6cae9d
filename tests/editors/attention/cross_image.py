"""Cross-Image Attention."""
from palimpsest.nodes.attention.cross_image import PalimpsestCrossImageAttention

from editors.case import CROSS_END, EditorCase, quarter


def cross_image(case, model=None):
    """The picture's own appearance, with AdaIN in one quarter. Over the whole picture AdaIN leaves too little for
    rounding to be small against."""
    return PalimpsestCrossImageAttention.execute(model or case.model, case.inversion, 0.0, CROSS_END, CROSS_END, 0.2,
                                                 1.0, 1.67, "", structure_mask=quarter(case),
                                                 appearance_mask=quarter(case)).result[0]


CASES = (EditorCase("cross image", cross_image, 240, features=True, joint=True),)
