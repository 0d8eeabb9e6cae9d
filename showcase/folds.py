"""What the blueprints share: workflows for one's own picture, folded into one node.

Inside stand the technique's nodes as in any workflow. A picture of any size is scaled to the model's, edited, and set
back into the untouched original. They draw on a canvas (tools/canvas.py) and run no node.
"""
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from . import LAST
from .drawing import BLUE, GREEN, YELLOW

SHOWS, WANTED = "what the picture shows", "what it should show"
SETTINGS, AUTO = "settings", "auto"  # read off the two prompts
STEPS, GUIDANCE, HIGH = "steps", "guidance", 7.5  # the papers' CFG, on SD
EDGE = {"grow": 1, "blur": 0.5}  # of a mask of words, in latent cells
CATEGORY = "Image generation and editing/Edit image"  # the host's own


@dataclass(frozen=True)
class Blueprint:
    """A workflow that is one node.

    title: what it does, in words that people search for. It is also the file's name.
    description: shown beside it in the node search.
    draw(canvas): places every node inside, and names what goes in and out.
    category: where the node library lists it.
    order: its number among the blueprints.
    """
    title: str
    description: str
    draw: Callable
    category: str = CATEGORY
    order: int = LAST


def picture_and_words(c, shows: "str | None" = SHOWS, wanted: "str | None" = WANTED, masked=False):
    """The first group: what every blueprint takes, the picture at the model's size, and the prompts.

    shows, wanted: how the source and the target prompt are asked for, or None for no such prompt.
    masked: whether it takes a mask of the picture too.
    """
    with c.group("1  Picture and words", BLUE):
        p = SimpleNamespace(**{name: c.takes(name, name.upper()) for name in ("model", "clip", "vae", "image")})
        c.column(320)
        given = {"mask": c.takes("mask", "MASK")} if masked else {}
        fitted = c.node("PalimpsestModelSize", model=p.model, image=p.image, **given)
        p.picture, p.mask = fitted["IMAGE"], fitted["MASK"]
        p.latent = c.node("VAEEncode", pixels=p.picture, vae=p.vae)["LATENT"]
        c.column(320)
        source, target = (c.asks(name, "", multiline=True) if name else None for name in (shows, wanted))
        if source:
            p.words = c.node("PalimpsestPromptEdit", clip=p.clip, source=source, target=target or source)
            # what reads it alone stays in the host's cache when the target changes
            p.source = c.node("PalimpsestPromptEdit", "Source prompt alone", clip=p.clip, source=source,
                              target=source) if target else p.words
        else:
            p.target = c.node("CLIPTextEncode", "Target prompt", clip=p.clip, text=target)["CONDITIONING"]
        p.null = c.node("CLIPTextEncode", "Null prompt", clip=p.clip, text="")["CONDITIONING"]
    return p


def inverted(c, p, source):
    c.column(290)
    p.inversion = c.node("PalimpsestDDIMInvert", model=p.model, source=source, latent=p.latent,
                         steps=c.asks(STEPS))["inversion"]


def found(c, p, words, edit=None, **settings):
    """The mask of some words of the source. edit: the Prompt Edit that auto reads, if it may choose the words."""
    p.attention = c.node("PalimpsestAttentionStore", model=p.model, inversion=p.inversion,
                         prompt_edit=(edit or p.source)["prompt edit"])["ATTENTION"]
    c.column(290)
    p.mask = c.node("PalimpsestAttentionMask", None, 240, attention=p.attention, words=words, image=p.picture,
                    **{**EDGE, **settings})["MASK"]


def sampled(c, p, model, prompt, start=0.0, guidance=None):
    c.column(290)
    r = c.node("PalimpsestReplay", model=model, inversion=p.inversion, start=start)
    latent = c.node("SamplerCustom", "Sample the edit", 180, model=r["model"], positive=prompt, negative=p.null,
                    sampler=r["sampler"], sigmas=r["sigmas"], latent_image=r["latent"], add_noise=False, noise_seed=0,
                    cfg=guidance or c.asks(GUIDANCE, HIGH))["output"]
    p.edited = c.node("VAEDecode", "Edited", samples=latent, vae=p.vae)["IMAGE"]


