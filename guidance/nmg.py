"""Noise Map Guidance: Inversion with Spatial Context for Real Image Editing. Cho, Lee, Kim, Oh, Jeong, ICLR 2024.
arXiv:2402.04625

Guidance leads sampling off the inverted trajectory z*, and a learned null embedding that leads back has no place to say where.
Noise maps, the trajectory's own latents, have: each step is first conditioned on the next of them, by the gradient of an energy,
    ε_N = ε(z_t, ∅) + s_g·√(1 - ᾱ_t)·∇_{z_t} ‖z'_{t-1} - z*_{t-1}‖₁,   z'_{t-1} the DDIM step with ε(z_t, ∅),
    ε̃ = ε(z_t, ∅) + s_N·(ε_N - ε(z_t, ∅)),   z^N_{t-1} the DDIM step with ε̃;
then on the text: with z^N_t ≈ z^N_{t-1}, classifier-free guidance at (z^N_t, t) makes the step from z^N_t to z_{t-1}.
In x = z/√ᾱ and σ, with c = √(1 + σ²) (1 on flow models) and σ', c' of the next level,
    ε̃ = ε + s·σ/c'·∇_x ‖x' - x*'‖₁,   x^N = (c/c')·(x + (σ' - σ)·ε̃),
where s = s_N·s_g: only their product acts. The paper does not report the two; 3 is what did best here. Written without the
authors' code.
"""
from dataclasses import dataclass

import comfy.samplers
import torch
from comfy.utils import repeat_to_batch_size

from ..host.gradients import graph, without_control_weights
from ..host.moving import Mover, following
from ..host.sampling import prediction_type


@dataclass(frozen=True, eq=False)
class NoiseMap(Mover):
    """scale: s_N·s_g."""
    inversion: object
    scale: float = 3.0

    def begin(self, run):
        if not any("negative" in name for name in run.guider.conds):
            raise ValueError("Noise Map Guidance follows the prediction without a prompt, and this guider has no negative (it "
                             f"has {', '.join(run.guider.conds)}): sample with CFGGuider or KSampler and an empty negative.")
        run.memory(self)["flow"] = prediction_type(run.guider.model_patcher) == "flow"

    def move(self, run, x, sigma):
        clean = following(run, sigma)
        eps, slope = self._slope(run, x, sigma, clean)
        flow = run.memory(self)["flow"]
        here, there = (1.0, 1.0) if flow else ((1 + sigma ** 2) ** 0.5, (1 + clean ** 2) ** 0.5)
        return here / there * (x + (clean - sigma) * (eps + self.scale * sigma / there * slope))

    def _slope(self, run, x, sigma, clean):
        """(ε(x, ∅), ∇_x ‖x' - x*'‖₁) of the step from σ to σ' = clean."""
        null = without_control_weights(next(c for name, c in run.guider.conds.items() if "negative" in name))
        with graph(run, run.memory(self)) as options:
            seen = x.clone().requires_grad_()
            x0, = comfy.samplers.calc_cond_batch(run.guider.inner_model, [null], seen, seen.new_full((len(x),), sigma), options)
            eps = (seen - x0) / sigma
            known = repeat_to_batch_size(self.inversion.at(clean), len(x)).to(x)
            energy = (seen + (clean - sigma) * eps - known).abs().sum()
            return eps.detach(), torch.autograd.grad(energy, seen)[0]
