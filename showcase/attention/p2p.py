"""Prompt-to-Prompt, shown and measured."""
from ...inversion import ddim
from ...miniature import SCENE
from ...miniature.scenes import held_out_edit
from .. import Example, folds
from ..drawing import (
    BLUE,
    BROWN,
    CFG,
    GREEN,
    KEEPS,
    LOOSE,
    SEEN,
    VIOLET,
    WORDS,
    YELLOW,
    Drawing,
    Workflow,
    injected,
    picture_and_words,
    replay,
)
from ..folds import Blueprint, Start
from ..pictures import before_and_after
from ..rows import CostRow, InversionRow, SceneRow, inject, inject_auto

STAY = "words that stay as they are"
TITLE = "Change a word, step by step (Prompt-to-Prompt)"
ABOUT = """2. In *Prompt Edit*, the source says what the picture **shows**. The target is the same sentence with a \
word changed, added or removed.
3. *Words that may change* are words of the source that the edit may replace. The mask follows them.
4. Replace the miniature's values by the papers': CFG 7.5 in *Sample the edit*, `self_end` 0.4 and `self_resolution` \
0.5 in *Attention Inject*.
5. To change a **shape**, lower `cross_end` to 0.4 and `self_end` to 0.2. To keep more, raise them.
6. Leave `target` and `mask` of *Edit Report* open. Only the miniature knows the true answer.

Without changes it runs on the small model that comes with the pack, in seconds."""


def draw(c):
    """Rewrite a word of a picture's prompt and keep everything else, pixels outside the mask exactly."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 500, SCENE)
        loader, words = p.loader, p.words
        null = c.node("CLIPTextEncode", "Null prompt", clip=loader["CLIP"], text="")
    with c.group("2  Invert, and back as it was", GREEN):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=loader["MODEL"], source=words["source"],
                           latent=p.encoded["LATENT"])
        again = replay(c, "Sample the source again", loader["MODEL"], inversion, words["source"],
                       null["CONDITIONING"], 1.0)
        replayed = c.node("VAEDecode", "Reconstruction", samples=again["output"], vae=loader["VAE"])
    c.row()
    with c.group("3  See where words lie", VIOLET):
        c.column(290)
        attention = c.node("PalimpsestAttentionStore", model=loader["MODEL"], inversion=inversion["inversion"],
                           prompt_edit=words["prompt edit"])
        named = c.node("PrimitiveString", "Words that may change", value=WORDS)
        c.column(520)
        c.node("PalimpsestAttentionHeatmap", None, 500, attention=attention["ATTENTION"], image=p.picture,
               words=SEEN)
        c.column(290)
        mask = c.node("PalimpsestAttentionMask", None, 240, attention=attention["ATTENTION"], words=named["STRING"],
                      grow=1, blur=0.5, image=p.picture)
    with c.group("4  Edit", BROWN):
        c.column(290)
        held = c.node("PalimpsestAttentionInject", model=loader["MODEL"], inversion=inversion["inversion"],
                      prompt_edit=words["prompt edit"], **KEEPS)
        c.column(290)
        blended = c.node("PalimpsestLatentBlend", model=held["MODEL"], inversion=inversion["inversion"],
                         source_words=named["STRING"], attention=attention["ATTENTION"])
        edited = replay(c, "Sample the edit", blended["MODEL"], inversion, words["target"], null["CONDITIONING"], CFG)
        decoded = c.node("VAEDecode", "Edited", samples=edited["output"], vae=loader["VAE"])
        c.column(290)
        kept = c.node("ImageCompositeMasked", "Keep pixels outside the mask", destination=p.picture,
                      source=decoded["IMAGE"], mask=mask["MASK"])
        c.node("SaveImage", None, 300, images=kept["IMAGE"], filename_prefix="palimpsest/edited")
    c.beside()
    with c.group("5  Compare", YELLOW):
        c.column(640)
        for when, picture in (("before", decoded), ("after", kept)):
            c.node("PalimpsestEditReport", f"Edit Report {when} compositing", 210, source=p.picture,
                   edited=picture["IMAGE"], reconstruction=replayed["IMAGE"], target=p.scene["exact target"],
                   mask=p.mask)


def by_words(c):
    """The words that change are found, their area is repainted, and the layout is kept."""
    p, settings = folds.picture_and_words(c), c.asks(folds.SETTINGS, folds.AUTO)
    words = c.asks("words that may change", "")
    with c.group("2  Invert, and find the words", GREEN):
        folds.inverted(c, p, p.source["source"])
        folds.found(c, p, words, p.words, choose_words=settings)
    c.row()
    with c.group("3  Edit", BROWN):
        c.column(320)
        held = c.node("PalimpsestAttentionInject", model=p.model, inversion=p.inversion,
                      prompt_edit=p.words["prompt edit"], cross_end=c.asks("keep the layout"),
                      self_end=c.asks("keep outlines"), schedule=settings)
        blended = c.node("PalimpsestLatentBlend", model=held["MODEL"], inversion=p.inversion, source_words=words,
                         attention=p.attention, choose_words=settings)
        folds.sampled(c, p, blended["MODEL"], p.words["target"])
    folds.given_back(c, p, p.mask, held["settings"])


def background(c):
    """What the words name stays as it is, everything else is repainted."""
    p, words = folds.picture_and_words(c), c.asks(STAY, "")
    settings = c.asks(folds.SETTINGS, folds.AUTO)
    with c.group("2  Invert, and find what stays", GREEN):
        folds.inverted(c, p, p.source["source"])
        folds.found(c, p, words, grow=0)
        around = c.node("InvertMask", "All but these words", mask=p.mask)["MASK"]
    c.row()
    with c.group("3  Edit", BROWN):
        c.column(320)
        held = c.node("PalimpsestAttentionInject", model=p.model, inversion=p.inversion,
                      prompt_edit=p.words["prompt edit"], cross_end=c.asks("keep the layout", LOOSE["cross_end"]),
                      self_end=c.asks("keep outlines", LOOSE["self_end"]), schedule=settings)
        blended = c.node("PalimpsestLatentBlend", model=held["MODEL"], inversion=p.inversion, mask=around)
        folds.sampled(c, p, blended["MODEL"], p.words["target"])
    folds.given_back(c, p, around, held["settings"])


BY_WORDS = Blueprint(
    "Image Edit by Words (SD1.5, SD2, SDXL)",
    "Change a word of what a picture shows, and keep the rest of it pixel by pixel. For any SD1.x, SD2.x or SDXL "
    "checkpoint.", by_words, order=10)
BACKGROUND = Blueprint(
    "Image Edit (Change the Background)",
    "Keep the thing that you name, and put it before another background. For any SD1.x, SD2.x or SDXL checkpoint.",
    background, order=40)
EDIT, MOVED = held_out_edit(**SCENE), {"seed": 5, "kind": "background"}


SET = """

