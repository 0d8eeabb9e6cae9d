"""The network that is edited, whatever its family: where its attention and its features are, and what reaches them.

Each family has a door of its own. The U-Nets' is unet.py, with what is added to their inputs in unet_inputs.py; dit.py
is that of transformers whose attention joins words and picture. The engine, papers and nodes ask here, so that none of
them knows which family it is.
"""
from collections.abc import Callable, Mapping

import comfy.model_base
import torch
from comfy.ldm.flux.math import apply_rope
from torch import Tensor

from . import dit, unet
from .unet import Attention, Shape, enlarging, group_norms, host_attention, require_unet, residual_branch
from .unet_inputs import with_added, with_value_inputs, with_widths_measured

__all__ = ["Attention", "attentions", "enlarging", "group_norms", "head", "head_tokens", "host_attention",
           "joins_words", "knows_places", "require_attention", "require_text_blocks", "require_unet", "require_words",
           "residual_branch", "resolutions", "shape_of", "takes_value_inputs", "text_blocks", "text_filled",
           "text_runs", "tokens_beside", "turned", "with_added", "with_attention", "with_longer_text",
           "with_value_inputs", "with_widths_measured", "word_layers"]


def resolutions(network) -> dict[tuple, float]:
    """{address of every transformer block: the side of its grid over the latent's}, in the order in which they run."""
    return (dit if dit.known(network) else unet).resolutions(network)


def attentions(network) -> dict[Attention, float]:
    """{every attention of the network: the side of its grid over the latent's}. Joint attention is the picture's
    self-attention and the cross-attention of picture and words."""
    return (dit if dit.known(network) else unet).attentions(network)


def joins_words(network) -> bool:
    """Whether attention joins words and picture in one softmax. Then the keys of its cross-attention are all tokens,
    the picture's own last."""
    return dit.joins(network)


def text_runs(network, columns: int, keys: int) -> list[tuple[int, int, int]]:
    """Where the columns of a prompt stand among the keys of cross-attention: (the first key, the first column, how
    many) of each run. A U-Net's host may repeat them all."""
    if dit.known(network):
        return dit.text_runs(network, columns)
    return [(start, 0, columns) for start in range(0, keys, columns)]


def word_layers(network) -> frozenset | None:
    """The addresses of the cross-attention at which maps of words are read; None: all of a resolution."""
    return dit.word_layers(network) if dit.known(network) else None


def text_blocks(network) -> frozenset:
    """The addresses of blocks in which words have weights of their own, and a token more changes no other's."""
    return dit.text_blocks(network) if dit.known(network) else frozenset()


def text_filled(network, columns: int) -> int:
    """How many columns of zeros the host puts before a prompt of so many."""
    return dit.text_filled(network, columns) if dit.known(network) else 0


def head(network):
    """What turns the network's last features into the prediction."""
    return (dit if dit.known(network) else unet).head(network)


def head_tokens(network, size: tuple) -> tuple[tuple, slice] | None:
    """Of a transformer (their grid, which they are) of the picture's tokens among those that the head is given."""
    return dit.head_tokens(network, size) if dit.known(network) else None


def with_attention(model_options: dict, wrap: Mapping[Attention, Callable],
                   prepare: Mapping[Attention, Callable] | None = None,
                   look: Mapping[Attention, Callable] | None = None) -> dict:
    """model_options under which other functions compute some of the attentions.

    wrap: {the attention: function(inner) -> the new one}, where inner is what computes it now. All of them are called
    with (q, k, v, options), each of q, k and v (rows, tokens, heads · channels).
    prepare: {one of them: function(q, k, v, beside, options) -> (q, k, v, beside) that take their places, or None}.
    beside: q, k, v of the tokens that take part and are not the picture's. It comes before all others.
    look: {one of them: function(inner, q, k, v, options) that sees what is given, before anything changes it}."""
    joint = any(address[0] in dit.SECTIONS for _, address in wrap)
    return (dit if joint else unet).with_attention(model_options, wrap, prepare or {}, look or {})


def shape_of(options: dict) -> Shape:
    """The shape of the attention that is called with these options."""
    return options[dit.SHAPE] if dit.SHAPE in options else unet.shape_of(options)


def tokens_beside(options: dict) -> int:
    """How many keys of the joint attention that is called with these options stand before the picture's own."""
    return options.get(dit.BESIDE, 0)


def with_longer_text(network, x: Tensor, by: int) -> Tensor:
    """The picture's q or k [B, tokens, channels], as they are where the text has so many tokens more: some families
    place the picture behind it."""
    if not by or not dit.known(network) or not dit.FAMILIES[type(network)].behind:
        return x
    place = torch.zeros(1, 1, len(network.axes_dims), device=x.device)
    place[..., 0] = by
    by_head = x.unflatten(-1, (-1, sum(network.axes_dims)))
    return apply_rope(by_head, by_head, network.rope_embedder(place).movedim(1, 2))[0].flatten(-2)


def knows_places(network) -> bool:
    """Whether keys hold each token's place in the latent, so that those of a whole serve no window of it."""
    return dit.known(network)


def takes_value_inputs(network) -> bool:
    """Whether `with_value_inputs` reaches what the values of cross-attention are made from."""
    return not dit.known(network)


def turned(network) -> bool:
    """Whether each token's place turns its q and k, which then have no statistics of their own."""
    return dit.known(network) and dit.FAMILIES[type(network)].turned


def require_attention(model, node: str):
    """ValueError where the self-attention of the MODEL's family is not known."""
    network = model.model.diffusion_model
    if not dit.known(network) and not unet.known(network):
        names = ", ".join(family.name for family in dit.FAMILIES.values())
        raise ValueError(f"{node} edits the self-attention of U-Nets (SD1.x, SD2.x, SDXL) and of {names}, this MODEL "
                         f"is {type(model.model).__name__} ({type(network).__name__}): choose a checkpoint of those "
                         "families. Another family is added in host/dit.py.")


def require_words(model, node: str, instead="use masks"):
    """ValueError where the attention of picture and words is not known. instead: what works there."""
    network = model.model.diffusion_model
    families = {kind: family.name for kind, family in dit.FAMILIES.items() if family.text}
    if type(network) not in families and not unet.known(network):
        raise ValueError(f"{node} finds words in the attention of U-Nets (SD1.x, SD2.x, SDXL) and of "
                         f"{', '.join(families.values())}, this MODEL is {type(model.model).__name__} "
                         f"({type(network).__name__}): choose a checkpoint of those families, or {instead}.")
    text_runs(network, 1, 1)  # raises where the network is of a kind that puts words elsewhere


def require_text_blocks(model, node: str):
    """ValueError where a MODEL has no `text_blocks`."""
    network = model.model.diffusion_model
    if not text_blocks(network):
        names = ", ".join(family.name for family in dit.FAMILIES.values() if family.apart)
        raise ValueError(f"{node} needs blocks in which words have a stream of their own, as {names} have, this MODEL "
                         f"is {type(model.model).__name__} ({type(network).__name__}): use Attention Store, with words "
                         "of the source.")
    if type(model.model) is getattr(comfy.model_base, "LongCatImage", None):
        raise ValueError(f"{node} puts its things behind the prompt, and a LongCatImage MODEL places the picture by "
                         "the prompt's length, so that it would show another one: use Attention Store, with words of "
                         "the source.")
