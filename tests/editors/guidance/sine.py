"""SINE."""
from palimpsest.host.hooks import with_weights_on
from palimpsest.nodes.guidance.sine import PalimpsestSINEGuidance

import tiny
from editors.case import EditorCase


def expert(case):
    """The source's prompt, under other values of cross-attention."""
    weights = {name.replace(".weight", ".diff"): 0.1 * value.flip(0).clone()
               for name, value in case.model.model.state_dict().items() if name.endswith("attn2.to_v.weight")}
    return with_weights_on(tiny.encode(case.clip, "a red cat on a mat"), weights, 1.0)


def sine(case, model=None):
    return PalimpsestSINEGuidance.execute(model or case.model, expert(case), 0.5, 0.0, 1.0).result[0]


CASES = (EditorCase("sine", sine, bare=True, apart=True),)
