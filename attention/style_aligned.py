"""Style Aligned Image Generation via Shared Attention. Hertz, Voynov, Fruchter, Cohen-Or, CVPR 2024. arXiv:2312.02133

Pictures take on the style of a reference r by attending, in every self-attention, to its tokens beside their own, with
queries and keys normalised to the reference's statistics (mean and deviation of each channel over the tokens):

    Q̂_t = AdaIN(Q_t, Q_r)    K̂_t = AdaIN(K_t, K_r)    out = Attention(Q̂_t, [K̂_t; K_r], [V_t; V_r])

r is the first row of the batch or, to transfer the style of a given picture, its inversion; then the authors' code
raises the reference's scores by a shift (ln 2), and may scale them:  score_r <- scale · score_r + shift.
No map is made: scaling the scores is scaling K_r, and a shift is one more channel in each head, constant in the queries
and in the keys the shift; so fused kernels do the work.
As in the authors' code the null prompt's rows share what r shows under the null prompt, and every GroupNorm takes its
mean and variance over the tokens of both pictures. (They wrap LayerNorms alike, which changes nothing: those normalise
each token.)
Differs from the paper: K_r, V_r are read at the inversion's own latents.
Checked against google/style-aligned@2faf0af (Apache-2.0): a whole run (numbers in tests/data/null_rows.json).
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ..editing.editor import Editor
from ..editing.layers import SelfAttentionEdit
from ..editing.sites import AttentionEdit, Rows, Site, Source, source_of
from ..host.options import with_hooks

NAME = "Style Aligned"


def adain(x, reference):
    """x [rows, tokens, channels] with the mean and deviation over tokens that each channel of the reference has."""
    (mean, std), (mean_r, std_r) = ((y.float().mean(1, keepdim=True), (y.float().var(1, keepdim=True) + 1e-5).sqrt())
                                    for y in (x, reference))
    return ((x - mean) / std * std_r + mean_r).to(x)


def biased(q, k, v, bias, heads, attention):
    """Attention with bias[key] added to the scores, through any function that divides scores by the root of a head's
    width.

    Each head is given eight more channels, as kernels like them, of which one carries the bias."""
    dim = q.shape[-1] // heads
    wide = dim + 8
    q, k, v = (F.pad(x.unflatten(-1, (heads, dim)), (0, 8)) for x in (q * (wide / dim) ** 0.5, k, v))
    q[..., dim], k[..., dim] = wide ** 0.5, bias.to(k)[:, None]
    return attention(*(x.flatten(2) for x in (q, k, v))).unflatten(-1, (heads, wide))[..., :dim].flatten(2)


@dataclass(frozen=True)
class Sharing:
    """scale, shift: of the reference's scores; normalised: whether queries and keys take its statistics."""
    scale: float
    shift: float
    normalised: bool

    def __call__(self, q, k, v, reference, heads, attention):
        """The output for q, k, v [rows, tokens, channels] that share the reference's, as many rows."""
        if self.normalised:
            q, k = adain(q, reference.q), adain(k, reference.k)
        keys, values = torch.cat([k, self.scale * reference.k], 1), torch.cat([v, reference.v], 1)
        if self.shift:
            bias = torch.cat([x.new_full(x.shape[1:2], shift) for x, shift in ((k, 0.0), (reference.k, self.shift))])
            return biased(q, keys, values, bias, heads, attention)
        return attention(q, keys, values)


@dataclass(frozen=True, eq=False)
class ReferencePicture(SelfAttentionEdit):
    """Every row shares the inversion's picture."""
    lends = True
    share: Sharing = None
    needs, name, rank = "qkv", NAME, -1  # others know no more keys than the grid has

    def attend(self, rows, site, q, k, v, source, attention):
        _require_all(rows, q)
        # in q's tiles
        k, v, *source = (x.reshape(len(q), -1, x.shape[-1]) for x in (k, v, source.q, source.k, source.v))
        return self.share(q, k, v, Source(*source), site.heads, attention)


