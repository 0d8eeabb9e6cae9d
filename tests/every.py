"""Every inversion by name, as its node makes it, and the one editor that needs guidance."""
from palimpsest.nodes.guidance.proximal import PalimpsestProximalGuidance
from palimpsest.nodes.inversion.bdia import PalimpsestBDIAInvert
from palimpsest.nodes.inversion.cycle_diffusion import PalimpsestCycleDiffusionInvert
from palimpsest.nodes.inversion.ddpm import PalimpsestDDPMInvert
from palimpsest.nodes.inversion.direct import PalimpsestDirectInvert
from palimpsest.nodes.inversion.edict import PalimpsestEDICTInvert
from palimpsest.nodes.inversion.fixed_point import PalimpsestFixedPointInvert
from palimpsest.nodes.inversion.kv import PalimpsestKVInvert
from palimpsest.nodes.inversion.ledits import PalimpsestLEDITSInvert
from palimpsest.nodes.inversion.negative_prompt import PalimpsestNegativePromptInvert
from palimpsest.nodes.inversion.null_text import PalimpsestNullTextOptimize
from palimpsest.nodes.inversion.prompt_tuning import PalimpsestPromptTuningInvert
from palimpsest.nodes.inversion.regularized import PalimpsestRegularizedInvert
from palimpsest.nodes.inversion.renoise import PalimpsestReNoiseInvert
from palimpsest.nodes.inversion.style_diffusion import PalimpsestStyleDiffusionInvert

from editors import STEPS


def proximal(case, model=None):
    """This editor needs guidance. Many tests of every editor sample at CFG 1, so it is not among them."""
    return PalimpsestProximalGuidance.execute(model or case.model, case.inversion, "l0", 0.7, 0.1, 0.5, 1).result[0]


def exact(node, *settings):
    return lambda c: node.execute(c.model, c.source, {"samples": c.latent}, STEPS, "ddim_uniform", *settings).result[0]


def learned(node):
    """A method that learns along DDIM's trajectory. Every input is at its default, except for one update per step."""
    def invert(c):
        defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        given = {"negative": c.null} if any(i.id == "negative" and not i.optional
                                            for i in node.define_schema().inputs) else {}
        return node.execute(**defaults | {"iterations": 1, "model": c.model, "inversion": c.inversion}
                            | given).result[0]
    return invert


INVERSIONS = {
    "fixed point": exact(PalimpsestFixedPointInvert, 3, 1e-5, "anderson"),
    "renoise": exact(PalimpsestReNoiseInvert, 2, 1, 1, 0.0, 0),
    "renoise ancestral": exact(PalimpsestReNoiseInvert, 2, 1, 1, 0.5, 0),
    "regularized": exact(PalimpsestRegularizedInvert, 20.0, 20.0, 2, 2, 0),
    "negative prompt": exact(PalimpsestNegativePromptInvert, 0.0), "edict": exact(PalimpsestEDICTInvert, 0.93, 1.0),
    "bdia": exact(PalimpsestBDIAInvert, 1.0, 1.0), "direct": exact(PalimpsestDirectInvert, 1.0, 1.0),
    "ddpm": exact(PalimpsestDDPMInvert, 1.0, 0, 1.0), "cycle": exact(PalimpsestCycleDiffusionInvert, 0.1, 0),
    "ledits": exact(PalimpsestLEDITSInvert, 0, 1.0),
    "null text": learned(PalimpsestNullTextOptimize), "prompt tuning": learned(PalimpsestPromptTuningInvert),
    "style": learned(PalimpsestStyleDiffusionInvert), "kv": learned(PalimpsestKVInvert),
}
