"""Losses on the target's cross-attention maps, and their gradient, which most moves of the latent follow.

Maps are made at the sites that a loss reads, and in that forward only; edits of attention do without (sites.py).
"""
from dataclasses import dataclass
from functools import partial

import comfy.model_management as management
import comfy.samplers
import torch
from torch import Tensor

from ..host.gradients import derivative, graph, without_control_weights
from ..host.sampling import prediction_type
from ..host.tiles import locating
from ..host.unet import host_attention
from .call import Call
from .sites import AttentionEdit


def cross_attention_maps(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """A [B,heads,places,tokens] of q [B,places,C] and k [B,tokens,C]: softmax(q kᵀ/√d)."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def with_maps_recorded(model_options, sites, found: list) -> dict:
    """model_options under which a forward adds the maps of these cross-attentions, (section, block, depth) in the order
    in which they run, to `found`. What is computed stays the same."""
    to = model_options["transformer_options"]
    slots = dict(to.get("patches_replace", {}).get("attn2", {}))
    for site in sites:
        slots[site] = partial(_record, found, slots.get(site, slots.get(site[:2], host_attention)))
    replaced = {**to.get("patches_replace", {}), "attn2": slots}
    return {**model_options, "transformer_options": {**to, "patches_replace": replaced}}


def _record(found, inner, q, k, v, options):
    found.append(cross_attention_maps(q, k, options["n_heads"]))
    return inner(q, k, v, options)


@dataclass(frozen=True, eq=False)
class _Shown(AttentionEdit):
    """Shows the target's rows at the cross-attentions of which at(site) says so to look(rows, site, q, k)."""
    at: object
    look: object

    def acts(self, run, site, sigma):
        return site.kind == "cross" and self.at(site)

    def observe(self, rows, site, q, k, v, attention):
        self.look(rows, site, q, k)


def of_text(maps, rows) -> Tensor:
    """Maps [..., tokens] over the text of the rows' entry; the host may repeat a shorter one's columns."""
    return maps.unflatten(-1, (-1, rows.entry["model_conds"]["c_crossattn"].cond.shape[1])).sum(-2)


def loss_gradient(run, x, sigma, at, look, loss, install=lambda options, call: options):
    """(L [B], c²·∂L/∂x) for a loss() [B] of what look(rows, site, q, k) was shown of the target at the sites chosen by
    at(site); install(options, call): another editor's install, to see more.

    With z = x/c the latent of the papers, c = √(1 + σ²) (1 on flow models), z - s·∂L/∂z is x - s·c²·∂L/∂x. Editors take
    no part; ControlNets do, as constants. Where no entry of the target is evaluated at σ, both are 0."""
    management.throw_exception_if_processing_interrupted()
    targets = without_control_weights(run.targets())
    with graph(run, run.memory(graph)) as options:
        seen = x.clone().requires_grad_()
        call = Call(run, "write", [targets], sigma, seen)
        options = install(AttentionEdit.install(locating(options, call), [_Shown(at, look)], call), call)
        comfy.samplers.calc_cond_batch(run.guider.inner_model, [targets], seen, seen.new_full((len(x),), sigma),
                                       options)
        found = loss()
        if found is None:
            return x.new_zeros(len(x)), torch.zeros_like(x)
        scale = 1 if prediction_type(run.guider.model_patcher) == "flow" else 1 + sigma ** 2
        return found.detach(), scale * derivative(found.sum(), seen, run.guider.inner_model)
