"""Runs recorded at every model call: what the sampler asks for, what the network sees, and what the sampler gets."""
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend

import tiny
from runs import Case, invert, kept

START = 0.4


class Flow(Case):
    """A flow model and random prompts."""

    def __init__(self, family, size=8, steps=6):
        self.model = tiny.FLOWS[family]()
        self.source, self.target, self.null = (tiny.cond(seed=seed) for seed in (1, 4, 9))
        self.inversion, noise, self.sigmas = invert(self.model, self.source, tiny.latent(self.model, 1, size), steps)
        self.noise = noise["samples"]


def blend(case, model=None, start=START, source_words="", target_words="", threshold=0.3, **inputs):
    """Latent Blend's MODEL."""
    return PalimpsestLatentBlend.execute(model or case.model, case.inversion, start, source_words, target_words,
                                         threshold,
                                         **{"refine": False, **inputs}).result[0]


class Record:
    """Every model call of one blended run, from noise that is not the inversion's, unless `noise` is given.

    calls: (σ, asked, seen [chunks, rows, …], given, got), which are the sampler's x, the network's x, the guider's x0
        and the sampler's x0.
    """

    def __init__(self, case, start=START, noise=None, sampler="euler", cfg=7.5, positive=None,
                 beside=lambda model: model, **inputs):
        self.case, self.calls = case, []
        outer = case.model.clone()
        outer.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "outer", self._outer)
        model = beside(blend(case, outer, start, **inputs))
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "inner", self._inner)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "network", self._network)
        if noise is None:
            noise = torch.randn(case.noise.shape, generator=torch.Generator().manual_seed(5)) * case.noise.std()
        self.result = case.sample(model, positive, cfg, sampler, noise, seed=11)
        self.limit = case.model.get_model_object("model_sampling").percent_to_sigma(start)

    def _outer(self, executor, x, timestep, *args, **kwargs):
        self.now = {"seen": []}
        got = executor(x, timestep, *args, **kwargs)
        now = self.now
        self.calls.append((float(timestep[0]), x.clone(), torch.stack(now["seen"]), now["given"], got.clone()))
        return got

    def _inner(self, executor, *args, **kwargs):
        given = executor(*args, **kwargs)
        self.now["given"] = given.clone()
        return given

    def _network(self, executor, x, *args, **kwargs):
        self.now["seen"] += x.clone().chunk(len(x) // len(self.case.noise))
        return executor(x, *args, **kwargs)

    def keeps(self, mask):
        """For each call: whether the network saw latents(σ) and the sampler got the clean latent, bit
        for bit where mask is 0."""
        clean, outside = self.case.inversion.latents[-1], mask == 0

        def equal(seen, known):
            return torch.equal(seen[..., outside], known[..., outside].expand_as(seen[..., outside]))

        return [(equal(seen, self.case.inversion.at(sigma)), equal(got, clean))
                for sigma, _, seen, _, got in self.calls]

    def since(self):
        """For each call: whether the blend should act."""
        return [sigma <= self.limit for sigma, *_ in self.calls]


def half(size=8):
    mask = torch.zeros(size, size)
    mask[:, size // 2:] = 1
    return mask


def calls_of(case, edit, **kwargs):
    """(σ, the network's x, the sampler's x0) of every call in a run of edit(MODEL)."""
    calls = []

    def sampler(executor, *args):
        got = executor(*args)
        calls[-1].append(got.clone())
        return got

    def network(executor, x, *args, **more):
        rows = len(case.noise)
        if not calls or len(calls[-1]) == 2:
            calls.append([x[:rows].clone()])
        return executor(x, *args, **more)

    model = case.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "sampler", sampler)
    model = edit(model)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "network", network)
    case.sample(model, **kwargs)
    return [(sigma, *call) for sigma, call in zip(case.sigmas[:-1].tolist(), calls, strict=True)]


@kept
def case(family="sd15", **kwargs):
    return Case(family, **kwargs)


def record(case, edit, **kwargs):
    """For every call in a run of edit(MODEL): σ, the network's x, its x0 for every list, and the sampler's x0."""
    calls = []

    def sampler(executor, *args):
        got = executor(*args)
        calls[-1].append(got.clone())
        return got

    def network(executor, inner, conds, x, timestep, options):
        x0s = executor(inner, conds, x, timestep, options)
        calls.append([float(timestep[0]), x.clone(), [x0.clone() for x0 in x0s]])
        return x0s

    model = case.model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "sampler", sampler)
    model = edit(model)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "network", network)
    case.sample(model, **kwargs)
    return [call for call in calls if len(call) == 4]  # the other calls read a source
