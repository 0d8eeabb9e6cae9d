"""One small workflow for each technique that looks different on the canvas: a picture, an inversion, an editor, a
comparison."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from canvas import Canvas
from parts import BLUE, BROWN, CFG, GREEN, KEEPS, YELLOW, picture_and_words, replay, sized


def ddim(c, p):
    return inverted(c, p, "PalimpsestDDIMInvert")


def inverted(c, p, kind, **settings):
    """An inversion node on the picture."""
    return c.node(kind, model=p.loader["MODEL"], source=p.words["source"], latent=p.encoded["LATENT"], **settings)


def injected(c, p, inversion, **settings):
    return c.node("PalimpsestAttentionInject", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  prompt_edit=p.words["prompt edit"], **{**KEEPS, **settings})


@dataclass(frozen=True)
class Technique:
    """about: what it shows and what to set on SD. kind and seed: the miniature's picture and edit. invert(canvas,
    parts) and edit(canvas, parts, inversion) place nodes; the latter's MODEL is sampled, at `cfg`, from `start` on;
    without `invert` it makes a LATENT. target: which of Prompt Edit's CONDITIONINGs is sampled, unless a prompt of its
    own is; masked: whether its nodes take the scene's mask."""
    about: str
    edit: Callable
    kind: str = "colour"
    seed: int = 12
    invert: "Callable | None" = ddim
    cfg: float = CFG
    start: float = 0.0
    target: str = "target"
    prompt: str = ""
    masked: bool = False


def draw(technique: Technique, name: str, info: dict) -> dict:
    c, t = Canvas(info, name), technique
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, t.about, 440, {"seed": t.seed, "kind": t.kind}, masked=t.masked)
        p.null = c.node("CLIPTextEncode", "Null prompt", clip=p.loader["CLIP"], text="")
    inversion = None
    if t.invert:
        with c.group("2  Invert", GREEN):
            c.column(300)
            inversion = t.invert(c, p)
    with c.group("3  Edit", BROWN):
        c.column(320)
        editor = t.edit(c, p, inversion)
        prompt = p.words[t.target]
        if t.prompt:
            prompt = c.node("CLIPTextEncode", "What lies there", clip=p.loader["CLIP"], text=t.prompt)["CONDITIONING"]
        latent = editor["LATENT"] if inversion is None else replay(
            c, "Sample the edit", editor["MODEL"], inversion, prompt, p.null["CONDITIONING"], t.cfg, t.start)["output"]
        edited = c.node("VAEDecode", "Edited", samples=latent, vae=p.loader["VAE"])
    with c.group("4  Compare", YELLOW):
        c.column(760)
        c.node("PalimpsestEditReport", None, 230, source=p.picture, edited=edited["IMAGE"],
               target=p.scene["exact target"],
               mask=p.mask)
        c.node("SaveImage", None, 300, images=edited["IMAGE"], filename_prefix="palimpsest/edited")
    return c.json()


def edict(c, p):
    return inverted(c, p, "PalimpsestEDICTInvert", steps=20, cfg=CFG, negative=p.null["CONDITIONING"])


def null_text(c, p):
    traced = ddim(c, p)
    c.column(300)
    learned = c.node("PalimpsestNullTextOptimize", model=p.loader["MODEL"], inversion=traced["inversion"], cfg=7.5)
    c.column(760)
    c.node("PalimpsestInversionReport", None, 300, model=p.loader["MODEL"], inversion=learned["inversion"],
           vae=p.loader["VAE"],
           image=p.picture, cfg=7.5, negative=p.null["CONDITIONING"])
    return learned


def on_model(kind, **settings):
    """An editor that takes MODEL and INVERSION and nothing else."""
    return lambda c, p, inversion: c.node(kind, model=p.loader["MODEL"], inversion=inversion["inversion"], **settings)


def on_injected(kind, masked=False):
    """An editor on top of Attention Inject, which ends sooner where the scene's mask holds the rest."""
    def edit(c, p, inversion):
        kept = injected(c, p, inversion, **(LOOSE if masked else {}))
        mask = {"mask": p.mask} if masked else {}
        return c.node(kind, model=kept["MODEL"], inversion=inversion["inversion"], **mask)
    return edit


def removed(c, p, inversion):
    return c.node("PalimpsestMagicRemover", model=p.loader["MODEL"], inversion=inversion["inversion"], mask=p.mask)


