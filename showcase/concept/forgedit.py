"""Forgedit, shown."""
from .. import Example
from ..drawing import BLUE, BROWN, GREEN, Drawing, encoded, picture_and_words, sampled

STRENGTHS = {"Edit 0.7": 0.7, "Edit 1": 1.0, "Edit 1.3": 1.3}
ABOUT = """2. In *Prompt Edit*, the source says what the picture **shows**, the target what it **should show**.
3. In *Forgedit*: 40 steps, learning rates 1e-3 and 6e-5, batch 10. On a small card connect *LoRA Weights*. In \
*KSampler*: CFG 7.5, 50 steps.

**Run** learns the picture, half a minute on a processor: its prompt and the network at once. *Forgedit Prompt* goes \
from there toward the target. Raise `edit` until the edit appears. Where it does not, put *Forget* and *Apply Concept* \
behind the concept."""


def draw(c):
    """One picture, what is learned of it, and three strengths of the edit."""
    with c.group("1  Picture and words", BLUE):
        p = picture_and_words(c, ABOUT, 440, {"seed": 0, "kind": "object"})
    with c.group("2  Learn", GREEN):
        c.column(340)
        learned = c.node("PalimpsestForgedit", model=p.loader["MODEL"], latent=p.encoded["LATENT"],
                         source=p.words["source"], steps=60, prompt_lr=1e-2, lr=2e-4, batch=4)
        null = encoded(c, p, "Null prompt", "")
    c.row()
    with c.group("3  From the picture to the target", BROWN):
        for title, edit in STRENGTHS.items():
            c.column(300)
            prompt = c.node("PalimpsestForgeditPrompt", learned_prompt=learned["learned prompt"],
                            target=p.words["target"], edit=edit)
            sampled(c, title, learned["MODEL"], prompt["CONDITIONING"], null, p.encoded["LATENT"], p.loader["VAE"],
                    "forgedit")


TITLE = "Learn one picture and its prompt (Forgedit)"
EXAMPLE = Example("Forgedit", workflows=(Drawing(TITLE, draw, 417, shows=("Miniature Scene", *STRENGTHS)),))