def given_back(c, p, mask=None, chosen=None):
    """The last group: the edit at the size of the original, outside the mask the original itself, and its report.

    mask: of what was edited. None for the whole picture.
    chosen: a text of the settings, which the report shows.
    """
    with c.group("4  Back at full size", YELLOW):
        c.column(290)
        size = c.node("GetImageSize", image=p.image)
        if mask is None:
            image, kept = scaled(c, "Edited, at full size", p.edited, size, "bicubic"), {}
        else:
            kept = {"mask": full_mask(c, mask, size)}
            image = c.node("ImageCompositeMasked", "Keep pixels outside the mask", destination=p.image, source=p.edited,
                           resize_source=True, **kept)["IMAGE"]
        c.column(290)
        report = c.node("PalimpsestEditReport", None, 230, source=p.image, edited=image, about=chosen,
                        **kept)["sheet"]
    for name, output in {"image": image, **kept, "report": report}.items():
        c.gives(name, output)


EDITED = "Edited"
PHOTO = "palimpsest_example.jpg"  # web/example.js puts it among the host's inputs, and the next
PAINTED = "palimpsest_painted.webp"
CHECKPOINT = {"name": "v1-5-pruned-emaonly-fp16.safetensors", "directory": "checkpoints",
              "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
                     "v1-5-pruned-emaonly-fp16.safetensors"}  # as in the host's own first template
WORD = "In the first box say what it shows. Copy that sentence into the second and **change a word** of it."
OWN = """1. Choose **your checkpoint** ({models}) and **your picture**, of any size.
2. {ask} Press **Run**. To see how it works, open the node by the arrow at its corner, or by *Enter subgraph*."""


@dataclass(frozen=True)
class Start:
    """A template that is one blueprint between a picture and a preview.

    title: what it does. It is also the file's name.
    about: what to do.
    asked: what is typed in.
    scene: the miniature's picture and edit on which its thumbnail shows it.
    tried: what is typed in there.
    checkpoint: the file that it opens with.
    models: which may be chosen.
    miniature: which miniature shows it.
    more: what the note says below.
    masked: whether it takes the mask that is painted on the picture.
    small: whether the template itself takes the miniature and the scene, not a checkpoint and a photo.
    order: its number among the workflows.
    """
    title: str
    blueprint: Blueprint
    about: str
    scene: dict
    tried: dict
    asked: dict
    order: int = LAST
    small: bool = False
    checkpoint: dict = field(default_factory=lambda: CHECKPOINT)
    models: str = "SD1.x, SD2.x or SDXL"
    miniature: str = "SD"
    more: str = ""
    masked: bool = False

    def draw(self, c):
        with c.group("1  Model and picture", BLUE):
            c.column(380)
            own = OWN.format(ask=self.about, models=self.models) + self.more
            c.note("How to use it", self.about if self.small else own, 420 if self.more else 180)
            if self.small:
                loader = c.node("PalimpsestLoadMiniature", model=self.miniature)
                image = (scene := c.node("PalimpsestMiniatureScene", None, 180, **self.scene))["source"]
                mask = scene["edit mask"]
            else:
                loader = c.node("CheckpointLoaderSimple", ckpt_name=self.checkpoint["name"])
                loader.data["properties"]["models"] = [self.checkpoint]
                image = (photo := c.node("LoadImage", None, 300, image=PAINTED if self.masked else PHOTO))["IMAGE"]
                mask = photo["MASK"]
        with c.group("2  In words, and a report", GREEN):
            c.column(540)
            asked = self.tried if self.small else self.asked
            node = c.folded(self.blueprint, inputs=asked | {
                "model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"], "image": image,
                **({"mask": mask} if self.masked else {})})
            report = c.node("PreviewImage", "Report", 220, images=node["report"])
        with c.group("3  Edited", YELLOW):
            c.column(460)
            shown = c.node("PreviewImage", EDITED, 480, images=node["image"])
        # what App mode shows; of a scene, the report alone shows the source
        chosen = [] if self.small else [(loader, "ckpt_name"), (photo, "image")]
        outputs = [report, shown] if self.small else [shown]
        c.extra["linearData"] = {
            "inputs": [[str(of.data["id"]), name] for of, name in [*chosen, *((node, name) for name in asked)]],
            "outputs": [str(output.data["id"]) for output in outputs]}


def scaled(c, title, image, size, method):
    return c.node("ImageScale", title, image=image, upscale_method=method, width=size["width"],
                  height=size["height"], crop="disabled")["IMAGE"]


def full_mask(c, mask, size):
    """A mask at the size of the original."""
    picture = c.node("MaskToImage", mask=mask)["IMAGE"]
    return c.node("ImageToMask", "Mask at full size", image=scaled(c, "Mask, scaled", picture, size, "bilinear"),
                  channel="red")["MASK"]