def weighed(c, p, inversion):
    return c.node("PalimpsestAttentionReweight", model=p.loader["MODEL"], word_weights="dotted: 4")


def encoded(c, p, title, text):
    return c.node("CLIPTextEncode", title, clip=p.loader["CLIP"], text=text)


def diffedit(c, p, inversion):
    mask = c.node("PalimpsestDiffEditMask", None, 260, model=p.loader["MODEL"], source=p.words["source"],
                  target=p.words["target"],
                  latent=p.encoded["LATENT"])
    c.column(320)
    return c.node("PalimpsestLatentBlend", model=p.loader["MODEL"], inversion=inversion["inversion"], mask=mask["MASK"])


def object_aware(c, p, inversion):
    return c.node("PalimpsestObjectAwareBlend", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  mask=p.mask, start=0.2)


def sega(c, p, inversion):
    concept = encoded(c, p, "Concept", "a photo of a blue star")
    guided = c.node("PalimpsestSEGAGuidance", model=p.loader["MODEL"], concept=concept["CONDITIONING"], threshold=0.75)
    c.column(500)
    c.node("PalimpsestSEGARegions", None, 260, model=guided["MODEL"], inversion=inversion["inversion"],
           negative=p.null["CONDITIONING"],
           image=p.picture)
    return guided


def ledits(c, p, inversion):
    return c.node("PalimpsestLEDITS", model=p.loader["MODEL"], clip=p.loader["CLIP"], concept="blue star",
                  threshold=0.75)


def mixing(c, p, inversion):
    return c.node("PalimpsestPromptMixing", model=p.loader["MODEL"], mix=p.words["target"])


def reported(c, p):
    """An inversion that is looked at and saved."""
    inversion = inverted(c, p, "PalimpsestFixedPointInvert")
    c.node("PalimpsestSaveInversion", None, 160, inversion=inversion["inversion"])
    c.column(760)
    c.node("PalimpsestInversionReport", None, 300, model=p.loader["MODEL"], inversion=inversion["inversion"],
           vae=p.loader["VAE"],
           image=p.picture)
    return inversion


def other_picture(c, p, shown="source", text="source text", **picture):
    """The inversion of a second picture, one of its scene's two."""
    scene = c.node("PalimpsestMiniatureScene", "The other picture", 220, **picture)
    words = c.node("PalimpsestPromptEdit", "Its prompt", clip=p.loader["CLIP"], source=scene[text], target=scene[text])
    image, _ = sized(c, "Its size", scene[shown])
    latent = c.node("VAEEncode", "Its latent", pixels=image, vae=p.loader["VAE"])
    made = c.node("PalimpsestDDIMInvert", "Invert the other picture", model=p.loader["MODEL"], source=words["source"],
                  latent=latent["LATENT"])
    c.column(320)
    return made


def appearance(c, p, inversion):
    other = other_picture(c, p, seed=0, kind="colour")
    return c.node("PalimpsestCrossImageAttention", model=p.loader["MODEL"], appearance=other["inversion"])


def style(c, p, inversion):
    other = other_picture(c, p, "exact target", "target text", seed=2, kind="style")
    return c.node("PalimpsestStyleAligned", model=p.loader["MODEL"], inversion=other["inversion"])


def composed(c, p, inversion):
    other = other_picture(c, p, seed=4, kind="pose")
    return c.node("PalimpsestInjectComposite", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  reference=other["inversion"],
                  mask=p.mask)


def excited(c, p, inversion):
    return c.node("PalimpsestAttendExcite", model=p.loader["MODEL"], words="cross")


def delta(c, p, inversion):
    return c.node("PalimpsestDeltaDenoise", model=p.loader["MODEL"], source=p.words["source"], target=p.words["target"],
                  negative=p.null["CONDITIONING"], latent=p.encoded["LATENT"])


