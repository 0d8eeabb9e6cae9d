"""FlowEdit, shown and measured."""
from types import SimpleNamespace

from ....inversion.flow.flow_edit import METHOD
from ....miniature import SCENE
from ....miniature.scenes import held_out_edit
from ....nodes.blending.local_blend import PalimpsestLatentBlend
from ... import Example, drawing, folds
from ...drawing import BROWN, GREEN, Workflow, injected, inverted
from ...folds import Blueprint, Start
from ...pictures import both
from ...rows import InversionRow, SceneRow, as_it_is, on_inversion

ON = {"on": "FlowEdit", "cfg": 2.3}
CFG = "CFG, first sentence", "CFG, second sentence"
START, REST = "keep more", "keep the rest"


def asked(c) -> SimpleNamespace:
    """What both blueprints ask for: steps, guidance and CFG of both sentences, start."""
    return SimpleNamespace(
        steps=c.asks(folds.STEPS, 28), guidance=[c.asks(f"Flux guidance, {name} sentence", value) for name, value in
                                                 (("first", 1.5), ("second", 5.5))],
        cfg=[c.asks(name, 1.0) for name in CFG], start=c.asks(START, 0.14))


def inverted_by(c, p, settings):
    """The picture noised to every level, under the source's guidance. Returns the target under its own."""
    c.column(300)
    source, target = (
        c.node("FluxGuidance", f"Guidance of the {name}", conditioning=prompt, guidance=value)["CONDITIONING"]
        for name, prompt, value in zip(("source", "target"), (p.source["source"], p.words["target"]),
                                       settings.guidance))
    p.inversion = c.node("PalimpsestFlowEditInvert", model=p.model, source=source, latent=p.latent, negative=p.null,
                         steps=settings.steps, scheduler="simple", cfg=settings.cfg[0])["inversion"]
    return target


def by_words(c):
    """The picture moves along the difference of what both sentences say, where it is large."""
    p, settings = folds.picture_and_words(c), asked(c)
    rest = c.asks(REST)
    with c.group("2  Ask what the picture shows, and find what changes", GREEN):
        target = inverted_by(c, p, settings)
        c.column(290)
        found = c.node("PalimpsestDiffEditMask", None, 260, model=p.model, source=p.words["source"],
                       target=p.words["target"], latent=p.latent, threshold=rest, rule="auto")
        mask = c.node("GrowMask", "A cell wider", mask=found["MASK"], expand=1)["MASK"]
    c.row()
    with c.group("3  Edit", BROWN):
        c.column(320)
        blended = c.node("PalimpsestLatentBlend", model=p.model, inversion=p.inversion, mask=mask)["MODEL"]
        folds.sampled(c, p, blended, target, settings.start, settings.cfg[1])
    folds.given_back(c, p, mask, found["settings"])


BLUEPRINT = Blueprint(
    "Image Edit by Words (Flux, Qwen, Z-Image)",
    "Change a word of what a picture shows, and keep the rest of it pixel by pixel. For flow models: Flux.1-dev as it "
    "opens (the FlowEdit authors' values). SD3, SD3.5: 50 steps, CFG 3.5 and 13.5, keep more 0.34 (the authors'). "
    "Qwen-Image, Z-Image, Chroma: 30 steps, CFG 1.5 and 5, keep more 0.2 (ours, untuned). Schnell, Turbo, Lightning: "
    "4 to 8 steps, CFG 1 and 1 (ours, untuned).", by_words, order=15)
FLUX = {"name": "flux1-dev-fp8.safetensors", "directory": "checkpoints",
        "url": "https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors"}  # as in the host's
VALUES = """

| model | steps | CFG, both sentences | keep more |
|---|---|---|---|
| Flux.1-dev | 28 | 1, 1 | 0.14 |
| SD3, SD3.5 | 50 | 3.5, 13.5 | 0.34 |
| Qwen-Image, Z-Image, Chroma (untuned) | 30 | 1.5, 5 | 0.2 |
| Schnell, Turbo, Lightning (untuned) | 4 to 8 | 1, 1 | 0 |

For a model in three files put **Load Diffusion Model**, **Load CLIP** and **Load VAE** in place of *Load \
Checkpoint*. ComfyUI 0.3.64 knows no Z-Image."""
EDIT = held_out_edit(**SCENE)
BEGIN = Start(
    "Start here - Change a word (Flux, Qwen, Z-Image)", BLUEPRINT, folds.WORD, SCENE,
    {folds.SHOWS: EDIT.source_text, folds.WANTED: EDIT.target_text, CFG[1]: ON["cfg"], START: 0.0},
    {folds.SHOWS: "a photo of a red apple and a white cup on a wooden table",
     folds.WANTED: "a photo of a red apple and a blue cup on a wooden table"}, 6, checkpoint=FLUX,
    models="Flux, SD3, Qwen-Image, Z-Image", miniature="Flux",
    more=VALUES + " *Keep the rest* at 0 lets the whole picture change.")


