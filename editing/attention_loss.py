"""Losses on the target's cross-attention maps, and their gradient, which most moves of the latent follow.

Maps are made at the sites that a loss reads, and in that forward only. Edits of attention need none (sites.py).
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..host.gradients import derivative, without_control_weights
from ..host.guiders import predictions
from ..host.network import Attention, shape_of, with_attention
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


def of_text(maps: Tensor, rows: Rows) -> Tensor:
    """Maps [..., tokens] over the text of the rows' entry. The host may repeat a shorter one's columns."""
    return maps.unflatten(-1, (-1, rows.entry["model_conds"]["c_crossattn"].cond.shape[1])).sum(-2)


def loss_gradient(run, x: Tensor, sigma: float, at: Callable, look: Callable, loss: Callable,
                  beside: Iterable[Editor] = ()) -> tuple[Tensor, Tensor]:
    """(L [B], c²·∂L/∂x) for a loss() [B] of what the target's cross-attention shows.

    at: at(site) chooses the sites.
    look: look(rows, site, q, k) is shown the target's rows there.
    loss: loss() is L then; None where no entry of the target is evaluated at σ, whose loss and gradient are 0.
    beside: editors that see more of the same forward.

    With z = x/c the latent of the papers, c = √(1 + σ²) (1 on flow models), z - s·∂L/∂z is x - s·c²·∂L/∂x. The run's
    own editors take no part. ControlNets do, as constants."""
    raise_if_cancelled()
    targets = without_control_weights(run.targets())
    with run.graph() as options:
        seen = x.clone().requires_grad_()
        call = Call(run, [targets], sigma, seen)
        predictions(run.guider, [targets], seen, sigma, call.install(options, [_Shown(at, look), *beside]))
        found = loss()
        if found is None:
            return x.new_zeros(len(x)), torch.zeros_like(x)
        scale = 1 if prediction_type(run.guider.model_patcher) == "flow" else 1 + sigma ** 2
        return found.detach(), scale * derivative(found.sum(), seen, run.guider.inner_model)
