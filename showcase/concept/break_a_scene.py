"""Break-A-Scene, shown."""
from .. import Example
from ..drawing import BLUE, BROWN, GREEN, VIOLET, Drawing, picture_and_words, sampled

THINGS, NAMES = ("square", "circle"), ("my-square", "my-circle")  # of the scene
NEW = {"The first alone": ("embedding:my-square", "grass"), "The second alone": ("embedding:my-circle", "sky"),
       "Both": ("embedding:my-square and embedding:my-circle", "night")}
ABOUT = """2. Give *Mask to Image* a MASK of each thing, painted in **Load Image** or of a word by *Attention Mask*.
3. Name the words in each *New Word* and in *Break-A-Scene (Parts)*. Words: learning rate 5e-4. LoRA: 1e-4. Steps 400 \
of each, batch 1. *Attention Store*: `resolution` 0.25. *Mask Attention*: `weight` 0.01.
4. In *Empty Latent Image*: 512 × 512 (SDXL: 1024 × 1024). In *KSampler*: CFG 7.5, and prompts with your words.

**Run** learns both things of the one picture, a minute on a processor. The words learn first, then the weights."""


def draw(c):
    """One picture, two things in it, a word for each, and each in a picture of its own."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 420, {"seed": 5, "kind": "delete", "hard": True}, target=False,
                              masked=True)
    c.row()
    with c.group("2  Find the things", VIOLET):
        c.column(290)
        inversion = c.node("PalimpsestDDIMInvert", model=p.loader["MODEL"], source=p.words["source"],
                           latent=p.encoded["LATENT"])
        maps = c.node("PalimpsestAttentionStore", model=p.loader["MODEL"], inversion=inversion["inversion"],
                      prompt_edit=p.words["prompt edit"], resolution=1.0)
        c.column(290)
        things = c.node("PalimpsestAttentionMask", "Mask of both", 200, attention=maps["ATTENTION"],
                        words=", ".join(THINGS), image=p.picture)["MASK"]
        other = c.node("MaskComposite", "Mask of the second", destination=things, source=p.mask, operation="subtract")
        c.column(240)
        first, second = (c.node("MaskToImage", mask=mask)["IMAGE"] for mask in (p.mask, other["MASK"]))
        both = c.node("ImageBatch", image1=first, image2=second)["IMAGE"]
        masks = c.node("ImageToMask", image=both, channel="red")["MASK"]
    with c.group("3  Learn", GREEN):
        c.column(340)
        parts = c.node("PalimpsestSceneParts", image=p.picture, masks=masks, vae=p.loader["VAE"],
                       names="\n".join(NAMES))["concept images"]
        apart = c.node("PalimpsestMaskAttention", weight=0.02)["objective"]
        weights = c.node("PalimpsestLearnLoRA", lr=1.5e-3, rank=8, layers="all")["trainable"]
        c.column(300)
        words = None
        for name, like in zip(NAMES, THINGS):
            more = {"more": words} if words else {}
            words = c.node("PalimpsestNewWord", name=name, like=like, lr=3e-2, **more)["trainable"]
        model, clip = p.loader["MODEL"], p.loader["CLIP"]
        for title, trained, steps in (("Learn the words", words, 60), ("Learn the weights", weights, 35)):
            c.column(340)
            node = c.node("PalimpsestLearnConcept", title, model=model, clip=clip, images=parts, trainable=trained,
                          objective=apart, steps=steps, batch=4)
            model, clip = node["MODEL"], node["CLIP"]
    with c.group("4  New pictures", BROWN):
        c.column(300)
        null = c.node("CLIPTextEncode", "Null prompt", clip=p.loader["CLIP"], text="")
        empty = c.node("EmptyLatentImage", width=128, height=128)
        for title, (words, ground) in NEW.items():
            c.column(300)
            text = c.node("CLIPTextEncode", clip=clip, text=f"a photo of {words} on a {ground} background")
            sampled(c, title, model, text["CONDITIONING"], null, empty["LATENT"], p.loader["VAE"], "parts", seed=3)


TITLE = "Learn two things from one picture (Break-A-Scene)"
EXAMPLE = Example("Break-A-Scene", workflows=(Drawing(TITLE, draw, 410, shows=("Miniature Scene", *NEW)),))
