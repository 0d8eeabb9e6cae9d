"""Style Aligned Image Generation via Shared Attention. Hertz, Voynov, Fruchter, Cohen-Or, CVPR 2024. arXiv:2312.02133

Pictures take on the style of a reference r by attending, in every self-attention, to its tokens beside their own.
Queries and keys are normalised to the reference's statistics, mean and deviation of each channel over the tokens:

    Q̂_t = AdaIN(Q_t, Q_r)    K̂_t = AdaIN(K_t, K_r)    out = Attention(Q̂_t, [K̂_t; K_r], [V_t; V_r])

r is the first row of the batch, or the inversion of a given picture whose style is transferred. For the transfer the
authors' code changes the reference's scores:  score_r <- scale · score_r + shift,  with the shift ln 2.
No map is made. Scaling the scores is scaling K_r. A shift is one more channel in each head, constant in the queries and
the shift in the keys. An attention mask would do the same, but kernels and other packs' patches do not all take one.
As in the authors' code the null prompt's rows share what r shows under the null prompt, and every GroupNorm takes its
mean and variance over the tokens of both pictures. They wrap LayerNorms alike, which changes nothing: those normalise
each token.
Differs from the paper: K_r and V_r of a given picture are read at the inversion's own latents. On transformers whose
queries and keys are turned by their place there is no AdaIN; words stand beside both pictures' tokens in the softmax.
Checked against: google/style-aligned@2faf0af (Apache-2.0), a whole run (numbers in tests/data/null_rows.json).
"""
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.features import FeatureEdit
from ..editing.layers import SelfAttentionEdit
from ..editing.sites import Attend, AttentionEdit, Source, in_rows_of, others_inside, source_of
from ..host.network import group_norms, knows_places
from ..inversion.trajectory import Inversion

NAME = "Style Aligned"
NEVER = -1e4  # a score that gives no share, and of which fp16 still tells the difference


def adain(x: Tensor, reference: Tensor) -> Tensor:
    """x [rows, tokens, channels] with the mean and deviation over tokens that each channel of the reference has."""
    (mean, std), (mean_r, std_r) = ((y.float().mean(1, keepdim=True), (y.float().var(1, keepdim=True) + 1e-5).sqrt())
                                    for y in (x, reference))
    return ((x - mean) / std * std_r + mean_r).to(x)


def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int, attention: Attend) -> Tensor:
    """Attention with bias [rows or 1, keys] added to the scores, through any function that divides scores by the root
    of a head's width.

    Each head gets eight more channels, which suits the kernels, and one of them carries the bias."""
    dim = q.shape[-1] // heads
    wide = dim + 8
    q, k, v = (F.pad(x.unflatten(-1, (heads, dim)), (0, 8)) for x in (q * (wide / dim) ** 0.5, k, v))
    q[..., dim], k[..., dim] = wide ** 0.5, bias.to(k)[..., None]
    return attention(*(x.flatten(2) for x in (q, k, v))).unflatten(-1, (heads, wide))[..., :dim].flatten(2)


def weighed(q: Tensor, k: Tensor, v: Tensor, own: int, weight: Tensor, attention: Attend) -> Tensor:
    """Attention whose keys from the number `own` on count e^b = weight [rows or 1] times, b the bias of their scores,
    through functions that are given no channels more. Keys that such a function has beside these count once."""
    theirs = torch.cat([torch.zeros_like(v[:, :own]), v[:, own:]], 1)
    ones = torch.cat([torch.zeros_like(v[:, :own]), torch.ones_like(v[:, own:])], 1)
    beside = attention(q, k, torch.zeros_like(v))
    share, shown = attention(q, k, ones) - beside, attention(q, k, theirs) - beside
    more = (weight - 1).to(v)[:, None, None]
    return (attention(q, k, v) + more * shown) / (1 + more * share).clamp(min=1e-4)


@dataclass(frozen=True)
class Sharing:
    """How attention is shared.

    scale, shift: of the reference's scores.
    normalised: whether queries and keys take the reference's statistics.
    """
    scale: float
    shift: float
    normalised: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, reference: Source, heads: int, attention: Attend,
                 alone: int = 0, inner=False) -> Tensor:
        """The output for q, k, v [rows, tokens, channels] that share the reference's, as many rows; the first `alone`
        of them do not. inner: whether `attention` holds other edits, whose heads have the width of the network's."""
        if self.normalised:
            q, k = adain(q, reference.q), adain(k, reference.k)  # Q̂_t, K̂_t
        theirs = reference.k if self.scale == 1 else self.scale * reference.k
        if not self.shift and not alone:
            return attention(q, torch.cat([k, theirs], 1), torch.cat([v, reference.v], 1))
        bias, own = k.new_full((len(k) if alone else 1,), self.shift), k.shape[1]  # score_r <- scale · score_r + shift
        bias[:alone] = NEVER
        k, v = torch.cat([k, theirs], 1), torch.cat([v, reference.v], 1)
        if inner:
            return weighed(q, k, v, own, bias.float().exp(), attention)
        return biased(q, k, v, F.pad(bias[:, None].expand(-1, k.shape[1] - own), (own, 0)), heads, attention)


