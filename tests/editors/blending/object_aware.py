"""Object-Aware Blend."""
from palimpsest.nodes.blending.object_aware import PalimpsestObjectAwareBlend

from editors.case import EditorCase, quarter


def objects(case, model=None):
    """Two objects, from the first and from the second of three steps."""
    for mask, start in ((quarter(case), 0.0), (quarter(case).flip(1, 2), 0.3)):
        model = PalimpsestObjectAwareBlend.execute(model or case.model, case.inversion, mask, start).result[0]
    return model


CASES = (EditorCase("objects", objects, 200, joint=True),)