@dataclass(frozen=True, eq=False)
class ReferenceRow(AttentionEdit):
    """Rows share the first of their batch, which stays as it is."""
    layers: frozenset
    start: float
    end: float
    roles: tuple = ("target", "null")
    share: Sharing = None
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
        k, v = (x.reshape(len(q), -1, x.shape[-1]) for x in (k, v))
        first = len(q) // rows.count  # rows of q that are the first picture's: its tiles
        reference = Source(*(x[:first].repeat(rows.count - 1, 1, 1) for x in (q, k, v)))
        others = self.share(q[first:], k[first:], v[first:], reference, site.heads, attention)
        return torch.cat([attention(q[:first], k[:first], v[:first]), others])


def _require_all(rows, q):
    if len(q) % rows.count:
        raise ValueError(f"{NAME} is given {len(q)} of {rows.count} rows by another editor that has a mask for each "
                         "row, and shares among all: give that editor one mask.")


def statistics(x, groups):
    """[rows, groups, 2]: mean and variance of x (rows, channels, height, width) in each group of channels."""
    x = x.float().unflatten(1, (groups, -1)).flatten(2)
    return torch.stack([x.mean(2), x.var(2, correction=0)], 2)


def shared_norm(norm, x, reference):
    """GroupNorm of x (rows, channels, height, width) with the mean and variance of x and of a reference together, as
    many values of each; reference: its `statistics`."""
    (mean, var), (mean_r, var_r) = (s.unbind(2) for s in (statistics(x, norm.num_groups), reference))
    mean, var = (mean + mean_r) / 2, (var + var_r) / 2 + ((mean - mean_r) / 2) ** 2
    probe = x.new_tensor([1.0, -1.0]).expand(1, x.shape[1], 2)  # has mean 0 and variance 1, so shows weight and bias
    high, low = norm.forward(probe).float().unbind(2)
    weight, bias = ((high - low) / 2 * (1 + norm.eps) ** 0.5)[..., None, None], ((high + low) / 2)[..., None, None]
    scaled = (x.float().unflatten(1, (norm.num_groups,
                                      -1)).flatten(2) - mean[..., None]) / (var[..., None] + norm.eps).sqrt()
    return (weight * scaled.view(x.shape) + bias).to(x)


@dataclass(frozen=True, eq=False)
class SharedNorms(Editor):
    """Every GroupNorm takes its statistics over the rows' own tokens and the reference's: the inversion's picture, or
    the first row of the batch without one."""
    inversion: object
    start: float
    end: float
    roles: tuple = ("target", "null")
    lends = True

    def acts(self, run, sigma):
        return run.within(sigma, self.start, self.end)

    def reads(self, run, sigma):
        return self.inversion is not None and self.acts(run, sigma)

    def keeps(self, run, site, sigma):
        return "q" if self.reads(run, sigma) else ""

    def reference(self, rows, site, x, groups):
        """The statistics [rows, groups, 2] that these rows share."""
        if self.inversion is None:
            return statistics(x[:1], groups).expand(len(x), -1, -1)
        return source_of(self, rows, site).q

    @staticmethod
    def install(model_options, edits, call):
        """model_options whose forwards pass every GroupNorm through `_norm`, where an edit acts."""
        acting = [e for e in edits if call.mode == "read" or e.acts(call.run, call.sigma)]
        if not acting:
            return model_options

        def register(unet, options):
            for name, module in unet.named_modules():
                if isinstance(module, torch.nn.GroupNorm):
                    yield module.register_forward_hook(partial(_norm, acting, call, name, options))

        return with_hooks(model_options, "palimpsest.norms", register)


def _norm(edits, call, name, options, norm, inputs, out):
    """One GroupNorm's output, with the shared statistics in the rows of the edits' roles."""
    site, x = Site("norm", (name,), (1,), None, None), inputs[0]
    parts = call.parts(options)
    if call.mode == "read":
        for (index, *_, entry), shown in zip(parts, x.chunk(len(parts))):
            if any(e.reads(call.run, level) for e in call.readers(index, edits) for level in call.levels):
                features = {"q": statistics(shown, norm.num_groups)}
                call.run.reference.keep(edits[0].inversion, call, index, site, entry.get("area"), features)
        return out
    made = list(out.chunk(len(parts)))
    for i, ((*_, role, entry), own) in enumerate(zip(parts, x.chunk(len(parts)))):
        for edit in (e for e in edits if role in e.roles):
            made[i] = shared_norm(norm, own, edit.reference(Rows(call, entry, len(own)), site, own, norm.num_groups))
    return torch.cat(made)
