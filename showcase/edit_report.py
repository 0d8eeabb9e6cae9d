"""Edit Report, shown."""
from . import Example
from .drawing import CFG, injected, inverted, replay
from .pictures import scene


def page(c, label):
    p = scene(c, source=None)
    inversion = inverted(c, p)
    model = injected(c, p, inversion)["MODEL"]
    sampled = replay(c, "Sample the edit", model, inversion, p.words["target"], p.null["CONDITIONING"], CFG)
    edited = c.node("VAEDecode", samples=sampled["output"], vae=p.loader["VAE"])
    c.node("PalimpsestEditReport", source=p.picture, edited=edited["IMAGE"], mask=p.mask)


EXAMPLE = Example("Edit Report", pages={"PalimpsestEditReport": page})
