"""What the pictures of the help pages share.

A picture is drawn as a canvas. Its tiles are the titled nodes' pictures, in the order of the nodes. If no node has a
title, the canvas has one output, and its picture is the page's.
"""
from dataclasses import replace

from .drawing import CFG, encoded, inverted, picture_and_words, replay

HIGH = 7.5  # the papers' CFG
ALONE = "target prompt alone"


def scene(c, seed=12, kind="colour", source="source", hard=False, model="SD"):
    """The miniature, a scene and its words, as the workflows take them."""
    p = picture_and_words(c, "", 0, {"seed": seed, "kind": kind, "hard": hard}, model=model)
    p.null = encoded(c, p, "Null prompt", "")
    if source:
        show(c, source, p.picture)
    return p


def show(c, label, image):
    c.node("PreviewImage", label, images=image)


def decoded(c, label, p, latent):
    show(c, label, c.node("VAEDecode", samples=latent, vae=p.loader["VAE"])["IMAGE"])


def show_mask(c, label, mask):
    show(c, label, c.node("MaskToImage", mask=mask)["IMAGE"])


def sample(c, label, p, inversion, words="source", cfg=1.0, start=0.0, model=None):
    """Shows an inversion's sample by Replay Inversion and the host's sampler."""
    positive = p.words[words] if isinstance(words, str) else words
    sampled = replay(c, label, model or p.loader["MODEL"], inversion, positive, p.null["CONDITIONING"], cfg, start)
    decoded(c, label, p, sampled["output"])


def before_and_after(workflow, without=ALONE, **changed):
    """A workflow's run: the source, then the same prompt from the same inversion without the editor and with it."""
    def draw(c, label):
        w = replace(workflow, **changed)
        p = scene(c, **w.scene, model=w.model)
        inversion = w.invert(c, p)
        words = encoded(c, p, "Prompt", w.prompt)["CONDITIONING"] if w.prompt else w.target
        sample(c, without, p, inversion, words, w.cfg, w.start)
        sample(c, label, p, inversion, words, w.cfg, w.start, w.edit(c, p, inversion)["MODEL"])
    return draw


def back_and_edited(c, label):
    """Source and target prompt, replayed from DDIM's inversion."""
    p = scene(c)
    inversion = inverted(c, p)
    sample(c, "source prompt, CFG 1", p, inversion)
    sample(c, "target prompt, CFG 3", p, inversion, "target", CFG)


def returns(kind, steps, at=1.0, schedule=(), model="SD", **settings):
    """The source prompt, replayed from DDIM's inversion and from this one on the same schedule."""
    def draw(c, label):
        p = scene(c, model=model)
        sample(c, "DDIM Invert", p, inverted(c, p, steps=steps, **dict(schedule)), cfg=at)
        sample(c, label, p, invert(c, p, kind, steps, **dict(schedule), **settings), cfg=at)
    return draw


def edits(kind, steps=10, at=HIGH, seed=12, edit="colour", **settings):
    """The target prompt alone from DDIM's inversion and from this one."""
    def draw(c, label):
        p = scene(c, seed, edit)
        sample(c, "from DDIM Invert", p, inverted(c, p, steps=steps), "target", at)
        sample(c, label, p, invert(c, p, kind, steps, **settings), "target", at)
    return draw


def both(kind, steps, at, start, model="SD", **settings):
    """Source and target prompt, replayed from one inversion."""
    def draw(c, label):
        p = scene(c, model=model)
        inversion = invert(c, p, kind, steps, **settings)
        sample(c, "back", p, inversion)
        sample(c, "target prompt", p, inversion, "target", at, start)
    return draw


def invert(c, p, kind, steps, own_negative=False, **settings):
    """An inversion, or one that learns along DDIM's. A guided one has its own negative, or else the null prompt."""
    if "cfg" in settings and not own_negative:
        settings["negative"] = p.null["CONDITIONING"]
    if "inversion" in c.info[kind]["input"]["required"]:
        along = inverted(c, p, steps=steps)
        return c.node(kind, model=p.loader["MODEL"], inversion=along["inversion"], **settings)
    return inverted(c, p, kind, steps=steps, **settings)


def second_picture(c, p, text, seed, kind, part="source"):
    """A second picture's scene, words and inversion. text: its prompt, or None for its scene's target text."""
    other = c.node("PalimpsestMiniatureScene", seed=seed, kind=kind)
    text = text or other["target text"]
    words = c.node("PalimpsestPromptEdit", clip=p.loader["CLIP"], source=text, target=text)
    latent = c.node("VAEEncode", pixels=other[part], vae=p.loader["VAE"])
    made = c.node("PalimpsestDDIMInvert", model=p.loader["MODEL"], source=words["source"], latent=latent["LATENT"])
    return other, words, made


def stored(c, p, **settings):
    """Attention Store on the picture's inversion."""
    return c.node("PalimpsestAttentionStore", model=p.loader["MODEL"], inversion=inverted(c, p)["inversion"],
                  prompt_edit=p.words["prompt edit"], **settings)
