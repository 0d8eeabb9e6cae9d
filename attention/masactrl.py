"""MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing. Cao, Wang, Qi, Shan,
Qie, Zheng, ICCV 2023. arXiv:2304.08465

From step S and layer L on, the target's queries look up the source's contents: out = Attention(Q, K_s, V_s). So the new
prompt gives the pose and layout, and the source its appearance. To keep foreground and background apart (section 3.3),
with masks M_s, M of the object in source and target:

    f_o = Attention(Q, K_s, V_s; M_s)    f_b = Attention(Q, K_s, V_s; 1 - M_s)    out = f_o ⊙ M + f_b ⊙ (1 - M)

A mask in an attention leaves only the keys inside it. Here those keys are gathered, so any attention function serves.
The masks are given, or found by the object's words: their cross-attention maps scaled to 0..1 and cut at a threshold
(0.1), or refined as Latent Blend has them.
K_s and V_s are read at the inversion's own latents, never from a reconstruction that drifts. This is also Tuning-Free
Inversion-Enhanced Control (Duan, Cui, Kang, Zhang, Fei, Fan, Huang 2023, arXiv:2312.14611). As in the authors' code the
null prompt's rows look up what the source shows under the null prompt.
Differs from the paper: the target's maps are means over all steps before, not of the step alone. Where one side of M_s
has no key at a layer, it looks up all of them.
Checked against: TencentARC/MasaCtrl@d0ba16b (Apache-2.0), a whole run (numbers in tests/data/null_rows.json).
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.layers import SelfAttentionEdit
from ..editing.masks import otsu
from ..editing.run import Run
from ..editing.sites import in_tiles, mask_at, mask_of_rows


def object_mask(maps: Tensor, size: tuple, threshold: float) -> Tensor:
    """[B, h, w] in {0, 1} of words' maps [B, words, h', w']: where their sum, scaled to 0..1, is at least `threshold`,
    or at 0 over Otsu's."""
    total = maps.float().sum(1, keepdim=True)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    scaled = (total - low) / (high - low).clamp(min=torch.finfo(total.dtype).tiny)
    level = threshold or otsu(scaled)[:, 0]
    return (F.interpolate(scaled, size)[:, 0] >= level).float()


@dataclass(frozen=True, eq=False)
class MutualSelfAttention(SelfAttentionEdit):
    """The target's queries look up the source's keys and values.

    source: M_s [masks, h, w] at the latent's size, 1 on the object. None: no masks.
    target: M [masks, h, w], or None where it is gathered.
    gathered: gives M [rows, h, w] of the object's words in this run so far, None before the first step.
    """
    source: Tensor | None = None
    target: Tensor | None = None
    gathered: Callable[[Run], Tensor | None] | None = None
    needs, name = "kv", "Mutual Self-Attention"
    follows = True

    @property
    def rank(self):
        """With masks it asks with some of the rows and keys, which are not what others read of the source."""
        return 0 if self.source is None else -0.25

    @dataclass
    class State:
        """target: the M [rows, h, w] that was gathered last."""
        target: Tensor | None = None

    @property
    def masks(self):
        return [m for m in (self.source, self.target) if m is not None]

    def before(self, run, x, sigma):
        mask = self.gathered(run) if self.gathered else None
        if mask is not None:
            run.state(self).target = mask
        return x

    def attend(self, rows, site, q, k, v, source, attention):
        gathered = rows.call.run.state(self).target
        target = self.target if gathered is None else gathered
        if target is None or in_tiles(self, rows, site, q):
            return attention(q, source.k, source.v)  # Attention(Q, K_s, V_s)
        if len(q) != len(source.k):
            raise ValueError(f"{self.name} is given {len(q)} of {rows.count} rows by another that has a mask for each "
                             "row, and looks up the source for all: give one mask to all but one of them.")
        inside = mask_at(self.source, rows, site) >= 0.5  # [masks, keys]
        m = mask_of_rows(target, rows, site, q)
        out = torch.empty_like(q)
        for i, keys in enumerate(inside):  # row r has mask r mod their number
            mine = slice(i, None, len(inside))
            asked = slice(None) if site.joint else mine  # joint attention's words are those of all rows
            f_o, f_b = (attention(q[asked], *_only(side, source.k[asked], source.v[asked])) for side in (keys, ~keys))
            made = f_o * m[asked] + f_b * (1 - m[asked])  # section 3.3
            out[mine] = made[mine] if site.joint else made
        return out


def _only(keys: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The tokens of tensors [rows, tokens, channels] that a boolean [tokens] on the CPU chooses,
    or all if it chooses none."""
    if not keys.any():
        return list(tensors)
    index = keys.nonzero()[:, 0].to(tensors[0].device)
    return [t.index_select(1, index) for t in tensors]
