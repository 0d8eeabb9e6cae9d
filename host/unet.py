"""The door to the host's U-Nets (SD1.x, SD2.x, SDXL): where attention and features are, and what computes attention."""
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample

from .options import with_replaced

SLOTS = {"self": "attn1", "cross": "attn2"}


class Attention(NamedTuple):
    """One attention of the network.

    kind: "self" or "cross".
    address: (section, block, depth) of its transformer block, as the host counts.
    """
    kind: str
    address: tuple


class Shape(NamedTuple):
    """What the network says of the attention that it is computing.

    rows: of the forward.
    grid: of its image tokens, (height, width), of a video's (frames, height, width).
    heads: how many.
    """
    rows: int
    grid: tuple
    heads: int


def resolutions(unet) -> dict[tuple, float]:
    """{address of every transformer block: the side of its grid over the latent's}, in the order in which they run."""
    found, resolution = {}, 1.0
    for section, blocks in (("input", unet.input_blocks), ("middle", [unet.middle_block]),
                            ("output", unet.output_blocks)):
        for i, block in enumerate(blocks):
            for module in block:
                if isinstance(module, Downsample):
                    resolution /= 2
                elif isinstance(module, Upsample):
                    resolution *= 2
                elif isinstance(module, SpatialTransformer):
                    found.update({(section, i, depth): resolution for depth in range(len(module.transformer_blocks))})
    return found


def attentions(unet) -> dict[Attention, float]:
    """{every attention of the network: the side of its grid over the latent's}."""
    return {Attention(kind, address): resolution for kind in SLOTS
            for address, resolution in resolutions(unet).items()}


def with_attention(model_options: dict, wrap: Mapping[Attention, Callable],
                   prepare: Mapping[Attention, Callable], look: Mapping[Attention, Callable]) -> dict:
    """model_options under which other functions compute some of the attentions.

    wrap: {the attention: function(inner) -> the new one}, where inner is what computes it now. All of them are called
    with (q, k, v, options), each of q, k and v (rows, tokens, heads · channels).
    prepare: {one of them: function(q, k, v, beside, options) -> (q, k, v, beside) that take their places, or None}.
    beside: q, k, v of the tokens that take part and are not the picture's. It comes before all others.
    look: {one of them: function(inner, q, k, v, options) that sees what is given, before anything changes it}."""
    wrap = {at: partial(_prepared, around, prepare[at]) if at in prepare else around for at, around in wrap.items()}
    wrap = {at: partial(looked_at, around, look[at]) if at in look else around for at, around in wrap.items()}
    for kind, slot in SLOTS.items():
        mine = {address: around for (of, address), around in wrap.items() if of == kind}
        if mine:
            model_options = with_replaced(model_options, slot, mine, host_attention)
    return model_options


def _prepared(around, prepare, inner):
    def attention(q, k, v, options):
        none = [x[:, :0] for x in (q, k, v)]
        q, k, v, _ = prepare(q, k, v, none, options) or (q, k, v, none)
        return attend(q, k, v, options)

    attend = around(inner)
    return attention


def looked_at(around, look, inner):
    """around(inner), where `look` sees first what it is given."""
    def attention(q, k, v, options):
        look(inner, q, k, v, options)
        return attend(q, k, v, options)

    attend = around(inner)
    return attention


def host_attention(q, k, v, options):
    """The host's attention, as its U-Net calls it."""
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"],
                               transformer_options=options)


def shape_of(options: dict) -> Shape:
    """The shape of the attention that is called with these options."""
    rows, _, *grid = options["activations_shape"]
    return Shape(rows, tuple(grid), options["n_heads"])


def address_of(options: dict) -> tuple:
    """The address of the transformer block whose patch is called with these options."""
    return (*options["block"], options.get("block_index", 0))


def residual_branch(unet, number: int) -> torch.nn.Module:
    """What ends the residual branch of an output block, before its skip is added."""
    return unet.output_blocks[number][0].out_layers[-1]


def enlarging(unet) -> dict[tuple, torch.nn.Module]:
    """{("enlarged", number of an output block): what ends it by enlarging its grid}, in the order in which they run."""
    return {("enlarged", number): module for number, block in enumerate(unet.output_blocks) for module in block
            if isinstance(module, Upsample)}


def head(unet) -> torch.nn.Module:
    """What turns the decoder's features into the prediction."""
    return unet.out


def group_norms(unet) -> Iterator[tuple[str, torch.nn.GroupNorm]]:
    """(name, module) of every GroupNorm."""
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, torch.nn.GroupNorm))


def known(network) -> bool:
    """Whether it is a U-Net."""
    return isinstance(network, UNetModel)


def require_unet(model, node: str, instead=""):
    """ValueError where the MODEL is of another family. instead: what works there, as a clause."""
    network = model.model.diffusion_model
    if not known(network):
        raise ValueError(f"{node} edits the attention of U-Nets (SD1.x, SD2.x, SDXL), this MODEL is "
                         f"{type(model.model).__name__} ({type(network).__name__}): choose a checkpoint of those "
                         f"families{instead}.")
