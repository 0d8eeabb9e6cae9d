"""Null-text inversion, shown and measured."""
from ...inversion.null_text import METHOD
from .. import Example
from ..drawing import Workflow, injected, inverted
from ..pictures import HIGH, returns
from ..rows import InversionRow


def learned(c, p):
    traced = inverted(c, p)
    found = c.node("PalimpsestNullTextOptimize", model=p.loader["MODEL"], inversion=traced["inversion"], cfg=HIGH)
    c.column(620)
    c.node("PalimpsestInversionReport", None, 300, model=p.loader["MODEL"], inversion=found["inversion"],
           vae=p.loader["VAE"], image=p.picture, cfg=HIGH, negative=p.null["CONDITIONING"])
    return found


WORKFLOW = Workflow(
    "Change a word at high guidance (Null-Text)",
    "2. *Null-Text Optimize* learns once per picture. Then queue as many targets as you like.\n3. On SD set *Attention "
    "Inject* to `self_end` 0.4 and `self_resolution` 0.5.\n\nCFG 7.5 loses the picture that DDIM inversion found. With "
    "an embedding learned for each step it comes back, and the edit keeps it. The report shows the replay of the "
    "source at that CFG. *Prompt Tuning Invert*, *StyleDiffusion Invert* and *KV Inversion* can replace this node.",
    injected, 30, invert=learned, cfg=HIGH)
EXAMPLE = Example(
    "Null-text inversion",
    workflows=(WORKFLOW,),
    pages={"PalimpsestNullTextOptimize": returns("PalimpsestNullTextOptimize", 10, HIGH, cfg=HIGH, own_negative=True)},
    inversions=(InversionRow("Null-text", METHOD, 80, over="Negative-prompt"),))