LOOSE = {"cross_end": 0.4, "self_end": 0.2}
TABLE = {
    "Edit at high guidance (null-text)": Technique(
        "2. *Null-Text Optimize* learns once for a picture; then queue as many targets as you like.\n3. On SD set "
        "*Attention Inject* back: `self_end` 0.4, `self_resolution` 0.5.\n\nGuidance 7.5 loses the picture that DDIM "
        "inversion found; with an embedding learned for each step it comes back, and the edit keeps to it. The report "
        "shows the replay of the source at that guidance. *Prompt Tuning Invert*, *StyleDiffusion Invert* and *KV "
        "Inversion* stand in the same place.",
        injected, invert=null_text, cfg=7.5),
    "Edit at high guidance, nothing learned (negative prompt)": Technique(
        "2. On SD set *Attention Inject* back: `self_end` 0.4, `self_resolution` 0.5.\n\nThe source prompt as the "
        "negative: guidance cancels where the target says the same. *Proximal Guidance* keeps of the rest only what "
        "clearly differs.",
        on_injected("PalimpsestProximalGuidance"), invert=partial(inverted, kind="PalimpsestNegativePromptInvert"),
        cfg=7.5),
    "An exact inversion, with its own sampler (EDICT)": Technique(
        "2. On SD set *Attention Inject* back: `self_end` 0.4, `self_resolution` 0.5; 50 steps, and the CFG you sample "
        "at in the inversion too (paper: 3).\n\nTwo coupled latents return the picture exactly; *Replay Inversion* "
        "brings the method's own SAMPLER, so leave its sampler input open. BDIA Invert and Direct Invert are drawn the "
        "same way.",
        injected, invert=edict),
    "Edit-friendly noise (DDPM)": Technique(
        "2. Draw your own MASK in place of the scene's. On SD: 100 steps, `cfg` 3.5 in the inversion with the null "
        "prompt as negative, 15 in the sampler.\n\nEvery level is noised by itself and keeps its noise map. *Replay "
        "Inversion* starts at 0.36: later keeps more of the picture. With Inject and a blend it comes nearest when one "
        "object becomes another.",
        on_injected("PalimpsestLatentBlend", masked=True),
        invert=partial(inverted, kind="PalimpsestDDPMInvert", steps=50),
        start=0.36, kind="object", seed=3, masked=True),
    "Another pose, the same looks (MasaCtrl)": Technique(
        "2. On SD: CFG 7.5.\n\nThe target's queries look up the source's contents: the new prompt lays out the pose, "
        "the source fills it.",
        on_model("PalimpsestMutualSelfAttention"), kind="pose", seed=0),
    "The same layout, repainted (Plug-and-Play)": Technique(
        "2. On SD: CFG 7.5.\n\nThe source's residual features and self-attention hold the layout, the target prompt "
        "paints it.",
        on_model("PalimpsestPlugAndPlay"), kind="background", seed=0),
    "Keep the geometry, no source prompt (Free-Prompt Edit)": Technique(
        "2. On SD: CFG 7.5. The source prompt may be left empty.\n\nOnly the source's self-attention maps are held.",
        on_model("PalimpsestFreePromptEdit"), seed=2),
    "Variations of an object's shape (Prompt Mixing)": Technique(
        "2. On SD: CFG 7.5.\n\nIn the middle of the schedule the other word's values shape the object; before and "
        "after, the source's prompt keeps layout and looks.",
        mixing, kind="object", seed=3, target="source"),
    "A mask from two prompts (DiffEdit)": Technique(
        "2. On SD: CFG 7.5.\n\nWhere the noise predicted for the two prompts differs, the picture may change; "
        "everywhere else the source comes back exactly. Best at taking something away.",
        diffedit, kind="delete", seed=3),
    "A mask found on the way (Noise Mask)": Technique(
        "2. On SD: CFG 7.5, and *Attention Inject* back: `self_end` 0.4, `self_resolution` 0.5.\n\nAt every step the "
        "target's prediction is compared with the source's; where they agree the source stays. With *Attention "
        "Inject*, best for colours.",
        on_injected("PalimpsestNoiseMask")),
    "A mask that shrinks (Blended Latent)": Technique(
        "2. Draw your own MASK in place of the scene's. On SD: CFG 7.5.\n\nThe mask begins grown, so that a small "
        "place has room to begin an edit.",
        on_injected("PalimpsestBlendedLatent", masked=True), kind="add", seed=2, masked=True),
    "An object with its own step (Object-Aware Blend)": Technique(
        "2. Draw your own MASK in place of the scene's; chain one node an object. On SD: CFG 7.5.\n\nEach object is "
        "edited from its own step on, late for a colour, early for a shape.",
        object_aware, kind="pose", seed=1, masked=True),
    "Add a concept (SEGA)": Technique(
        "2. *Concept*: what to add, or to remove; chain one *SEGA Guidance* a concept. On SD: CFG 7.5, threshold "
        "0.9.\n\nThe source prompt is sampled; the concept acts only where the model sees it.",
        sega, target="source", cfg=CFG),
    "Add a concept to a picture (LEDITS++)": Technique(
        "2. On SD: threshold 0.9 and 50 steps for SDXL.\n\nNoise maps of a solver of few steps return the picture; the "
        "concept acts where its words' attention and its guidance agree.",
        ledits, invert=partial(inverted, kind="PalimpsestLEDITSInvert"), target="source", cfg=1.0),
    "How well was it inverted, and keep it": Technique(
        "2. On SD: 50 steps.\n\n*Fixed-Point Invert* returns the picture more exactly than DDIM. *Inversion Report* "
        "shows what comes back, and *Save Inversion* keeps it for *Load Inversion* another day.",
        injected, invert=reported, seed=7),
    "The looks of another picture (Cross-Image Attention)": Technique(
        "2. Load your second picture in place of *The other picture*, and set *Its size* alike. On SD: one prompt that "
        "names what both show, for both and the sampling, at CFG 1.\n\nThis picture's structure looks up the other's "
        "appearance.",
        appearance, seed=1, target="source"),
    "In the style of another picture (Style Aligned)": Technique(
        "2. Load your second picture in place of *The other picture*, and set *Its size* alike. On SD: CFG 10 (paper), "
        "and an empty latent with noise.\n\nAttention is shared with the other picture's inversion.",
        style, kind="background", seed=0, target="source"),
    "Set another picture's object in (Inject Composite)": Technique(
        "2. Load your second picture in place of *The other picture*, set *Its size* alike, and draw the place as a "
        "MASK. On SD: CFG 2.5 to 5.\n\nTwo inversions share one attention field (TF-ICON).",
        composed, kind="add", seed=0, cfg=2.5, masked=True),
    "Nothing left out (Attend-and-Excite)": Technique(
        "2. *words*: what the prompt names and the picture neglects. On SD: CFG 7.5.\n\nEach step moves the latent "
        "until every word is seen somewhere.",
        excited, kind="add", seed=0),
    "Held by its attention maps (pix2pix-zero)": Technique(
        "2. On SD: CFG 5, and *Edit Direction* with lists of sentences instead of one target.\n\nA gradient draws the "
        "target's attention maps to the source's at every step.",
        on_model("PalimpsestCrossAttentionGuidance"), seed=8),
    "Move an object (Self-Guidance)": Technique(
        "2. *words*: all words of the object. Set *move_x*, *move_y* and *resize*. On SD too a low CFG, and Replay's "
        "own prompt.\n\nSampling is led so that the words attend to the object's shape, moved.",
        on_model("PalimpsestSelfGuidance", words="green, dotted, star", move_x=0.2), cfg=1.5, target="source"),
    "Take an object away (MagicRemover)": Technique(
        "2. Draw the object's place as a MASK, or name it in *words* with Attention Store. *What lies there*: a prompt "
        "of what is to be seen in its place, and of nothing else. On SD: CFG 7.5.\n\nThe place is filled from what "
        "lies around it.",
        removed, kind="delete", seed=1, prompt="a photo of a sky background", masked=True),
    "A word that counts for more (Attention Re-weight)": Technique(
        "2. *word_weights*: words of the prompt and their factors. On SD: 2 to 10.\n\nThe word's attention is "
        "multiplied; a negative factor turns it round.",
        weighed, target="source"),
    "Kept by the noise map (Noise Map Guidance)": Technique(
        "2. On SD: CFG 7.5, scale 3.05.\n\nEach step is drawn to the inversion's own next latent before the prompt "
        "acts.",
        on_model("PalimpsestNoiseMapGuidance", scale=0.19), seed=9),
    "No inversion at all (Delta Denoising Score)": Technique(
        "2. On SD: CFG 7.5.\n\nThe latent itself is optimised: what the target's prediction wants beyond the source's.",
        delta, invert=None, seed=10),
}
TECHNIQUES = {name: partial(draw, technique, name) for name, technique in TABLE.items()}