With `settings` at *auto* the node chooses by the words that you change, and the report says what. To set {which} \
yourself, set `settings` to *as set*."""
TRIED = """Press **Run**: it takes less than a minute, on a processor too. Then change words of the second sentence.
The small model knows simple scenes: other shapes, colours and grounds. For your own photo open *Start here*."""
TRY = Start("Try without a model", BY_WORDS, TRIED, SCENE, {
    folds.SHOWS: EDIT.source_text, folds.WANTED: EDIT.target_text, folds.GUIDANCE: CFG}, {}, 5, small=True)
START = Start(
    "Start here - Change a word", BY_WORDS, folds.WORD, SCENE, TRY.tried, {
        folds.SHOWS: "a photo of a red apple and a white cup on a wooden table",
        folds.WANTED: "a photo of a red apple and a blue cup on a wooden table"}, 1,
    more=SET.format(which="*keep the layout*, *keep outlines* and *words that may change*"))
OTHER = held_out_edit(**MOVED)
BEFORE = Start(
    "Start here - Change the background", BACKGROUND,
    "In the first box say what it shows. Copy that sentence into the second and **change the place** in it. Name "
    "**what stays** in words of the first.",
    MOVED, {folds.SHOWS: OTHER.source_text, folds.WANTED: OTHER.target_text, STAY: "green, checkered, heart",
            folds.GUIDANCE: CFG}, {
        folds.SHOWS: "a photo of a red apple and a white cup on a wooden table",
        folds.WANTED: "a photo of a red apple and a white cup on a sandy beach", STAY: "red, apple, white, cup"}, 3,
    more=SET.format(which="*keep the layout* and *keep outlines*"))
WHOLE = {"cross_end": 1.0, "self_end": 1.0}  # of the schedule
EXAMPLE = Example(
    "Prompt-to-Prompt",
    workflows=(Drawing(TITLE, draw, 10, SCENE), START, BEFORE, TRY),
    blueprints=(BY_WORDS, BACKGROUND),
    pages={"PalimpsestAttentionInject": before_and_after(Workflow(TITLE, ABOUT, injected))},
    scenes=(SceneRow("Attention Inject", inject, 10, crossed=True),
            SceneRow("Attention Inject (auto)", inject_auto, 12)),
    costs=(CostRow("Attention Inject, whole schedule", lambda b: b.injected(**WHOLE), 10, large=True),
           CostRow("Attention Inject", lambda b: b.injected(), 20, joint=True),
           CostRow("Attention Inject, whole schedule, 4 rows of one picture", lambda b: b.injected(**WHOLE), 900,
                   rows=4)),
    inversions=(InversionRow("plain P2P (drifting source)", ddim.METHOD, 30, source="drifting"),))
