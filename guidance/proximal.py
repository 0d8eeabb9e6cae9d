"""ProxEdit: Improving Tuning-Free Real Image Editing with Proximal Guidance. Han, Wen, Chen, Zhang, Song, Ren, Gao,
Stathopoulos, He, Chen, Metaxas, WACV 2024. arXiv:2306.05414

Guidance amplifies the whole difference ε_c - ε_u, artefacts included. A proximal operator keeps what is large of it:
    ε = ε_u + w·prox_λ(ε_c - ε_u),
with λ a quantile of the difference's magnitude; prox of the l0 norm zeroes what is under λ, of the l1 norm also shrinks
the rest by λ. Late in the schedule, where the difference stays under λ (grown by some cells), the predicted x0 is drawn
to the source's:
    x0 <- x0 - η·(1 - M)·(x0 - x0*),
the paper's reconstruction guidance. x0 is affine in ε, so the operator acts on the host's x0 predictions, and for eps,
v and flow alike.
Differs from the authors' code, which shrinks by λ under l0 as well (and twice under l1): here both norms are the
paper's. λ is each picture's own, not the batch's.
"""
from dataclasses import dataclass

import torch.nn.functional as F
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ..host.session import Editor, running

NORMS = "l0", "l1"


def threshold(difference: Tensor, quantile: float) -> Tensor:
    """λ of each row of [B,…], in a shape that broadcasts with it; 0 for quantile 0, where all of the difference is
    kept."""
    if not quantile:
        return difference.new_zeros(len(difference), *[1] * (difference.ndim - 1))
    limit = difference.abs().flatten(1).float().quantile(quantile, dim=1)
    return limit.view(-1, *[1] * (difference.ndim - 1)).to(difference)


def prox(difference: Tensor, limit: Tensor, norm: str) -> Tensor:
    """The proximal operator: hard thresholding for "l0", soft for "l1"."""
    if norm == "l0":
        return difference * (difference.abs() > limit)
    return difference - difference.clamp(-limit, limit)


def edited(difference: Tensor, limit: Tensor, radius: int) -> Tensor:
    """M of [B,C,…,h,w]: 1 where the difference is over λ, grown by `radius` cells in height and width."""
    mask = (difference.abs() > limit).to(difference)
    return F.max_pool2d(mask.flatten(1, -3), 2 * radius + 1, 1, radius).view_as(mask) if radius else mask


@dataclass(frozen=True, eq=False)
class Proximal(Editor):
    """norm: "l0" or "l1"; quantile: of the difference, 0..1; rate: η; start: percent of the schedule from which x0 is
    drawn to the source; radius: cells by which the edited places grow."""
    inversion: object
    norm: str = "l0"
    quantile: float = 0.7
    rate: float = 0.1
    start: float = 0.6
    radius: int = 1
    follows = True

    def begin(self, run):
        scale = getattr(run.guider, "cfg", None)
        if "negative" not in run.guider.conds or scale == 1:
            has = "no negative" if "negative" not in run.guider.conds else "CFG 1"
            raise ValueError(f"Proximal Guidance works on the difference of two predictions, and this guider has {has}: sample "
                             "with a negative and CFG over 1 (paper: 7.5).")

    def combine(self, args) -> list:
        """The host's pre-CFG hook: [cond, uncond] x0 predictions, the cond moved so that their difference is prox of
        what it was."""
        cond, uncond, *rest = args["conds_out"]
        run = running(args["model_options"])
        if run is None or args["conds"][1] is None:
            return args["conds_out"]
        difference = cond - uncond
        limit = threshold(difference, self.quantile)
        run.memory(self)["edited"] = edited(difference, limit, self.radius)
        return [uncond + prox(difference, limit, self.norm), uncond, *rest]

    def after(self, run, x0, sigma):
        mask = run.memory(self).get("edited")
        if not self.rate or mask is None or not run.within(sigma, self.start, 1.0):
            return x0
        source = repeat_to_batch_size(run.landing(self.inversion, sigma), x0.shape[0]).to(x0)
        return x0 - self.rate * (1 - mask) * (x0 - source)


def guide(model, editor: Proximal):
    """A clone of the MODEL, already carrying the editor, with its pre-CFG hook."""
    m = model.clone()
    m.set_model_sampler_pre_cfg_function(editor.combine)
    return m
