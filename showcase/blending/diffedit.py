"""DiffEdit, shown and measured."""
from functools import partial

from ...nodes.blending.diffedit import PalimpsestDiffEditMask
from ...nodes.blending.local_blend import PalimpsestLatentBlend
from .. import Example
from ..drawing import CFG, Workflow, inverted
from ..pictures import sample, scene, show_mask
from ..rows import LATER, SceneRow, inject, inject_auto, output


def masked(c, p, inversion):
    mask = c.node("PalimpsestDiffEditMask", None, 260, model=p.loader["MODEL"], source=p.words["source"],
                  target=p.words["target"], latent=p.encoded["LATENT"], rule="auto")
    c.column(320)
    return c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"], mask=mask["MASK"])


WORKFLOW = Workflow(
    "Remove an object by two prompts (DiffEdit)",
    "2. On SD: CFG 7.5.\n\nThe picture may change where the noise predictions of the two prompts differ. Everywhere "
    "else the source comes back exactly. Best for removing something.",
    masked, 110, kind="delete", seed=1, hard=True)


def page(c, label):
    p = scene(c, 4)
    mask = c.node("PalimpsestDiffEditMask", model=p.loader["MODEL"], source=p.words["source"], target=p.words["target"],
                  latent=p.encoded["LATENT"])
    show_mask(c, "its mask", mask["MASK"])
    inversion = inverted(c, p)
    blended = c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                     mask=mask["MASK"])
    sample(c, "edit within the mask", p, inversion, "target", CFG, model=blended["MODEL"])


def edit(scenes, model, inversion, before=None, **settings):
    """A SceneRow's edit: a blend under the mask, after the edit `before`. settings: inputs of DiffEdit Mask."""
    mask = output(PalimpsestDiffEditMask, model=scenes.parts[0], source=scenes.source, target=scenes.target,
                  latent=scenes.latent, **settings)
    model = before(scenes, model, inversion) if before else model
    return output(PalimpsestLatentBlend, model=model, inversion=inversion, mask=mask)


EXAMPLE = Example(
    "DiffEdit's mask",
    workflows=(WORKFLOW,),
    pages={"PalimpsestDiffEditMask": page},
    scenes=(SceneRow("DiffEdit", edit, 80), SceneRow("DiffEdit (auto)", partial(edit, rule="auto"), 81),
            SceneRow("Inject + Latent Blend (DiffEdit's mask)", partial(edit, before=inject), 24),
            SceneRow("Inject + Latent Blend (DiffEdit's mask, both auto)",
                     partial(edit, before=inject_auto, rule="auto"), 26, crossed=True),
            SceneRow("Inject + Latent Blend (DiffEdit's mask, both auto), CFG 3",
                     partial(edit, before=inject_auto, rule="auto"), 27, on="FlowEdit, CFG 3", cfg=3.0),
            SceneRow("Inject + Latent Blend (DiffEdit's mask, both auto), CFG 3, start 0.25",
                     partial(edit, before=inject_auto, rule="auto"), 27, on="FlowEdit, CFG 3", cfg=3.0, start=LATER,
                     kinds=("pose",)),
            SceneRow("Inject + Latent Blend (DiffEdit's mask, both auto), CFG 3, start 0.25, n_avg 4",
                     partial(edit, before=inject_auto, rule="auto"), 27, on="FlowEdit, CFG 3, n_avg 4", cfg=3.0,
                     start=LATER, kinds=("pose",)),
            SceneRow("Inject + Latent Blend (DiffEdit's mask, both auto), CFG 2.5, n_avg 4",
                     partial(edit, before=inject_auto, rule="auto"), 27, on="FlowEdit, CFG 2.5, n_avg 4", cfg=2.5,
                     kinds=("material",))))
