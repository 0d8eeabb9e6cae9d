"""MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing. Cao, Wang, Qi, Shan,
Qie, Zheng, ICCV 2023. arXiv:2304.08465

From step S and layer L on, the target's queries look up the source's contents: out = Attention(Q, K_s, V_s), so the new
prompt gives pose and layout and the source its appearance. To keep foreground and background apart (section 3.3), with
masks M_s, M of the object in source and target:

    f_o = Attention(Q, K_s, V_s; M_s)    f_b = Attention(Q, K_s, V_s; 1 - M_s)    out = f_o ⊙ M + f_b ⊙ (1 - M)

where a mask in an attention leaves only those keys. The masks are given, or are cross-attention maps of the object's
words, scaled to 0..1 and cut at a threshold (0.1), or as Latent Blend has them, refined.
Keys are gathered, so any attention function serves. K_s and V_s are read by the reference branch at the inversion's own
latents, never from a reconstruction that drifts: this is also Tuning-Free Inversion-Enhanced Control (Duan, Cui, Kang,
Zhang, Fei, Fan, Huang 2023, arXiv:2312.14611).
As in the authors' code the null prompt's rows look up what the source shows under the null prompt.
Differs from the paper: the target's maps are means over all steps before, not of the step alone; an empty side of M_s
at a layer means all its keys.
Checked against TencentARC/MasaCtrl@d0ba16b (Apache-2.0): a whole run (numbers in tests/data/null_rows.json).
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..editing.layers import SelfAttentionEdit
from ..editing.masks import otsu
from ..editing.sites import in_tiles, mask_at
from ..host.batch import repeat_to_batch_size


def object_mask(maps, size, threshold):
    """[B, h, w] in {0, 1} from words' maps [B, words, h', w']: their sum, scaled to 0..1, where it is at least
    `threshold`, or at 0 over Otsu's."""
    total = maps.float().sum(1, keepdim=True)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    scaled = (total - low) / (high - low).clamp(min=torch.finfo(total.dtype).tiny)
    level = threshold or otsu(scaled)[:, 0]
    return (F.interpolate(scaled, size)[:, 0] >= level).float()


@dataclass(frozen=True, eq=False)
class MutualSelfAttention(SelfAttentionEdit):
    """source, target: masks [B, h, w] at the latent's size, 1 on the object, or None; gathered(run): in place of the
    target's, that of its words in this run so far, or None."""
    source: torch.Tensor = None
    target: torch.Tensor = None
    gathered: object = None
    needs, name = "kv", "Mutual Self-Attention"
    follows = True

    @property
    def masks(self):
        return [m for m in (self.source, self.target) if m is not None]

    def before(self, run, x, sigma):
        mask = self.gathered(run) if self.gathered else None
        if mask is not None:
            run.memory(self)["target"] = mask
        return x

    def attend(self, rows, site, q, k, v, source, attention):
        target = rows.call.run.memory(self).get("target", self.target)
        if target is None or in_tiles(self, rows, site, q):
            return attention(q, source.k, source.v)
        inside = mask_at(self.source, rows, site) >= 0.5  # [masks, keys]
        m = repeat_to_batch_size(mask_at(target, rows, site), rows.count)[..., None].to(q)
        out = torch.empty_like(q)
        for i, keys in enumerate(inside):
            mine = slice(i, None, len(inside))
            f_o, f_b = (attention(q[mine], *_only(side, source.k[mine], source.v[mine])) for side in (keys, ~keys))
            out[mine] = f_o * m[mine] + f_b * (1 - m[mine])
        return out


def _only(keys, *tensors):
    """The tokens of some (rows, tokens, channels) that a boolean [tokens] on the CPU names; all of them if it names
    none."""
    if not keys.any():
        return tensors
    index = keys.nonzero()[:, 0].to(tensors[0].device)
    return [t.index_select(1, index) for t in tensors]
