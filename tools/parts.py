"""What the pack's workflows share: the first group, Replay with the host's sampler, and the note's beginning."""
from canvas import Canvas

CFG = 3.0  # of the miniature; 7.5 suits SD
KEEPS = {"self_end": 0.8, "self_resolution": 1.0}  # the miniature's 16² latent: its outlines live at full resolution
BLUE, GREEN, VIOLET, BROWN, YELLOW = "#3f789e", "#8A8", "#a1309b", "#b06634", "#b58b2a"

OWN_MODEL = """### With your own model and picture
1. Put **Load Checkpoint** (SD 1.x, 2.x or SDXL) in place of *Load Miniature*, and **Load Image** in place \
of *Miniature Scene*. The picture's sides are to be multiples of 8: crop or scale it first, for the miniature to about 128.
"""


def picture_and_words(c: Canvas, note: str, tall: int, picture: dict, target: bool = True):
    """The first group. Returns the loader, the scene, Prompt Edit and the encoded picture.

    picture: the scene's seed and kind of edit."""
    c.column(360)
    c.note("How to use your own", note, tall)
    c.column(320)
    loader = c.node("PalimpsestLoadMiniature")
    scene = c.node("PalimpsestMiniatureScene", None, 220, **picture)
    c.column(320)
    words = c.node("PalimpsestPromptEdit", clip=loader["CLIP"], source=scene["source text"],
                   target=scene["target text" if target else "source text"])
    encoded = c.node("VAEEncode", pixels=scene["source"], vae=loader["VAE"])
    return loader, scene, words, encoded


def replay(c: Canvas, title: str, model, inversion, positive, negative, cfg: float, start: float = 0.0):
    """Replay Inversion into the host's sampler, two columns. Returns the sampler's node."""
    c.column(290)
    r = c.node("PalimpsestReplay", model=model, inversion=inversion["inversion"], start=start)
    c.column(290)
    return c.node("SamplerCustom", title, 180, model=r["model"], positive=positive, negative=negative,
                  sampler=r["sampler"], sigmas=r["sigmas"], latent_image=r["latent"], add_noise=False, noise_seed=0,
                  cfg=cfg)
