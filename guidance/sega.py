"""SEGA: Instructing Text-to-Image Models using Semantic Guidance. Brack, Friedrich, Hintersdorf, Struppek, Schramowski,
Kersting, NeurIPS 2023. arXiv:2301.12247

A concept e has a direction among noise predictions, ψ_e = ±(ε(z, e) - ε(z)), and few of its values carry it. To
classifier-free guidance SEGA adds, for each concept,
    γ_e = s_e·ψ_e where |ψ_e| reaches its λ-th percentile, else 0,
and for all of them together, with weights g_e and a momentum ν,
    γ = Σ g_e·γ_e + s_m·ν,   ν <- β_m·ν + (1 - β_m)·γ.
Before its warm-up ends a concept adds to ν alone. ν itself is added once all warm-ups have ended.

With ε = (x - x0)/σ the sum is x0 <- x0 - σ·γ. On flow models ψ is a difference of velocities v = noise - x0, and
(x - x0)/σ is v, so the line is the same.
On v models ε(z) is the network's v, with ∂v = √(1 + σ²)·∂ε, and ν sums that over the steps.
Where the null prompt has a ControlNet the concept's row has it too, so that ψ is of the words alone.

Differs from the paper: percentiles are of each row and channel, and a concept may cool down. Both are as in the
authors' code (diffusers' SemanticStableDiffusionPipeline). While only some warm-ups have ended that code divides their
concepts' weights by their sum. Here g_e stays as it is.
Checked against: diffusers 0.42.1, whole runs on eps and v models.
"""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..editing.editor import Editor
from ..editing.predictions import Asked
from ..editing.run import alone
from ..host.keys import running
from ..host.sampling import Solver, prediction_type, sample
from ..inversion.grid import append_dims, report_step


@dataclass(frozen=True, eq=False)
class Concept:
    """What is added to a picture, or removed from it.

    prompt: its CONDITIONING.
    scale: s_e, under 0 to remove.
    start: the percent of the schedule where its warm-up ends.
    end: the percent where its cool-down begins.
    threshold: λ, 0 to 1.
    weight: g_e.
    """
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
    return (size >= append_dims(limit, psi)).to(psi)


@dataclass(frozen=True, eq=False)
class SEGA(Editor):
    """All concepts of a MODEL.

    momentum: s_m.
    beta: β_m.
    """
    concepts: tuple
    momentum: float = 0.1
    beta: float = 0.4
    name = "SEGA Guidance"

    @dataclass
    class State:
        """gamma: γ of this evaluation of the model.
        regions: {a concept's number: where its ψ is kept}.
        level: the σ of the step that is being taken.
        nu: ν at that step.
        next_nu: ν after it.
        """
        gamma: Tensor | float = 0.0
        regions: dict = field(default_factory=dict)
        level: float | None = None
        nu: Tensor | float = 0.0
        next_nu: Tensor | float = 0.0

    @property
    def prompts(self):
        return tuple(concept.prompt for concept in self.concepts)

    def begin(self, run):
        if not any("negative" in name for name in run.guider.conds):
            raise ValueError(f"{self.name} guides away from the prediction without a concept, and this guider has no "
                             f"negative (it has {', '.join(run.guider.conds)}): sample with CFGGuider or KSampler and "
                             "an empty negative.")
        run.warn_if_idle(self.name, lambda sigma: any(run.within(sigma, c.start, c.end) for c in self.concepts))

    def hands_on(self, run, sigma):
        return "the momentum" if self.momentum and any(run.within(sigma, 0.0, c.end) for c in self.concepts) else ""

    def region(self, run, concept, psi, sigma) -> Tensor:
        """1 where ψ [B,C,…] is kept, else 0. Its channels may be one for all."""
        return largest(psi, concept.threshold)

    def asks(self, run, sigma):
        return {i: Asked(prompt, "null") for i, (concept, prompt) in enumerate(zip(self.concepts, run.prompts(self)))
                if run.within(sigma, 0.0 if self.momentum else concept.start, concept.end)}

    def answered(self, run, x0, sigma):
        state, terms = run.state(self), {}
        state.regions = {}
        for i in x0.names:
            concept = self.concepts[i]
            psi = (x0.null - x0[i]) / x0_over_prediction(run, sigma)  # ψ_e
            state.regions[i] = self.region(run, concept, psi, sigma)
            terms[i] = concept.weight * concept.scale * psi * state.regions[i]  # g_e·γ_e
        state.gamma = self._gamma(run, terms, sigma)

    def _gamma(self, run, terms, sigma):
        """γ of {a concept's number: g_e·γ_e}."""
        state = run.state(self)
        if state.level != sigma:  # a level that is asked again is one step still
            state.level, state.nu = sigma, state.next_nu
        gamma = sum(terms.values()) + self.momentum * state.nu  # γ
        state.next_nu = self.beta * state.nu + (1 - self.beta) * gamma  # ν
        warm = [i for i, c in enumerate(self.concepts) if run.within(sigma, c.start, 1.0)]
        return gamma if len(warm) == len(self.concepts) else sum(terms[i] for i in warm if i in terms)

    def after(self, run, x0, sigma):
        state = run.state(self)
        gamma, state.gamma = state.gamma, 0.0
        return x0 - x0_over_prediction(run, sigma) * gamma


def x0_over_prediction(run, sigma) -> float:
    """By how much x0 falls where the network's own prediction rises by 1."""
    v = prediction_type(run.guider.model_patcher) == "v"
    return sigma / (1 + sigma ** 2) ** 0.5 if v else sigma


def read_regions(model, editor, inversion, negative) -> Tensor:
    """[concepts, B, h, w] in 0..1: each concept's region on the inversion's trajectory, the mean over channels and the
    steps on which it acts."""
    found = {}

    def walk(denoise, x, sigmas, extra_args, callback, disable):
        run = running(extra_args["model_options"])
        for i, sigma in enumerate(sigmas[:-1]):
            at = inversion.latents[i].to(x)
            x0 = denoise(at, sigma.expand(len(at)), **extra_args)
            for n, region in run.state(editor).regions.items():
                if run.within(float(sigma), editor.concepts[n].start, 1.0):
                    found.setdefault(n, []).append(region.flatten(1, -3).mean(1))
            report_step(callback, i, at, sigma, x0)
        return x

    noise = inversion.at(float(inversion.sigmas[0]))  # an error where no trajectory was kept
    sample(alone(model, editor), inversion.conditioning, noise, inversion.sigmas, Solver(walk, inversion=inversion),
           negative=negative)
    blank = torch.zeros(inversion.batch, *inversion.shape[-2:])
    means = {n: torch.stack(regions).mean(0).float().cpu() for n, regions in found.items()}
    return torch.stack([means.get(n, blank) for n in range(len(editor.concepts))])
