"""Noise Map Guidance: Inversion with Spatial Context for Real Image Editing. Cho, Lee, Kim, Oh, Jeong, ICLR 2024.
arXiv:2402.04625

Guidance leads sampling off the inverted trajectory z*. A learned null embedding that leads back has no place to say
where. Noise maps, the trajectory's own latents, have one. Each step is first conditioned on the next of them, by the
gradient of an energy,
    ε_N = ε(z_t, ∅) + s_g·√(1 - ᾱ_t)·∇_{z_t} mean |z'_{t-1} - z*_{t-1}|,   z'_{t-1} the DDIM step with ε(z_t, ∅),
    ε̃ = ε(z_t, ∅) + s_N·(ε_N - ε(z_t, ∅)),   z^N_{t-1} the DDIM step with ε̃.
Then it is conditioned on the text: with z^N_t ≈ z^N_{t-1}, classifier-free guidance at (z^N_t, t) makes the step from
z^N_t to z_{t-1}. In x = z/√ᾱ and σ, with c = √(1 + σ²) (1 on flow models) and σ', c' of the next level,
    ε̃ = ε + s_N·s_g·σ/c'·∇_x mean |x' - x*'|,   x^N = (c/c')·(x + (σ' - σ)·ε̃).
Only the product s_N·s_g acts. The authors take s_g = 5000 (grad_scale) and s_N = 10 (guidance_noise_map), at CFG 10.

The authors guide the source: the row that is reconstructed, and beside Prompt-to-Prompt and MasaCtrl the source's of
two rows, never the target's. There it keeps the features that the target reads from drifting. Here those are read at
the inversion's own latents, which do not drift. So the method as published adds nothing to an edit, and acts on rows
that have the source's prompt.

Differs from the paper: all rows may be guided. That holds the edit itself, at the cost of what is to change.
Checked against: authors' code hansam95/NMG@d7b6bf5, its settings and what it guides; runs, the paper's equations.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.attention_loss import scale_of
from ..editing.latent_move import Mover, next_level
from ..host.batch import repeat_to_batch_size
from ..host.gradients import without_control_weights
from ..host.guiders import predictions
from ..inversion.grid import append_dims
from ..inversion.trajectory import Inversion

VALUES = 4 * 64 * 64  # of the authors' latent
ROWS = "all", "source"


@dataclass(frozen=True, eq=False)
class NoiseMap(Mover):
    """Draws each step to the source's next latent.

    scale: s_N·s_g over VALUES; the authors' is 3.05.
    rows: which are guided, "all" or those with the "source"'s prompt.
    """
    inversion: Inversion
    scale: float = 3.05
    rows: str = "all"
    name = "Noise Map Guidance"

    @dataclass
    class State(Mover.State):
        """guided: of each row whether it is guided."""
        guided: Tensor | None = None

    def begin(self, run):
        if not any("negative" in name for name in run.guider.conds):
            raise ValueError("Noise Map Guidance follows the prediction without a prompt, and this guider has no "
                             f"negative (it has {', '.join(run.guider.conds)}): sample with CFGGuider or KSampler and "
                             "an empty negative.")
        guided = [self.rows == "all" or self._own(run, i) for i in range(run.shape[0])]
        if not any(guided):
            raise ValueError(f"Noise Map Guidance guides rows with the source's prompt, and none of the {len(guided)} "
                             "being sampled has it: sample the source's prompt too, set rows to all, or remove the "
                             "node, since the editors' source never drifts.")
        run.state(self).guided = torch.tensor(guided)

    def _own(self, run, row) -> bool:
        """Whether a row's prompt is the source's. One encoded beside longer prompts has empty chunks after it."""
        known = self.inversion.conditioning[0][0]
        texts = [e["model_conds"]["c_crossattn"].cond for e in run.targets()]
        pairs = [(text[row % len(text)].cpu(), known[row % len(known)]) for text in texts]
        return all(a.shape[-1] == b.shape[-1] and torch.equal(*(t[:min(len(a), len(b))] for t in (a, b)))
                   for a, b in pairs)

    def move(self, run, x, sigma):
        clean = next_level(run, sigma)
        eps, gradient = self._energy_gradient(run, x, sigma, clean)
        scale = self.scale * VALUES / x[0].numel()
        c, c_next = scale_of(run, sigma), scale_of(run, clean)
        moved = c / c_next * (x + (clean - sigma) * (eps + scale * sigma / c_next * gradient))  # x^N, with ε̃
        return torch.where(append_dims(run.state(self).guided.to(x.device), x), moved, x)

    def _energy_gradient(self, run, x, sigma, clean):
        """(ε(x, ∅), ∇_x Σ |x' - x*'|) of the step from σ to σ' = clean."""
        null = without_control_weights(next(c for name, c in run.guider.conds.items() if "negative" in name))
        with run.graph() as options:
            seen = x.clone().requires_grad_()
            x0, = predictions(run.guider, [null], seen, sigma, options)
            eps = (seen - x0) / sigma
            known = repeat_to_batch_size(self.inversion.at(clean), len(x)).to(x)
            energy = (seen + (clean - sigma) * eps - known).abs().sum()
            return eps.detach(), torch.autograd.grad(energy, seen)[0]