@dataclass(frozen=True, eq=False)
class ReferencePicture(SelfAttentionEdit):
    """Every row shares the inversion's picture."""
    _: KW_ONLY
    share: Sharing
    name = NAME
    lends = True
    rank = -1  # others know no more keys than the grid has

    @property
    def needs(self):
        return "qkv" if self.share.normalised else "kv"

    def attend(self, rows, site, q, k, v, source, attention):
        _require_all(rows, q)
        k, v, *reference = in_rows_of(q, k, v, *(source[name] for name in self.needs))
        return self.share(q, k, v, Source(zip(self.needs, reference)), site.heads, attention,
                          inner=others_inside(self, rows, site))


@dataclass(frozen=True, eq=False)
class ReferenceRow(AttentionEdit):
    """Rows share the first of their batch, which stays as it is.

    layers: addresses of self-attention.
    start, end: percents of the schedule between which they share.
    """
    layers: frozenset
    start: float
    end: float
    share: Sharing
    roles: tuple = ("target",)
    name = NAME
    rank = -1

    def begin(self, run):
        if run.shape[0] < 2:
            raise ValueError(f"{NAME} without an INVERSION shares the style of the first row, and the latent being "
                             f"sampled has {run.shape[0]} row: give it two or more (Repeat Latent Batch), or connect "
                             "an INVERSION.")
        run.warn_if_idle(NAME, lambda sigma: run.within(sigma, self.start, self.end))

    def acts(self, run, site, sigma):
        return site.kind == "self" and site.address in self.layers and run.within(sigma, self.start, self.end)

    def attend(self, rows, site, q, k, v, source, attention):
        _require_all(rows, q)
        k, v = in_rows_of(q, k, v)
        if knows_places(rows.call.network):  # takes all rows at once, each beside words of its own
            reference = Source((name, x[:1].expand_as(x)) for name, x in zip("qkv", (q, k, v)))
            return self.share(q, k, v, reference, site.heads, attention, alone=1,
                              inner=others_inside(self, rows, site))
        tiles = len(q) // rows.count  # of each picture
        first, others = ([x[:tiles] for x in (q, k, v)], [x[tiles:] for x in (q, k, v)])
        reference = Source(zip("qkv", (x.repeat(rows.count - 1, 1, 1) for x in first)))
        return torch.cat([attention(*first), self.share(*others, reference, site.heads, attention,
                                                        inner=others_inside(self, rows, site))])


def _require_all(rows, q):
    if len(q) % rows.count:
        raise ValueError(f"{NAME} is given {len(q)} of {rows.count} rows by another editor that has a mask for each "
                         "row, and shares among all: give that editor one mask.")


def statistics(x: Tensor, groups: int) -> Tensor:
    """[rows, groups, 2]: mean and variance of x [rows, channels, height, width] in each group of channels."""
    x = x.float().unflatten(1, (groups, -1)).flatten(2)
    return torch.stack([x.mean(2), x.var(2, correction=0)], 2)


def shared_norm(norm, x: Tensor, reference: Tensor) -> Tensor:
    """GroupNorm of x [rows, channels, height, width] with the mean and variance of x and of a reference together, as
    many values of each; reference: its `statistics`."""
    (mean, var), (mean_r, var_r) = (s.unbind(2) for s in (statistics(x, norm.num_groups), reference))
    mean, var = (mean + mean_r) / 2, (var + var_r) / 2 + ((mean - mean_r) / 2) ** 2
    probe = x.new_tensor([1.0, -1.0]).expand(1, x.shape[1], 2)  # has mean 0 and variance 1, so shows weight and bias
    high, low = norm.forward(probe).float().unbind(2)
    weight, bias = ((high - low) / 2 * (1 + norm.eps) ** 0.5)[..., None, None], ((high + low) / 2)[..., None, None]
    groups = x.float().unflatten(1, (norm.num_groups, -1)).flatten(2)
    scaled = (groups - mean[..., None]) / (var[..., None] + norm.eps).sqrt()
    return (weight * scaled.view(x.shape) + bias).to(x)


@dataclass(frozen=True, eq=False)
class SharedNorms(FeatureEdit):
    """Every GroupNorm takes its statistics over the rows' own tokens and the reference's.

    inversion: the reference; None: the first row of the batch is.
    start, end: percents of the schedule between which norms are shared.
    """
    inversion: Inversion | None
    start: float
    end: float
    roles: tuple = ("target",)
    name = NAME
    lends = True

    def acts(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def reads(self, run, sigma):
        return self.inversion is not None and self.acts(run, sigma)

    def modules(self, network):
        return {(name,): norm for name, norm in group_norms(network)}

    def grid(self, out):
        return (1,)

    def shown(self, module, x, out):
        return statistics(x, module.num_groups)

    def edited(self, rows, site, module, x, out):
        if self.inversion is None:
            reference = statistics(x[:1], module.num_groups).expand(len(x), -1, -1)
        else:
            reference = source_of(self, rows, site).feature
        return shared_norm(module, x, reference)