def alike(c, p):
    """Both prompts at the CFG of sampling."""
    return inverted(c, p, "PalimpsestFlowEditInvert", negative=p.null["CONDITIONING"], cfg=drawing.CFG)


def found(c, p, inversion):
    held = injected(c, p, inversion, schedule="auto")
    mask = c.node("PalimpsestDiffEditMask", None, 260, model=p.loader["MODEL"], source=p.words["source"],
                  target=p.words["target"], latent=p.encoded["LATENT"], rule="auto")
    c.column(320)
    return c.node("PalimpsestLatentBlend", model=held["MODEL"], inversion=inversion["inversion"], mask=mask["MASK"])


WORKFLOW = Workflow(
    "Change anything, with no mask of your own (FlowEdit)",
    "2. On SD: 50 steps, one CFG for both prompts, 3 (4 where something is added). For a pose, Replay's `start` at "
    "0.25. A MASK of your own goes into *Latent Blend*.\n\nNo way back to the noise: the picture moves along the "
    "difference of what both prompts say. DiffEdit Mask finds where, Attention Inject's `auto` reads the kind of edit "
    "off the words. Of all that needs no mask this comes nearest on the miniature.",
    found, 65, invert=alike, seed=114, hard=True,
    rows=("FlowEdit, CFG 3, Inject + Latent Blend (DiffEdit's mask, both auto), CFG 3",
          "FlowEdit, CFG 3, Inject (auto) + Latent Blend (true mask), CFG 3",
          "FlowEdit, CFG 3, Inject + Latent Blend (DiffEdit's mask, both auto), CFG 3, start 0.25",
          "FlowEdit, CFG 3, Inject (auto) + Latent Blend (true mask), CFG 3, start 0.25",
          "FlowEdit, CFG 3, n_avg 4, Inject + Latent Blend (DiffEdit's mask, both auto), CFG 3, start 0.25, n_avg 4",
          "FlowEdit, CFG 3, n_avg 4, Inject (auto) + Latent Blend (true mask), CFG 3, start 0.25, n_avg 4",
          "FlowEdit, CFG 2.5, n_avg 4, Inject + Latent Blend (DiffEdit's mask, both auto), CFG 2.5, n_avg 4",
          "FlowEdit, CFG 2.5, n_avg 4, Inject (auto) + Latent Blend (true mask), CFG 2.5, n_avg 4",
          "FlowEdit, Inject + Latent Blend (DiffEdit's mask, both auto)", "FlowEdit, Inject + Latent Blend (both auto)",
          "FlowEdit, Inject (auto) + Latent Blend (true mask)"))
EXAMPLE = Example(
    "FlowEdit",
    workflows=(BEGIN, WORKFLOW), blueprints=(BLUEPRINT,),
    pages={"PalimpsestFlowEditInvert": both("PalimpsestFlowEditInvert", 20, 2.3, 0.0)},
    inversions=(InversionRow("FlowEdit", METHOD, 182, {"cfg": 1.0}),
                InversionRow("FlowEdit, CFG 3", METHOD, 183, {"cfg": 3.0}),
                InversionRow("FlowEdit, CFG 3, n_avg 4", METHOD, 184, {"cfg": 3.0, "n_avg": 4}),
                InversionRow("FlowEdit, CFG 2.5, n_avg 4", METHOD, 185, {"cfg": 2.5, "n_avg": 4})),
    scenes=(SceneRow("direct path, CFG 2.3", as_it_is, 162, **ON),
            SceneRow("direct path + Latent Blend (true mask), CFG 2.3",
                     on_inversion(PalimpsestLatentBlend, masked=True), 163, **ON)))
