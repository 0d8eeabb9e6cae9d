"""Feature Share, of values everywhere."""
from palimpsest.editing.layers import self_attention_layers
from palimpsest.nodes.attention.feature_share import PalimpsestFeatureShare

from editors.case import CROSS_END, EditorCase


def feature_share(case, model=None):
    layers = ", ".join(sorted({p.section for p in self_attention_layers(case.model.model.diffusion_model)}))
    return PalimpsestFeatureShare.execute(model or case.model, case.inversion, "RF-Edit", "", layers, 0.0, CROSS_END,
                                          "all", "same", False).result[0]


CASES = (EditorCase("feature share", feature_share, 280, features=True, joint=True),)
