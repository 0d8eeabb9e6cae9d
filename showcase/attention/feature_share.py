"""Feature Share, shown and measured."""
from dataclasses import replace
from functools import partial

from ...nodes.attention.feature_share import PalimpsestFeatureShare
from .. import Example, folds
from ..drawing import BROWN, CFG, GREEN, Workflow, inverted
from ..inversion.flow import flow_edit
from ..pictures import ALONE, sample, scene
from ..rows import CostRow, SceneRow, alone, on_inversion


def painted(c):
    """The picture moves along the difference of both sentences inside a mask, and looks up what lies around it."""
    p, settings = folds.picture_and_words(c, masked=True), flow_edit.asked(c)
    with c.group("2  Ask what the picture shows", GREEN):
        target = flow_edit.inverted_by(c, p, settings)
    c.row()
    with c.group("3  Edit inside the mask", BROWN):
        c.column(320)
        shared = c.node("PalimpsestFeatureShare", model=p.model, inversion=p.inversion, preset="KV-Edit",
                        mask=p.mask)["MODEL"]
        folds.sampled(c, p, shared, target, settings.start, settings.cfg[1])
    folds.given_back(c, p, p.mask)


BLUEPRINT = folds.Blueprint(
    "Image Edit (Keep the Background, KV-Edit)",
    "Paint where the picture may change, and say what it shows before and after. All around stays pixel by pixel, and "
    "what is new looks it up to fit. For flow models: Flux.1-dev as it opens (the KV-Edit authors' values). Others: as "
    "Image Edit by Words for flow models (with KV-Edit untuned).", painted, order=45)
BEGIN = replace(
    flow_edit.BEGIN, title="Start here - Change only what you paint (Flux, Qwen, Z-Image)", blueprint=BLUEPRINT,
    about="**Paint** where it may change (right click on the picture, *Open in MaskEditor*; on the example it is the "
          "cup). " + folds.WORD,
    order=7, masked=True, more=flow_edit.VALUES)


def held(c, p, inversion):
    return c.node("PalimpsestFeatureShare", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  preset="FireFlow", end=END)


WORKFLOW = Workflow(
    "Change a word on a flow model (FireFlow)",
    "2. On Flux: 8 steps, CFG 1, a FluxGuidance of 1 behind the source and of 2 behind the target, *end* 0 (the "
    "preset's own).\n\nBack to the noise in one evaluation a step. Then the first steps hold the source's values. "
    "Later ends keep more. *preset* RF-Edit goes with RF-Solver Invert, Stable Flow with any inversion.",
    held, 67, invert=partial(inverted, kind="PalimpsestFireFlowInvert", steps=20), model="Flux")


def page(c, label):
    p = scene(c, seed=0, kind="object", model="Flux")
    inversion = inverted(c, p, "PalimpsestRFInversionInvert", steps=28, scheduler="simple", gamma=0.0)
    shared = c.node("PalimpsestFeatureShare", model=p.loader["MODEL"], inversion=inversion["inversion"],
                    preset="KV-Edit", mask=p.mask)
    sample(c, ALONE, p, inversion, "target", CFG)
    sample(c, label, p, inversion, "target", CFG, model=shared["MODEL"])


END = 0.4  # of the miniature
shared = partial(on_inversion, PalimpsestFeatureShare)
EXAMPLE = Example(
    "RF-Edit, FireFlow, Stable Flow, KV-Edit",
    workflows=(BEGIN, WORKFLOW), blueprints=(BLUEPRINT,),
    pages={"PalimpsestFeatureShare": page},
    costs=(CostRow("Feature Share, values throughout", alone(PalimpsestFeatureShare, end=1.0), 75, joint=True),
           CostRow("Feature Share, keys and values (KV-Edit)",
                   lambda bench: bench.other(PalimpsestFeatureShare, preset="KV-Edit", mask=bench.mask), 76, large=True,
                   joint=True)),
    scenes=(SceneRow("Feature Share (RF-Edit)", shared(preset="RF-Edit"), 86, on="RF-Solver", only="flow"),
            SceneRow("Feature Share (FireFlow)", shared(preset="FireFlow"), 87, on="FireFlow", only="flow"),
            SceneRow("Feature Share (KV-Edit, true mask)", shared(preset="KV-Edit", masked=True), 88, on="FlowEdit",
                     cfg=2.3, only="flow")))
