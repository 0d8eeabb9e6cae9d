"""SINE, shown."""
from .. import Example
from ..drawing import BLUE, BROWN, GREEN, Drawing, encoded, picture_and_words, sampled

SHOWS = "a photo of a * purple triangle on a brick background"  # of the scene
ENDS = {"The expert until 0.4": 0.4, "The expert until 0.6": 0.6}
PLAIN = "Without the expert"
ABOUT = """2. In *Prompt Edit*, the target says what the picture **should show**.
3. Say in *Concept Images* and in *Its prompt* what the picture shows, with a rare word for the picture itself. In \
*LoRA Weights*: learning rate 1e-4. In *Learn Concept*: 500 steps, batch 1. In *KSampler*: CFG 7.5, 50 steps.

**Run** learns the picture, half a minute on a processor. The model that learned it leads the first part of sampling, \
the target's words are followed in all of it. *SINE*: raise `share` and `end` to keep more of the picture."""


def draw(c):
    """One picture, a LoRA learned of it on one prompt alone, and the target sampled without it and under it."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 460, {"seed": 0, "kind": "object"})
    c.row()
    with c.group("2  Learn", GREEN):
        c.column(320)
        images = c.node("PalimpsestConceptImages", images=p.picture, vae=p.loader["VAE"],
                        captions=SHOWS)["concept images"]
        weights = c.node("PalimpsestLearnLoRA", lr=2e-3, rank=8, layers="all")["trainable"]
        c.column(320)
        learned = c.node("PalimpsestLearnConcept", model=p.loader["MODEL"], clip=p.loader["CLIP"], images=images,
                         trainable=weights, steps=120, batch=4)
        c.column(300)
        shown = encoded(c, p, "Its prompt", SHOWS.replace("*", "sks"))
        expert = c.node("PalimpsestConceptHook", conditioning=shown["CONDITIONING"], concept=learned["concept"])
        null = encoded(c, p, "Null prompt", "")
    c.row()
    with c.group("3  The target's words, and how long the picture leads", BROWN):
        for title, end in ((PLAIN, None), *ENDS.items()):
            c.column(300)
            model = p.loader["MODEL"] if end is None else c.node(
                "PalimpsestSINEGuidance", model=p.loader["MODEL"], expert=expert["CONDITIONING"], share=0.6,
                end=end)["MODEL"]
            sampled(c, title, model, p.words["target"], null, p.encoded["LATENT"], p.loader["VAE"], "sine")


TITLE = "Learn one picture and let it lead (SINE)"
EXAMPLE = Example("SINE", workflows=(Drawing(TITLE, draw, 418, shows=("Miniature Scene", PLAIN, *ENDS)),),
                  unmeasured="It learns each picture for minutes.")
