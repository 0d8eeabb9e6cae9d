"""Inject Composite."""
from palimpsest.nodes.attention.tf_icon import PalimpsestInjectComposite

from editors.case import CROSS_END, SELF_END, EditorCase, quarter


def composite(case, model=None):
    """The picture set into itself, with its own queries and keys everywhere, until the blend ends at
    the second of three steps."""
    return PalimpsestInjectComposite.execute(model or case.model, case.inversion, case.inversion, quarter(case), 0,
                                             CROSS_END, SELF_END, 0).result[0]


CASES = (EditorCase("composite", composite, 220, features=True, joint=True),)
