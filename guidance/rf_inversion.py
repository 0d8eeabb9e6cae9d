"""Semantic Image Inversion and Editing using Rectified Stochastic Differential Equations (RF-Inversion). Rout, Chen,
Ruiz, Caramanis, Shakkottai, Chu, ICLR 2025. arXiv:2410.10792

On the way back from the noise X_0 to the picture y_0, each step is drawn to the picture as far as η says:
    v(X_t | y_0) = (y_0 - X_t)/(1 - t),   v̂ = v(X_t) + η·(v(X_t | y_0) - v(X_t))     (Algorithm 2, its t being 1 - σ)
With v = (x0 - X)/σ, what X is drops out, v̂ = (x0 + η·(y_0 - x0) - X)/σ: the guide moves the denoised picture to y_0, on
any model and before any sampler's step. η holds for the first steps, in which the layout is made.

Differs from the paper: y_0 is where the INVERSION's own step lands, which is the picture itself unless its steps add to
it. η may also fall or rise over its steps.

Checked against: a whole run of diffusers' community pipeline on equal weights, pipeline_flux_rf_inversion.py@58eb52c
(bench/flow_peers.py), its controlled step on other families; the trends against logtd/ComfyUI-Fluxtapoz@17c71be.
"""
from dataclasses import dataclass

from ..editing.editor import Editor
from ..host.batch import repeat_to_batch_size
from ..inversion.trajectory import Inversion

TRENDS = "constant", "falling", "rising"


@dataclass(frozen=True, eq=False)
class DrawnToPicture(Editor):
    """Moves x0 to the picture from the percent `start` to `end`."""
    inversion: Inversion
    eta: float = 0.9
    start: float = 0.0
    end: float = 0.24
    trend: str = "constant"
    name = "RF-Inversion Guide"

    def begin(self, run):
        run.warn_if_idle(self.name, lambda sigma: run.within(sigma, self.start, self.end) and self._share(run, sigma))

    def hands_on(self, run, sigma):
        return "how far the trend is" if self.trend != "constant" and run.within(sigma, 0.0, self.end) else ""

    def after(self, run, x0, sigma):
        if not run.within(sigma, self.start, self.end):
            return x0
        y0 = repeat_to_batch_size(run.landing(self.inversion, sigma), len(x0)).to(x0)
        return x0 + self.eta * self._share(run, sigma) * (y0 - x0)  # Algorithm 2

    def _share(self, run, sigma) -> float:
        """Of η, at a step."""
        guided = [s for s in run.sigmas[:-1].tolist() if run.within(s, self.start, self.end)]
        risen = min(1.0, sum(s > sigma * (1 + 1e-4) for s in guided) / max(1, len(guided) - 1))
        return {"constant": 1.0, "falling": 1 - risen, "rising": risen}[self.trend]
