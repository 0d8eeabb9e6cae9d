"""UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models. Jiao, Huang, Wang, Liao, 2025.
arXiv:2504.13109, the editing, Uni-Edit. (inversion/flow/uni_inv.py holds its inversion.)

The latent Z of a step is asked under the source's prompt and under the target's. It is corrected along their
difference, then takes its step along their fused velocity, both further where a mask m finds them apart:
    Z̃_t = Z_t + (t' - t)·ω·(1 + m)·(v^T - v^S),   v = m·v^T + (1 - m)·v^S,   Z_t' = Z̃_t + (t' - t)·v.
v^T and v^S are those before the correction, so one velocity does both, v^S + (m + ω·(1 + m))·(v^T - v^S). It is a sum
of the two with weights that add up to 1, so the predicted x0 are summed alike, on flow, eps and v models. The authors
start at the share α of the noise (Replay's start 1 - α), from an inversion with the empty prompt, at CFG 1.

m is the mean of |v^T - v^S| over channels, brought to 0..1 in each picture, as in the authors' Flux code. Their
schedulers for diffusers (SD3, SDXL, Wan) take the mean of v^T - v^S with its sign: there m is about 1/2 where the two
agree, and 0 where the mean is lowest.

Differs from the paper: the authors' Flux code has one m for each token, 2 × 2 cells. Here each cell has its own.

Checked against: DSL-Lab/UniEdit-Flow@69f7e81, whole runs of its Flux loop, and of both schedulers with their own m
(numbers in tests/data/uni_edit.json).
"""
from dataclasses import dataclass

from torch import Tensor

from ..editing.editor import Editor
from ..editing.predictions import Asked


def region(difference: Tensor) -> Tensor:
    """m [B,1,…] of v^T - v^S [B,C,…]."""
    mean = difference.abs().mean(1, keepdim=True)
    places = tuple(range(1, mean.ndim))
    least, most = mean.amin(places, keepdim=True), mean.amax(places, keepdim=True)
    return (mean - least) / (most - least + 1e-7)


def fused(source: Tensor, target: Tensor, m: Tensor, omega: float) -> Tensor:
    """The correction and the fusion together, of two velocities or of what is predicted by them."""
    return source + (m + omega * (1 + m)) * (target - source)


@dataclass(frozen=True, eq=False)
class UniEdit(Editor):
    """Goes from the source's prediction beyond the target's, furthest where they differ.

    source: the source's prompt.
    omega: ω.
    """
    source: list
    omega: float = 5.0
    name, mixes = "Uni-Edit Guidance", True

    @property
    def prompts(self):
        return (self.source,)

    def begin(self, run):
        told = [{entry.get("guidance") for entry in entries} for entries in (run.prompts(self)[0], run.targets())]
        if told[0] != told[1]:
            run.warn_once(self, "Uni-Edit Guidance compares two prompts, and their guidance differs (source: %s, "
                                "target: %s), so it edits that too: connect FluxGuidance at 1 to both (paper).",
                          *(", ".join(map(str, sorted(found, key=str))) for found in told))

    def asks(self, run, sigma):
        return {"source": Asked(run.prompts(self)[0], "target")}

    def answered(self, run, x0, sigma):
        source = x0["source"]
        return fused(source, x0.target, region((source - x0.target) / sigma), self.omega)
