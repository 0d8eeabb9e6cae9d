"""HiPer, shown."""
from .. import Example
from ..drawing import BLUE, BROWN, GREEN, Drawing, encoded, picture_and_words, sampled

ABOUT = """2. In *Prompt Edit*, the source says what the picture **shows**, the target what it **should show**.
3. In *HiPer*: 1000 steps, learning rate 5e-3, batch 1. In *KSampler*: CFG 7.5, 50 steps.

**Run** learns the picture in the last rows of its prompt, half a minute on a processor. Nothing of the network \
learns. *HiPer Prompt* puts the rows behind the target. Lower `scale` where the picture keeps too much, learn more \
`rows` where it keeps too little."""
LEARNED, EDITED = "As it was learned", "With the target's words"


def draw(c):
    """One picture, the rows that are learned of it, and a picture of the target's words before those rows."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 420, {"seed": 0, "kind": "object"})
    with c.group("2  Learn", GREEN):
        c.column(340)
        learned = c.node("PalimpsestHiPer", model=p.loader["MODEL"], latent=p.encoded["LATENT"],
                         source=p.words["source"], steps=100, lr=5e-2, batch=4)["learned prompt"]
        edited = c.node("PalimpsestHiPerPrompt", learned_prompt=learned, target=p.words["target"])["CONDITIONING"]
        null = encoded(c, p, "Null prompt", "")
    c.row()
    with c.group("3  The picture again, and its edit", BROWN):
        for title, prompt in ((LEARNED, learned), (EDITED, edited)):
            c.column(300)
            sampled(c, title, p.loader["MODEL"], prompt, null, p.encoded["LATENT"], p.loader["VAE"], "hiper")


TITLE = "Learn one picture in its prompt (HiPer)"
EXAMPLE = Example("HiPer", workflows=(Drawing(TITLE, draw, 416, shows=("Miniature Scene", LEARNED, EDITED)),))
