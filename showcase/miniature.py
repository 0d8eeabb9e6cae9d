"""The miniature, shown."""
from types import SimpleNamespace

from . import Example
from .drawing import CFG, encoded
from .pictures import decoded, scene, show, show_mask

CAPTIONS = {"photo": "a photo of a red striped star on a grass background",
            "sketch": "a sketch of a blue heart on a brick background",
            "mosaic": "a mosaic of a yellow ring and a cyan square on a grass background"}
SCHEDULES = {"SD": "normal", "Flux": "simple"}


def samples(c, label):
    """Text to image."""
    for model, schedule in SCHEDULES.items():
        p = SimpleNamespace(loader=c.node("PalimpsestLoadMiniature", model=model))
        null = encoded(c, p, "Null prompt", "")
        for name, text in CAPTIONS.items():
            empty = c.node("EmptyLatentImage", width=128, height=128, batch_size=1)
            words = encoded(c, p, name, text)
            sampled = c.node("KSampler", model=p.loader["MODEL"], positive=words["CONDITIONING"],
                             negative=null["CONDITIONING"], seed=0, cfg=CFG, latent_image=empty["LATENT"],
                             sampler_name="euler", scheduler=schedule)
            decoded(c, f"{model}: {name}", p, sampled["LATENT"])


def page(c, label):
    p = scene(c)
    show(c, "exact target", p.scene["exact target"])
    show_mask(c, "edit mask", p.mask)


EXAMPLE = Example("The miniature", pages={"PalimpsestLoadMiniature": samples, "PalimpsestMiniatureScene": page})
