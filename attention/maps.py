"""Cross-attention maps as tensors, for losses on them; edits do without (control.py)."""
from functools import partial

from torch import Tensor

from .control import host_attention


def cross_attention_maps(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """A [B,heads,places,tokens] of q [B,places,C] and k [B,tokens,C]: softmax(q kᵀ/√d)."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def recording(model_options, sites, found: list) -> dict:
    """model_options under which a forward adds the maps of these cross-attentions, (section, block, depth) in the order in
    which they run, to `found`. What is computed stays the same."""
    to = model_options["transformer_options"]
    slots = dict(to.get("patches_replace", {}).get("attn2", {}))
    for site in sites:
        slots[site] = partial(_at, found, slots.get(site, slots.get(site[:2], host_attention)))
    replaced = {**to.get("patches_replace", {}), "attn2": slots}
    return {**model_options, "transformer_options": {**to, "patches_replace": replaced}}


def _at(found, inner, q, k, v, options):
    found.append(cross_attention_maps(q, k, options["n_heads"]))
    return inner(q, k, v, options)
