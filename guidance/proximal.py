"""ProxEdit: Improving Tuning-Free Real Image Editing with Proximal Guidance. Han, Wen, Chen, Zhang, Song, Ren, Gao,
Stathopoulos, He, Chen, Metaxas, WACV 2024. arXiv:2306.05414

Guidance amplifies the whole difference ε_c - ε_u, artefacts included. A proximal operator keeps what is large of it,
    ε = ε_u + w·prox_λ(ε_c - ε_u),
with λ a quantile of the difference's magnitude. prox of the l0 norm zeroes what is under λ. That of the l1 norm also
shrinks the rest by λ. M is where what l1 leaves of the difference exceeds λ, grown by some cells. Late in the schedule,
outside M, the predicted x0 is drawn to the source's (the paper's reconstruction guidance), or the step's latent to the
inversion's (its inversion guidance):
    x0 <- x0 - η·(1 - M)·(x0 - x0*),   x_{t-1} <- x_{t-1} - η·(1 - M)·(x_{t-1} - x*_{t-1}).
x0 is affine in ε, so the operator acts on the host's x0 predictions, and for eps, v and flow alike. Of Euler's step the
second line is a change of x0 too. The first keeps the step's noise: a flow model's step then ends (1 - σ')·Δx0 off.

As in the authors' code the quantile is of the source's and the target's differences together. The source's are 0 where
its own prompt is the negative (negative-prompt inversion), so that 0.7 zeroes the least 40 % of the target's, and up to
0.5 nothing is zeroed. Here the source is not sampled, and counts as 0 with any negative.

Differs from the paper: λ is each picture's own, not the batch's. Differs from the authors' code, which shrinks by λ
under l0 as well, and twice under l1: here both norms are the paper's.
Checked against: authors' code phymhan/prompt-to-prompt@9955a1f, whole runs of its l0, which is l1 here.
"""
import math
from dataclasses import dataclass

from torch import Tensor

from ..editing.editor import Editor
from ..editing.latent_move import next_level
from ..editing.masks import grown
from ..host.batch import repeat_to_batch_size
from ..host.keys import running
from ..host.sampling import prediction_type
from ..inversion.grid import append_dims
from ..inversion.trajectory import Inversion

NORMS = "l0", "l1"


def threshold(difference: Tensor, quantile: float) -> Tensor:
    """λ of each row of [B,…], in a shape that broadcasts with it: the quantile of its magnitudes and as many zeros."""
    size = difference.abs().flatten(1).float().sort(1).values
    place = quantile * (2 * size.shape[1] - 1) - size.shape[1]  # among the sizes, which come after the zeros
    below = math.floor(place)
    low, high = (size[:, max(i, 0)] * (i >= 0) for i in (below, min(below + 1, size.shape[1] - 1)))
    return append_dims(low.lerp(high, place - below), difference).to(difference)


def prox(difference: Tensor, limit: Tensor, norm: str) -> Tensor:
    """The proximal operator: hard thresholding for "l0", soft for "l1"."""
    if norm == "l0":
        return difference * (difference.abs() > limit)
    return difference - difference.clamp(-limit, limit)


def edited(difference: Tensor, limit: Tensor, radius: int) -> Tensor:
    """M of [B,C,…,h,w]: 1 where the difference, shrunk by λ, is over λ, grown by `radius` cells in height and width."""
    return grown((prox(difference, limit, "l1").abs() > limit).to(difference), radius)


@dataclass(frozen=True, eq=False)
class Proximal(Editor):
    """Keeps what is large of the guidance, and draws the rest to the source.

    norm: "l0" or "l1".
    quantile: of the difference, 0.5 to 1.
    rate: η.
    start: the percent of the schedule from which x0 is drawn to the source.
    radius: cells by which M grows.
    latents: whether the step's latent is drawn instead of x0.
    """
    inversion: Inversion
    norm: str = "l0"
    quantile: float = 0.7
    rate: float = 0.1
    start: float = 0.6
    radius: int = 1
    latents: bool = False
    follows, name = True, "Proximal Guidance"

    @dataclass
    class State:
        """x: what the model sees.
        edited: M, None before the first difference.
        """
        x: Tensor | None = None
        edited: Tensor | None = None

    def begin(self, run):
        more = run.guider.conds.keys() - {"positive", "negative"}
        if more:
            raise ValueError("Proximal Guidance works on the difference of two predictions, and this guider has "
                             f"another, {', '.join(sorted(more))}: sample with CFGGuider.")
        scale = getattr(run.guider, "cfg", None)
        if "negative" not in run.guider.conds or scale == 1:
            has = "no negative" if "negative" not in run.guider.conds else "CFG 1"
            raise ValueError("Proximal Guidance works on the difference of two predictions, and this guider has "
                             f"{has}: sample with a negative and CFG over 1 (paper: 7.5).")

    def before(self, run, x, sigma):
        run.state(self).x = x
        return x

    def combine(self, args) -> list:
        """The host's pre-CFG hook on x0 predictions [cond, uncond]. Moves cond so that the
        difference becomes prox of itself."""
        cond, uncond, *rest = args["conds_out"]
        run = running(args["model_options"])
        if run is None or args["conds"][1] is None:
            return args["conds_out"]
        difference = cond - uncond
        limit = threshold(difference, self.quantile)  # λ
        run.state(self).edited = edited(difference, limit, self.radius)
        return [uncond + prox(difference, limit, self.norm), uncond, *rest]

    def after(self, run, x0, sigma):
        state = run.state(self)
        if not self.rate or state.edited is None or not run.within(sigma, self.start, 1.0):
            return x0
        rate = self.rate * (1 - state.edited)  # η·(1 - M)
        if run.coupled is not None:  # a solver of two latents is drawn to where its step ended in the inversion
            return x0 - rate * (x0 - repeat_to_batch_size(run.landing(self.inversion, sigma), len(x0)).to(x0))
        clean, drawn, source = next_level(run, sigma), x0, run.landing(self.inversion, sigma)
        if self.latents:
            drawn, source = x0 + clean / sigma * (state.x - x0), self.inversion.at(clean)
        elif prediction_type(run.guider.model_patcher) == "flow":
            rate = rate * (1 - clean)  # x0's share of the next latent, whose noise stays
        return x0 - rate * (drawn - repeat_to_batch_size(source, len(x0)).to(x0)) * sigma / (sigma - clean)


def guide(model, editor: Proximal):
    """A clone of the MODEL, already carrying the editor, with its pre-CFG hook."""
    m = model.clone()
    m.set_model_sampler_pre_cfg_function(editor.combine)
    return m
