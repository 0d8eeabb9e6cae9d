"""What the showcase's workflows share. They draw on a canvas (tools/canvas.py) and run no node."""
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from ..miniature import CFG
from . import LAST

KEEPS = {"self_end": 0.8, "self_resolution": 1.0}  # the miniature's 16² latent: its outlines live at full resolution
LOOSE = {"cross_end": 0.4, "self_end": 0.2}  # where a mask holds the rest
OTHER = "The other picture"
FIRST = 1360  # px, the width of the first group
WORDS, SEEN = "star", "green, dotted, star, sky, background"  # of that scene's source
BLUE, GREEN, VIOLET, BROWN, YELLOW = "#3f789e", "#8A8", "#a1309b", "#b06634", "#b58b2a"

FAMILIES = {"SD": "**Load Checkpoint** (SD 1.x, 2.x or SDXL)",
            "Flux": "a loader of Flux, SD3, Qwen-Image or Z-Image"}
OWN_MODEL = """### With your own model and picture
1. Put {loader} in place of *Load Miniature*, and **Load Image** in place \
of *Miniature Scene*. *Size for the Model* scales any picture{mask} to what your model likes.
"""
SCENES_WORDS = "The scene also wrote the words in *Prompt Edit*: write there what your picture **shows**"
BOTH = f"{SCENES_WORDS}, and what it **should show**.\n"
ALONE = f"{SCENES_WORDS}. Its `target` is not used and must not be empty: write the same.\n"


def picture_and_words(c, note: str, tall: int, picture: dict, target: bool = True, masked: bool = False,
                      model: str = "SD"):
    """The first group. Returns its nodes by name: loader, scene, words (Prompt Edit), encoded, and picture and mask at
    the model's size.

    picture: what Miniature Scene is given.
    masked: whether an editor takes the scene's mask.
    model: which miniature.
    """
    c.column(360)
    own = OWN_MODEL.format(loader=FAMILIES[model], mask=" and its mask" if masked else "")
    c.note("How to use your own", own + (note if target else ALONE + note), tall)
    loader = c.node("PalimpsestLoadMiniature", model=model)
    c.column(300)
    scene = c.node("PalimpsestMiniatureScene", None, 220, **picture)
    c.column(300)
    words = c.node("PalimpsestPromptEdit", clip=loader["CLIP"], source=scene["source text"],
                   target=scene["target text" if target else "source text"])
    c.column(280)
    sized = c.node("PalimpsestModelSize", model=loader["MODEL"], image=scene["source"],
                   **({"mask": scene["edit mask"]} if masked else {}))
    encoded = c.node("VAEEncode", pixels=sized["IMAGE"], vae=loader["VAE"])
    return SimpleNamespace(loader=loader, scene=scene, words=words, encoded=encoded, picture=sized["IMAGE"],
                           mask=sized["MASK"] if masked else scene["edit mask"])


def replay(c, title: str, model, inversion, positive, negative, cfg: float, start: float = 0.0):
    """Replay Inversion and the host's sampler. Returns the sampler's node.

    They stand in two columns, or Replay below the editor where the row would be longer than the first.
    """
    if c.x + c.width + 2 * (290 + 40) <= FIRST:
        c.column(290)
    r = c.node("PalimpsestReplay", model=model, inversion=inversion["inversion"], start=start)
    c.column(290)
    return c.node("SamplerCustom", title, 130, model=r["model"], positive=positive, negative=negative,
                  sampler=r["sampler"], sigmas=r["sigmas"], latent_image=r["latent"], add_noise=False, noise_seed=0,
                  cfg=cfg)


def sampled(c, title: str, model, positive, null, latent, vae, file: str, seed: int = 1):
    """The host's sampler from new noise, and what it makes."""
    made = c.node("KSampler", model=model, positive=positive, negative=null["CONDITIONING"], latent_image=latent,
                  seed=seed, cfg=CFG, sampler_name="ddim", scheduler="ddim_uniform")
    picture = c.node("VAEDecode", samples=made["LATENT"], vae=vae)
    return c.node("SaveImage", title, 280, images=picture["IMAGE"], filename_prefix=f"palimpsest/{file}")


