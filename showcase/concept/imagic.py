"""Imagic, shown."""
from .. import Example
from ..drawing import BLUE, BROWN, GREEN, Drawing, encoded, picture_and_words, sampled

SHARES = {"Share 0.5": 0.5, "Share 0.7": 0.7, "Share 0.9": 0.9}
ABOUT = """2. In *Prompt Edit*, the target says what the picture **should show**. The source is not used.
3. In *Imagic*: 500 and 1000 steps, learning rates 1e-3 and 2e-6, batch 1. On a small card connect *LoRA Weights*. In \
*KSampler*: CFG 7.5, 50 steps.

**Run** learns the picture, half a minute on a processor. First the prompt learns it, then the network under that \
prompt. *Imagic Mix* goes back toward the target: raise `share` until the edit appears."""


def draw(c):
    """One picture, what is learned of it, and three places between what was learned and the target."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 420, {"seed": 0, "kind": "object"})
    with c.group("2  Learn", GREEN):
        c.column(340)
        target = p.words["target"]
        learned = c.node("PalimpsestImagic", model=p.loader["MODEL"], latent=p.encoded["LATENT"], target=target,
                         prompt_steps=60, prompt_lr=2e-2, steps=60, lr=2e-4, batch=4)
        null = encoded(c, p, "Null prompt", "")
    c.row()
    with c.group("3  From the picture to the target", BROWN):
        for title, share in SHARES.items():
            c.column(300)
            mixed = c.node("PalimpsestImagicMix", learned_prompt=learned["learned prompt"], target=target, share=share)
            sampled(c, title, learned["MODEL"], mixed["CONDITIONING"], null, p.encoded["LATENT"], p.loader["VAE"],
                    "imagic")


TITLE = "Learn one picture for one edit (Imagic)"
EXAMPLE = Example("Imagic", workflows=(Drawing(TITLE, draw, 415, shows=("Miniature Scene", *SHARES)),))
