"""Every inversion by its method's name."""
from palimpsest.editing.inverting import invert, learn
from palimpsest.inversion.method import methods

from editors import STEPS


def inverted(method):
    """A method at its defaults, with few of the rounds that it repeats. One that learns follows DDIM's trajectory."""
    few = {name: min(setting.default, 1 if method.asks == "gradients" else 2)
           for name, setting in method.settings.items() if type(setting.default) is int and name != "seed"}

    def on(c):
        if method.invert or method.along:
            return invert(method, c.model, c.source, {"samples": c.latent}, STEPS, "ddim_uniform", **few).inversion
        return learn(method, c.model, c.inversion, negative=None if "uncond" in method.theta else c.null, **few)
    return on


INVERSIONS = {name: inverted(method) for name, method in methods().items() if name != "DDIM"}