def subject_given(c, note: str, tall: int, seed: int, captions: str = "") -> tuple:
    """Pictures of an object of the miniature's. Returns (loader, what is given, concept images)."""
    c.column(420)
    c.note("How to use it", note, tall)
    c.column(320)
    loader = c.node("PalimpsestLoadMiniature")
    given = c.node("PalimpsestMiniatureSubject", None, 180, seed=seed)
    c.column(320)
    sized = c.node("PalimpsestModelSize", model=loader["MODEL"], image=given["images"])["IMAGE"]
    images = c.node("PalimpsestConceptImages", images=sized, vae=loader["VAE"],
                    captions=captions or given["captions"])["concept images"]
    return loader, given, images


def subject_learned(c, note: str, tall: int, seed: int, steps: int) -> tuple:
    """The first two groups: pictures of an object of the miniature's, and a LoRA learned from them. Returns (loader,
    pictures, Learn Concept)."""
    with c.group("1  Model and pictures", BLUE):
        c.column(400)
        c.note("How to use it", note, tall)
        c.column(300)
        loader = c.node("PalimpsestLoadMiniature")
        given = c.node("PalimpsestMiniatureSubject", None, 180, seed=seed)
        sized = c.node("PalimpsestModelSize", model=loader["MODEL"], image=given["images"])["IMAGE"]
    with c.group("2  Learn", GREEN):
        c.column(320)
        images = c.node("PalimpsestConceptImages", images=sized, vae=loader["VAE"],
                        captions=given["captions"])["concept images"]
        weights = c.node("PalimpsestLearnLoRA", lr=2e-3, rank=8, layers="all", text_encoder=True)["trainable"]
        c.column(320)
        learned = c.node("PalimpsestLearnConcept", model=loader["MODEL"], clip=loader["CLIP"], images=images,
                         trainable=weights, steps=steps, batch=4, look_every=steps // 10)
    c.row()
    return loader, sized, learned


def inverted(c, p, kind="PalimpsestDDIMInvert", **settings):
    """An inversion node on the picture."""
    return c.node(kind, model=p.loader["MODEL"], source=p.words["source"], latent=p.encoded["LATENT"], **settings)


def encoded(c, p, title, text):
    return c.node("CLIPTextEncode", title, clip=p.loader["CLIP"], text=text)


def injected(c, p, inversion, **settings):
    """Attention Inject, set for the miniature's scenes."""
    return c.node("PalimpsestAttentionInject", model=p.loader["MODEL"], inversion=inversion["inversion"],
                  prompt_edit=p.words["prompt edit"], **{**KEEPS, **settings})


def on_model(kind, **settings):
    """An editor that takes MODEL and INVERSION and nothing else."""
    return lambda c, p, inversion: c.node(kind, model=p.loader["MODEL"], inversion=inversion["inversion"], **settings)


def on_injected(kind, masked=False):
    """An editor on top of Attention Inject, which ends sooner if the scene's mask holds the rest."""
    def edit(c, p, inversion):
        kept = injected(c, p, inversion, **(LOOSE if masked else {}))
        mask = {"mask": p.mask} if masked else {}
        c.column(320)
        return c.node(kind, model=kept["MODEL"], inversion=inversion["inversion"], **mask)
    return edit


def other_picture(c, p, words=None, masked=False, **picture):
    """The inversion of a second picture, and its scene's mask if it is `masked`, both in the size of the first.

    words: the Prompt Edit of its prompt, None for its scene's own text.
    """
    scene = c.node("PalimpsestMiniatureScene", OTHER, 150, **picture)
    c.column(300)
    words = words or c.node("PalimpsestPromptEdit", "Its prompt", clip=p.loader["CLIP"], source=scene["source text"],
                            target=scene["source text"])
    size = c.node("GetImageSize", "The first picture's size", image=p.picture)
    c.column(300)

    def sized(title, image):
        return c.node("ImageScale", title, image=image, upscale_method="area", width=size["width"],
                      height=size["height"], crop="center")["IMAGE"]

    latent = c.node("VAEEncode", "Its latent", pixels=sized("Its size", scene["source"]), vae=p.loader["VAE"])
    c.column(300)
    made = c.node("PalimpsestDDIMInvert", "Invert the other picture", model=p.loader["MODEL"], source=words["source"],
                  latent=latent["LATENT"])["inversion"]
    if not masked:
        return made, None
    picture = c.node("MaskToImage", mask=scene["edit mask"])["IMAGE"]
    c.column(300)
    scaled = sized("Its mask's size", picture)
    return made, c.node("ImageToMask", "Its mask", image=scaled, channel="red")["MASK"]


@dataclass(frozen=True)
class Drawing:
    """A workflow that draws itself.

    title: what it does, with the technique in brackets. It is also the file's name.
    draw(canvas): places every node.
    order: its number among the workflows.
    scene: what Miniature Scene is given, for an edit.
    small: draws it on the miniature, if it takes a checkpoint.
    shows: titles of the nodes whose pictures are its thumbnail, if it is no edit.
    """
    title: str
    draw: Callable
    order: int = LAST
    scene: dict | None = None
    small: Callable | None = None
    shows: tuple = ()


@dataclass(frozen=True)
class Workflow:
    """A picture, an inversion, an editor, a comparison.

    title: what it does, with the technique in brackets. It is also the file's name.
    about: what to set for your own picture, and what the technique does.
    edit(canvas, parts, inversion): places the editor's nodes. The last one's MODEL is sampled, or its LATENT shown if
        there is no inversion.
    order: its number among the workflows.
    kind, seed, hard: the miniature's picture and edit.
    invert(canvas, parts): places the inversion's nodes. None for no inversion.
    cfg: the guidance of sampling.
    start: where Replay starts.
    target: which of Prompt Edit's CONDITIONINGs is sampled.
    prompt: a text that is sampled instead.
    asked: the title of that prompt.
    exact: whether the scene's target is what it does.
    masked: whether its nodes take the scene's mask.
    model: which miniature.
    rows: rows of SceneBench that it is, or is with a mask of one's own; their tables lead to it.
    """
    title: str
    about: str
    edit: Callable
    order: int = LAST
    kind: str = "colour"
    seed: int = 12
    invert: Callable | None = inverted
    cfg: float = CFG
    start: float = 0.0
    target: str = "target"
    prompt: str = ""
    asked: str = "What lies there"
    masked: bool = False
    model: str = "SD"
    hard: bool = False
    exact: bool = True
    rows: tuple[str, ...] = ()

    @property
    def scene(self) -> dict:
        """What Miniature Scene is given."""
        return {"seed": self.seed, "kind": self.kind, "hard": self.hard}

    def draw(self, c):
        with c.group("1  Picture and words", BLUE):
            about = (BOTH if self.target == "target" and not self.prompt else ALONE) + self.about
            p = picture_and_words(c, about, 430, self.scene, masked=self.masked, model=self.model)
            p.null = encoded(c, p, "Null prompt", "")
        c.row()
        inversion = None
        if self.invert:
            with c.group("2  Invert", GREEN):
                c.column(300)
                inversion = self.invert(c, p)
        with c.group("3  Edit", BROWN):
            c.column(320)
            editor = self.edit(c, p, inversion)
            prompt = p.words[self.target]
            if self.prompt:
                prompt = encoded(c, p, self.asked, self.prompt)["CONDITIONING"]
            latent = editor["LATENT"] if inversion is None else replay(
                c, "Sample the edit", editor["MODEL"], inversion, prompt, p.null["CONDITIONING"], self.cfg,
                self.start)["output"]
            edited = c.node("VAEDecode", "Edited", samples=latent, vae=p.loader["VAE"])
        c.beside()
        with c.group("4  Compare", YELLOW):  # clear of the minimap, which lies at the window's corner
            c.column(640)
            c.node("SaveImage", None, 220, images=edited["IMAGE"], filename_prefix="palimpsest/edited")
            known = {"target": p.scene["exact target"], "mask": p.mask} if self.exact else {}
            c.node("PalimpsestEditReport", None, 210, source=p.picture, edited=edited["IMAGE"], **known)
