"""RF-Inversion Guide."""
from palimpsest.nodes.guidance.rf_inversion import PalimpsestRFInversionGuide

from editors.case import EditorCase


def drawn(case, model=None):
    """Two of three steps."""
    return PalimpsestRFInversionGuide.execute(model or case.model, case.inversion, 0.5, 0.0, 0.5, "constant").result[0]


CASES = (EditorCase("rf guide", drawn, 265, bare=True, joint=True),)
