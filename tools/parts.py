"""What the pack's workflows share: the first group, Replay with the host's sampler, and the note's beginning."""
from types import SimpleNamespace

from canvas import Canvas

CFG = 3.0  # of the miniature; 7.5 suits SD
KEEPS = {"self_end": 0.8, "self_resolution": 1.0}  # the miniature's 16² latent: its outlines live at full resolution
BLUE, GREEN, VIOLET, BROWN, YELLOW = "#3f789e", "#8A8", "#a1309b", "#b06634", "#b58b2a"

OWN_MODEL = """### With your own model and picture
1. Put **Load Checkpoint** (SD 1.x, 2.x or SDXL) in place of *Load Miniature*, and **Load Image** in place \
of *Miniature Scene*. *Size for the model* crops and scales any picture{mask} once, before all else: set your model's size \
there (512 on SD 1.x, 1024 on SDXL), in multiples of 8.
"""
SIDE = 128  # the miniature's pictures


def sized(c: Canvas, title: str, picture, mask=None):
    """A picture, and its mask with it, cropped and scaled to the model's size: (picture, mask)."""
    if mask:
        picture = c.node("JoinImageWithAlpha", "Picture and mask", image=picture, alpha=mask)["IMAGE"]
    scaled = c.node("ImageScale", title, image=picture, upscale_method="area", width=SIDE, height=SIDE,
                    crop="center")["IMAGE"]
    if not mask:
        return scaled, None
    parted = c.node("SplitImageWithAlpha", "Picture, mask", image=scaled)
    return parted["IMAGE"], parted["MASK"]


def picture_and_words(c: Canvas, note: str, tall: int, picture: dict, target: bool = True, masked: bool = False):
    """The first group. Returns what it holds by name: the loader, the scene, words (Prompt Edit), the picture and the
    mask at the model's size, and encoded.

    picture: the scene's seed and kind of edit; masked: whether an editor takes the scene's mask."""
    c.column(360)
    c.note("How to use your own", OWN_MODEL.format(mask=" and its mask" if masked else "") + note, tall)
    c.column(320)
    loader = c.node("PalimpsestLoadMiniature")
    scene = c.node("PalimpsestMiniatureScene", None, 220, **picture)
    c.column(320)
    words = c.node("PalimpsestPromptEdit", clip=loader["CLIP"], source=scene["source text"],
                   target=scene["target text" if target else "source text"])
    image, mask = sized(c, "Size for the model", scene["source"], scene["edit mask"] if masked else None)
    encoded = c.node("VAEEncode", pixels=image, vae=loader["VAE"])
    return SimpleNamespace(loader=loader, scene=scene, words=words, encoded=encoded, picture=image,
                           mask=mask or scene["edit mask"])


def replay(c: Canvas, title: str, model, inversion, positive, negative, cfg: float, start: float = 0.0):
    """Replay Inversion into the host's sampler, two columns. Returns the sampler's node."""
    c.column(290)
    r = c.node("PalimpsestReplay", model=model, inversion=inversion["inversion"], start=start)
    c.column(290)
    return c.node("SamplerCustom", title, 180, model=r["model"], positive=positive, negative=negative,
                  sampler=r["sampler"], sigmas=r["sigmas"], latent_image=r["latent"], add_noise=False, noise_seed=0,
                  cfg=cfg)
