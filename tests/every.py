"""Every inversion by its method's name."""
from itertools import groupby

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


def way_back(method):
    """What Replay makes of a method."""
    return (method.reverse is None, tuple(sorted(method.theta.items())), method.trajectory, method.guided,
            method.middles, method.coupled, method.residual, method.every)


ALIKE = [[*group] for _, group in groupby(sorted(INVERSIONS, key=lambda n: repr(way_back(methods()[n]))),
                                          key=lambda n: way_back(methods()[n]))]
