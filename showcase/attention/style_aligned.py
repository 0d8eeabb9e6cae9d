"""Style Aligned, shown and measured."""
from functools import partial

from ...nodes.attention.style_aligned import PalimpsestStyleAligned
from .. import Example
from ..drawing import CFG, inverted
from ..pictures import sample, scene, second_picture, show
from ..rows import CostRow, SceneRow, output


def page(c, label):
    p = scene(c, 0, "background")
    reference, _, other = second_picture(c, p, None, 2, "style", "exact target")
    editor = c.node("PalimpsestStyleAligned", model=p.loader["MODEL"], inversion=other["inversion"])
    show(c, "reference", reference["exact target"])
    sample(c, label, p, inverted(c, p), "source", CFG, model=editor["MODEL"])


def edit(scenes, model, inversion, **settings):
    return output(PalimpsestStyleAligned, model=model, inversion=scenes.other(scenes.others, inversion), **settings)


EXAMPLE = Example(
    "Style Aligned",
    elsewhere="A word says each style that the miniature knows, so that sharing attention adds nothing to see.",
    pages={"PalimpsestStyleAligned": page},
    scenes=(SceneRow("Style Aligned (another picture)", edit, 84, kinds=("style",)),
            SceneRow("Style Aligned, not normalised (another picture)", partial(edit, normalise=False), 85,
                     kinds=("style",), only="flow")),
    costs=(CostRow("Style Aligned", lambda b: b.other(PalimpsestStyleAligned, inversion=b.inversion), 90),
           CostRow("Style Aligned, not normalised", lambda b: b.other(
               PalimpsestStyleAligned, inversion=b.inversion, normalise=False), 92, joint=True)))
