"""SEGA: Instructing Text-to-Image Models using Semantic Guidance. Brack, Friedrich, Hintersdorf, Struppek, Schramowski,
Kersting, NeurIPS 2023. arXiv:2301.12247

A concept e has a direction among noise predictions, ψ_e = ±(ε(z, e) - ε(z)), and few of its values carry it. To
classifier-free guidance SEGA adds, for each concept,
    γ_e = s_e·ψ_e where |ψ_e| reaches its λ-th percentile, else 0,
and for all of them together, with weights g_e and a momentum ν,
    γ = Σ g_e·γ_e + s_m·ν,   ν <- β_m·ν + (1 - β_m)·γ.
Until its warm-up ends a concept adds nothing but to ν, and ν itself is added once all warm-ups have ended. In x0 terms
ε = (x - x0)/σ, so x0 <- x0 - σ·γ; on flow models ψ is a difference of velocities and the line is the same. On v models
ε(z) is the network's v, with ∂v = √(1 + σ²)·∂ε: that is what ν sums over the steps.

Where the null prompt has a ControlNet the concept's row has it too: ψ is of the words.
Percentiles are of each row and channel, and a concept may cool down, as in the authors' code (diffusers'
SemanticStableDiffusionPipeline). Differs from that code: while only some warm-ups have ended it divides their concepts'
weights by their sum, here g_e stays as it is. Checked against: diffusers 0.42.1, whole runs on eps and v models.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.editor import Editor, editors
from ..editing.predictions import Asked
from ..editing.run import alone
from ..host.keys import running
from ..host.sampling import Solver, prediction_type, sample


@dataclass(frozen=True, eq=False)
class Concept:
    """prompt: its CONDITIONING; scale: s_e, under 0 to remove; start, end: the percents of the schedule where its
    warm-up ends and its cool-down begins; threshold: λ, 0..1; weight: g_e."""
    prompt: list
    scale: float = 5.0
    start: float = 0.2
    end: float = 1.0
    threshold: float = 0.9
    weight: float = 1.0


def largest(psi: Tensor, threshold: float) -> Tensor:
    """1 where |ψ| [B,C,…] reaches the quantile `threshold` of its row and channel, else 0."""
    size = psi.abs().float()
    limit = size.flatten(2).quantile(threshold, dim=2)
    return (size >= limit.view(*limit.shape, *[1] * (psi.ndim - 2))).to(psi)


@dataclass(frozen=True, eq=False)
class SEGA(Editor):
    """All concepts of a MODEL; momentum: s_m; beta: β_m."""
    concepts: tuple
    momentum: float = 0.1
    beta: float = 0.4
    name = "SEGA Guidance"

    @property
    def prompts(self):
        return tuple(concept.prompt for concept in self.concepts)

    def begin(self, run):
        if not any("negative" in name for name in run.guider.conds):
            raise ValueError(f"{self.name} guides away from the prediction without a concept, and this guider has no "
                             f"negative (it has {', '.join(run.guider.conds)}): sample with CFGGuider or KSampler and "
                             "an empty negative.")
        run.warn_if_idle(self.name, lambda sigma: any(run.within(sigma, c.start, c.end) for c in self.concepts))

    def region(self, run, concept, psi, sigma):
        """1 where ψ [B,C,…] is kept, else 0; its channels may be one for all."""
        return largest(psi, concept.threshold)

    def asks(self, run, sigma):
        return {i: Asked(prompt, "null") for i, (concept, prompt) in enumerate(zip(self.concepts, run.prompts(self)))
                if run.within(sigma, 0.0 if self.momentum else concept.start, concept.end)}

    def answered(self, run, x0, sigma):
        memory, terms = run.memory(self), {}
        memory["regions"] = {}
        for i in x0.names:
            psi, concept = (x0.null - x0[i]) / step(run, sigma), self.concepts[i]
            memory["regions"][i] = self.region(run, concept, psi, sigma)
            terms[i] = concept.weight * concept.scale * psi * memory["regions"][i]
        memory["gamma"] = self._gamma(run, terms, sigma)

    def _gamma(self, run, terms, sigma):
        """γ of {concept's number: g_e·γ_e}."""
        memory = run.memory(self)
        level, before, after = memory.get("nu", (None, 0.0, 0.0))
        nu = before if level == sigma else after  # a level asked again is one step still
        gamma = sum(terms.values()) + self.momentum * nu
        memory["nu"] = sigma, nu, self.beta * nu + (1 - self.beta) * gamma
        warm = [i for i, c in enumerate(self.concepts) if run.within(sigma, c.start, 1.0)]
        return gamma if len(warm) == len(self.concepts) else sum(terms[i] for i in warm if i in terms)

    def after(self, run, x0, sigma):
        return x0 - step(run, sigma) * run.memory(self).pop("gamma", 0.0)


def step(run, sigma) -> float:
    """By how much x0 falls where the network's own prediction rises by 1."""
    v = prediction_type(run.guider.model_patcher) == "v"
    return sigma / (1 + sigma ** 2) ** 0.5 if v else sigma


def held(model, kind):
    """The MODEL's editor of this kind, or None."""
    return next((e for e in editors(model) if type(e) is kind), None)


def read_regions(model, editor, inversion, negative) -> Tensor:
    """[concepts, B, h, w] in 0..1: each concept's region on the inversion's trajectory, the mean over channels and the
    steps on which it acts."""
    found = {}

    def walk(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        for i, sigma in enumerate(sigmas[:-1]):
            at = inversion.latents[i].to(x)
            x0 = denoise(at, sigma.expand(len(at)), **extra_args)
            for n, region in run.memory(editor)["regions"].items():
                if run.within(float(sigma), editor.concepts[n].start, 1.0):
                    found.setdefault(n, []).append(region.flatten(1, -3).mean(1))
            callback({"x": at, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        return x

    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    sample(alone(model, editor), inversion.conditioning, noise, inversion.sigmas, Solver(walk), negative=negative)
    blank = torch.zeros(inversion.batch, *inversion.shape[-2:])
    means = {n: torch.stack(regions).mean(0).float().cpu() for n, regions in found.items()}
    return torch.stack([means.get(n, blank) for n in range(len(editor.concepts))])
