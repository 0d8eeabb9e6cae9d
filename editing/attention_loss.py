"""Losses on the target's cross-attention maps, and their gradient, which most moves of the latent follow.

Maps are made at the sites that a loss reads, and in that forward only. Edits of attention need none (sites.py). In
joint attention they are over the words alone, as cross-attention's are: the picture's part of the softmax is left out.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.gradients import derivative, without_control_weights
from ..host.guiders import predictions
from ..host.network import Attention, shape_of, text_runs, with_attention
from ..host.progress import raise_if_cancelled
from ..host.sampling import prediction_type
from .call import Call
from .editor import Editor
from .sites import AttentionObserver, Rows, Site


def cross_attention_maps(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """A [B,heads,cells,tokens] of q [B,cells,C] and k [B,tokens,C]: softmax(q kᵀ/√d)."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def with_maps_recorded(model_options: dict, addresses: Iterable[tuple], found: list) -> dict:
    """model_options under which a forward adds the maps of the cross-attentions at these addresses to `found`, in the
    order in which they run. What is computed stays the same."""
    def recorded(inner):
        def attention(q, k, v, options):
            found.append(cross_attention_maps(q, k, shape_of(options).heads))
            return inner(q, k, v, options)
        return attention

    return with_attention(model_options, {Attention("cross", address): recorded for address in addresses})


@dataclass(frozen=True, eq=False)
class _Shown(AttentionObserver):
    """Calls look(rows, site, q, k) with the target's rows at each cross-attention where at(site) is true."""
    at: Callable[[Site], bool]
    look: Callable[[Rows, Site, Tensor, Tensor], None]

    def acts(self, run, site, sigma):
        return site.kind == "cross" and self.at(site)

    def observe(self, rows, site, q, k, v, attention):
        self.look(rows, site, q, k)


def text_maps(q: Tensor, k: Tensor, site: Site, network, columns: int) -> Tensor:
    """A [B,heads,cells,columns] of what q gives to a text of so many columns among the keys of a cross-attention, over
    what it gives to all of them. A column that has several keys has their sum."""
    runs = text_runs(network, columns, k.shape[1])
    keys = torch.cat([k[:, key:key + count] for key, _, count in runs], 1)
    maps = cross_attention_maps(q, keys, site.heads).split([count for *_, count in runs], -1)
    return reduce(torch.add, (F.pad(A, (column, columns - column - count))
                              for A, (_, column, count) in zip(maps, runs)))


def on_grid(maps: Tensor, site: Site) -> Tensor:
    """Maps [B,cells,…] as [B,h,w,…], the mean over a video's frames."""
    return maps.unflatten(1, (-1, *site.grid[-2:])).mean(1)


def scale_of(run, sigma: float) -> float:
    """c, of which the papers' latent is z = x/c at σ: √(σ_data² + σ²), with a σ_data of 1 on all models but EDM's, and
    1 on flow models."""
    model = run.guider.model_patcher
    data = float(getattr(model.get_model_object("model_sampling"), "sigma_data", 1.0))
    return 1.0 if prediction_type(model) == "flow" else (data ** 2 + sigma ** 2) ** 0.5


def noise_of(run, sigma: float) -> float:
    """The deviation of the noise in the papers' latent z at σ: √(1 - ᾱ), or σ on flow models."""
    return sigma / scale_of(run, sigma)


def at_words(resolution: float, layers: frozenset | None) -> Callable[[Site], bool]:
    """Chooses the sites of a resolution, or those of its that are among some addresses."""
    return lambda site: site.resolution == resolution and (layers is None or site.address in layers)


def loss_gradient(run, x: Tensor, sigma: float, at: Callable, look: Callable, loss: Callable,
                  beside: Iterable[Editor] = ()) -> tuple[Tensor, Tensor]:
    """(L [B], c²·∂L/∂x) for a loss() [B] of what the target's cross-attention shows.

    at: at(site) chooses the sites.
    look: look(rows, site, q, k) is shown the target's rows there.
    loss: loss() is L then; None where no entry of the target is evaluated at σ, whose loss and gradient are 0.
    beside: editors that see more of the same forward.

    With z = x/c the latent of the papers (`scale_of`), z - s·∂L/∂z is x - s·c²·∂L/∂x. The run's own editors take no
    part. ControlNets do, as constants."""
    raise_if_cancelled()
    targets = without_control_weights(run.targets())
    with run.graph() as options:
        seen = x.clone().requires_grad_()
        call = Call(run, [targets], sigma, seen)
        predictions(run.guider, [targets], seen, sigma, call.install(options, [_Shown(at, look), *beside]))
        found = loss()
        if found is None:
            return x.new_zeros(len(x)), torch.zeros_like(x)
        return found.detach(), scale_of(run, sigma) ** 2 * derivative(found.sum(), seen, run.guider.inner_model)
