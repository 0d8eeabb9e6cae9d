"""The door to the host's transformers, `FAMILIES`. In most of them attention joins words and picture.

Words and picture look up each other there, in one softmax. Edits of self-attention see the picture's own tokens alone,
on their grid. What they compute for these looks up the words too, and a reference latent's tokens, as the host has
them. What these look up is left as it was, unless an edit asks for it ("beside") or changes what tokens hold before any
is looked up. q and k are seen after the rotation that gives them their place.

A block says its number to the attention inside it by a hook that lives for one forward, because the host tells it in
some families only. What a family has before and after its picture's tokens stands in the table.
"""
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.ldm.aura.mmdit import MMDiT
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel
from torch import Tensor

from .batch import chunks, equal_parts
from .options import WrappersMP, with_hooks, with_transformer, with_wrapper
from .unet import Attention, Shape, looked_at

OVERRIDE, KEY = "optimized_attention_override", "palimpsest.joint"
SHAPE = "palimpsest.shape"      # the option with the Shape of a site, and of a forward before its heads are known
FORWARD = "palimpsest.forward"  # the option with the network of a forward and its text's length
BLOCK = "palimpsest.block"      # the option with the section and number of the block that computes
CROSS = "palimpsest.cross"      # the option that says that it computes cross-attention
BESIDE = "palimpsest.beside"    # the option with the number of the tokens that are not the picture's
OTHERS = "palimpsest.others"    # the option with the keys and values of all but the picture's tokens, by chunk
SECTIONS = "double", "single"


def _words(network, options, picture):
    return options[FORWARD][1]


def _references(network, options, picture):
    return sum(options.get("reference_image_num_tokens", ()))


def _padding(network, options, picture):
    return -picture % (getattr(network, "pad_tokens_multiple", None) or 1)


def _nothing(network, options, picture):
    return 0


def _first(network, columns):
    return [(0, 0, columns)]


def text_filled(network, columns: int) -> int:
    """How many columns of zeros the host puts before a prompt of so many: Flux.2's text is filled up to 512."""
    fills = type(network) is Flux and getattr(network.params, "txt_ids_dims", []) == [3]
    return max(0, 512 - columns) if fills else 0


def _flux_text(network, columns):
    return [(text_filled(network, columns), 0, columns)]


def _behind_registers(network, columns):
    return [(network.register_tokens.shape[1], 0, columns)]


def _llama_twice(network, columns):
    """T5's 128, then Llama's of its last layer, then those of the block's own layer."""
    return [(0, 0, columns), (columns, 128, columns - 128)]


def _hunyuan_text(network, columns):
    if getattr(network, "cond_type_embedding", None) is not None:
        raise ValueError("HunyuanVideo 1.5 puts other tokens before the words, and their number is not known here: "
                         "choose HunyuanVideo 1.0, or an editor without words.")
    return _first(network, columns)


class Family(NamedTuple):
    """Where the picture's tokens are in the attention of a class of networks.

    name: the models that are of it.
    lists: {section: the network's list of blocks}, in the order in which they run.
    before, after: of (network, options, the picture's tokens), how many stand before and after those; None: all that
        are left.
    within: the module of a block that computes it, where the block has cross-attention too.
    turned: whether q and k are turned by their place.
    text: of (network, columns), where the columns of a prompt stand among the tokens that are not the picture's: (the
        first token, the first column, how many) of each run; None where it is not known.
    cross: the module of a block that computes cross-attention.
    head: the module that is given what the last block makes.
    apart: whether no token of the text knows of another before the blocks.
    behind: whether the picture's place is behind the text's, so that a longer text moves it.
    """
    name: str
    lists: Mapping[str, str]
    before: Callable | None
    after: Callable | None
    within: str = ""
    turned: bool = True
    text: Callable | None = _first
    cross: str = ""
    head: str = "final_layer"
    apart: bool = False
    behind: bool = False


BOTH = {"double": "double_blocks", "single": "single_blocks"}
FAMILIES = {
    Flux: Family("Flux", BOTH, _words, _references, text=_flux_text, apart=True),
    Chroma: Family("Chroma", BOTH, _words, _nothing, apart=True),
    QwenImageTransformer2DModel: Family("Qwen-Image", {"double": "transformer_blocks"}, _words, _references,
                                        head="norm_out", apart=True),
    HiDreamImageTransformer2DModel: Family("HiDream", {
        "double": "double_stream_blocks", "single": "single_stream_blocks"}, _nothing, None, text=_llama_twice),
    HunyuanVideo: Family("HunyuanVideo and HunyuanImage", BOTH, None, _nothing, text=_hunyuan_text),
    NextDiT: Family("Z-Image and Lumina 2", {"single": "layers"}, None, _padding, behind=True),
    LTXVModel: Family("LTX-Video", {"single": "transformer_blocks"}, _nothing, _nothing, "attn1", text=None,
                      head="norm_out"),
    WanModel: Family("Wan", {"single": "blocks"}, _nothing, _nothing, "self_attn", cross="cross_attn",
                     head="head"),
    OpenAISignatureMMDITWrapper: Family("SD3", {"double": "joint_blocks"}, None, _nothing, turned=False, apart=True),
    MMDiT: Family("AuraFlow", {"double": "double_layers", "single": "single_layers"}, None, _nothing, turned=False,
                  text=_behind_registers, head="final_linear", apart=True),
}


def known(network) -> bool:
    """Whether it is of a family that this file knows."""
    return type(network) in FAMILIES


def blocks(network):
    """((section, number), block) of every block, in the order in which they run."""
    for section, name in FAMILIES[type(network)].lists.items():
        for i, block in enumerate(getattr(network, name)):
            yield (section, i), block


def _alone(block) -> bool:
    """Whether a block of SD3.5 Medium computes the picture's attention alone too, after the joint one."""
    return getattr(getattr(block, "x_block", None), "x_block_self_attn", False)


def _patch(network) -> int:
    patch = getattr(network, "patch_size", 1)  # LTX-Video's network has one cell a token
    return patch if isinstance(patch, int) else patch[-1]


def resolutions(network) -> dict[tuple, float]:
    """{address of every block: the side of its grid over the latent's}, in the order in which they run."""
    return {(*at, call): 1 / _patch(network) for at, block in blocks(network) for call in range(1 + _alone(block))}


def attentions(network) -> dict[Attention, float]:
    """{every attention: the side of its grid over the latent's}. Joint attention is "self" by what its picture's tokens
    look up of each other, and "cross" by what they look up of all."""
    family, found = FAMILIES[type(network)], resolutions(network)
    return {Attention(kind, at): resolution for at, resolution in found.items() for kind in ("self", "cross")
            if kind == "self" or family.text and at[2] == 0}


def joins(network) -> bool:
    """Whether words and picture are looked up in one softmax."""
    return known(network) and not FAMILIES[type(network)].within


def text_runs(network, columns: int) -> list[tuple[int, int, int]]:
    """Where the columns of a prompt stand among the keys of cross-attention, as Family has it."""
    text = FAMILIES[type(network)].text
    return text(network, columns) if text else []


def word_layers(network) -> frozenset:
    """The addresses at which the maps of words are read. Of two sections the last fifth of the first: on Flux blocks 15
    to 18, whose outputs ConceptAttention (Helbling et al. 2025, arXiv:2502.04320) compares. Of one its middle fifth.
    Nobody measured the probabilities there."""
    (section, name), *others = FAMILIES[type(network)].lists.items()
    count = len(getattr(network, name))
    first, last = (4 * count // 5, count) if others else (2 * count // 5, 3 * count // 5)
    return frozenset((section, i, 0) for i in range(first, max(last, first + 1)))


def text_blocks(network) -> frozenset:
    """The addresses of the blocks in which words have weights of their own, where no token of the text knows of another
    before them: one token more then changes none of the others."""
    family = FAMILIES[type(network)]
    return frozenset(at for at in resolutions(network) if family.apart and at[0] == "double" and at[2] == 0)


def head(network) -> torch.nn.Module:
    """What turns the last block's tokens into the prediction."""
    return network.get_submodule(FAMILIES[type(network)].head)


def head_tokens(network, size: tuple) -> tuple[tuple, slice]:
    """(their grid, which they are) of the picture's tokens among those that the head is given, of a latent of this size
    ([frames,] height, width)."""
    family, grid = FAMILIES[type(network)], (*size[:-2], *(-(-side // _patch(network)) for side in size[-2:]))
    picture = math.prod(grid)
    if family.before is not None:  # the others before them are gone by then
        return grid, slice(0, picture)
    after = family.after(network, {}, picture) if family.after else 0
    return grid, slice(-picture - after, -after or None)


def with_attention(model_options: dict, wrap: Mapping[Attention, Callable],
                   prepare: Mapping[Attention, Callable], look: Mapping[Attention, Callable]) -> dict:
    """As unet.py's; q, k and v are the picture's tokens. In cross-attention k and v are the text's, in joint attention
    all tokens, the picture's own last. Attention of the kind "beside" is what the other tokens of joint attention look
    up: q is theirs, k and v are all tokens' in their order. Of joint attention `look` sees the cross-attention alone,
    and its inner computes it without what is in wrap."""
    before = model_options["transformer_options"].get(OVERRIDE)

    def override(func, q, k, v, heads, *args, **kwargs):
        def compute(q, k, v):
            return (partial(before, func) if before else func)(q, k, v, heads, *args, **kwargs)

        options = kwargs.get("transformer_options") or {}
        if BLOCK not in options:
            return compute(q, k, v)
        split = kwargs.get("skip_reshape", False)
        network, words = options[FORWARD]
        alone = q.shape[2 if split else 1] == math.prod(options[SHAPE].grid)
        address = (*options[BLOCK], int(alone and joins(network)))
        own, all_, beside = (wrap.get(Attention(kind, address)) for kind in ("self", "cross", "beside"))
        seen = look.get(Attention("cross" if joins(network) or options.get(CROSS) else "self", address))
        if options.get(CROSS):
            if all_ is None or k.shape[1] != words:  # a picture's, beside the words
                return compute(q, k, v)
            around = partial(looked_at, all_, seen) if seen else all_
            shape = options[SHAPE]._replace(heads=heads)
            return around(lambda q, k, v, _: compute(q, k, v))(q, k, v, {**options, SHAPE: shape})
        if own is None and (all_ is None or not joins(network)):
            return compute(q, k, v)
        if (args[0] if args else kwargs.get("mask")) is not None:
            raise ValueError("Attention has a mask over its tokens, from another node or a padded prompt, and "
                             f"the editors on this MODEL move some of its {k.shape[-2]} keys: remove that node, or "
                             "encode each prompt by itself.")
        held = prepare.get(Attention("self", address))
        return _joint(own, all_ if joins(network) else None, beside, held, seen, compute, q, k, v, heads, split,
                      options)

    model_options = with_transformer(model_options, **{OVERRIDE: override})
    model_options = with_wrapper(model_options, WrappersMP.APPLY_MODEL, KEY, told)
    return with_hooks(model_options, BLOCK, _hooks)


def told(executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
    """One forward of the host's apply_model, whose options tell its attention where words and picture are."""
    network = executor.class_obj.diffusion_model
    if "image_cond" in kwargs:
        raise ValueError(f"The prompt has a picture of {tuple(kwargs['image_cond'].shape[-2:])} cells (HiDream-E1), "
                         "which stands beside each row of the sampled one in attention, and the editors on this MODEL "
                         "know only grids of their own: remove InstructPixToPixConditioning, or the editors.")
    if any(getattr(block, "flipped_img_txt", False) for _, block in blocks(network)):
        raise ValueError("This ComfyUI puts the picture before the words in HunyuanVideo's attention, and the editors "
                         "on this MODEL know the newer order: update ComfyUI to 0.30 or later.")
    frames = x.shape[2:-2] if x.shape[2:-2] != (1,) else ()
    grid = (*frames, *(-(-side // _patch(network)) for side in x.shape[-2:]))
    options = {**options, FORWARD: (network, c_crossattn.shape[1]), SHAPE: Shape(len(x), grid, 0)}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _hooks(network, options):
    family = FAMILIES[type(network)]
    for at, block in blocks(network):
        for name in (family.within, family.cross) if family.cross else (family.within,):
            module, cross = block.get_submodule(name), bool(name) and name == family.cross
            yield module.register_forward_pre_hook(partial(_entered, at, cross), with_kwargs=True)
            yield module.register_forward_hook(_left, with_kwargs=True)


def _entered(at, cross, block, args, kwargs):
    kwargs["transformer_options"].update({BLOCK: at, CROSS: cross})


def _left(block, args, kwargs, out):
    del kwargs["transformer_options"][BLOCK]


def _joint(own_edit, all_edit, beside_edit, held, look, compute, q: Tensor, k: Tensor, v: Tensor, heads: int,
           split: bool, options: dict) -> Tensor:
    """The output [rows, tokens, channels] of joint attention on q, k, v: [rows, heads, tokens, width] where they are
    split, otherwise [rows, tokens, channels].

    own_edit(inner) computes the picture's part from its own tokens, all_edit(inner) inside it from all, beside_edit(
    inner) the other tokens' part. held changes what all of them hold before, and look sees it before that."""
    axis, shape = 2 if split else 1, options[SHAPE]
    start, end = place(q.shape[axis], options)
    if q.shape[0] != shape.rows:
        raise ValueError(f"Attention has {q.shape[0]} rows, where {shape.rows} were expected: another node changes the "
                         "rows; remove it.")
    given = (q, k, v) if split else [x.flatten(2) for x in (q, k, v)]  # SD3 splits its v alone
    own = [x.narrow(axis, start, end - start) for x in given]
    own = [_flat(x, split) for x in own]
    others = [torch.cat([x.narrow(axis, 0, start), x.narrow(axis, end, x.shape[axis] - end)], axis) for x in given]
    here = {**options, SHAPE: shape._replace(heads=heads), BESIDE: others[1].shape[axis]}
    parts = chunks(options)
    if len(set(parts)) < len(parts):
        raise ValueError(f"The target has areas, {len(parts)} of them in a forward, and this MODEL's attention knows "
                         "each token's place in the whole: remove Conditioning (Set Area).")

    def plain(q, k, v, _):
        return compute(*(_formed(x, heads, split) for x in (q, k, v)))

    if look:
        look(plain, own[0], *(torch.cat([_flat(x, split), mine], 1) for x, mine in zip(others[1:], own[1:])), here)
    if held is not None:
        made = held(*own, [_flat(x, split) for x in others], here)
        if made is not None:
            own, beside = list(made[:3]), made[3]
            others = [_formed(x, heads, split) for x in beside]
            q, k, v = (_formed(torch.cat([x[:, :start], mine, x[:, start:]], 1), heads, split)
                       for x, mine in zip(beside, own))
    whole = []

    def unedited():
        """The host's own call."""
        whole.append(compute(q, k, v))
        return whole[-1][:, start:end]

    def inner(q_, k_, v_, options):
        given_back = all(a is b for a, b in zip((q_, k_, v_), own))
        if given_back and all_edit is None:
            return unedited()
        keys, values = (torch.cat(x) for x in zip(*(options[OTHERS][chunk] for chunk in chunks(options))))
        if not keys.shape[axis]:  # nothing stands beside the picture, as in Wan
            keys, values = keys[:len(q_)], values[:len(q_)]
        if len(q_) != len(keys):
            raise ValueError(f"An editor shows joint attention {len(q_)} of {len(keys)} rows at a time, as it does "
                             "with a mask for each: give it one mask for all rows.")
        width = q_.shape[-1] // heads  # an editor may give heads more channels, which bias some scores
        k_, v_ = (torch.cat([_flat(_widened(theirs, heads, width, split), split), mine], 1)
                  for theirs, mine in ((keys, k_), (values, v_)))

        def beside(q, k, v, _):
            if given_back and all(a is b for a, b in zip((q, k, v), (q_, k_, v_))):
                return unedited()
            return plain(q, k, v, options)

        return (all_edit(beside) if all_edit else beside)(q_, k_, v_, options)

    shared = dict(zip(parts, zip(*(equal_parts(x, len(parts)) for x in others[1:]))))
    edited, (own_q, own_k, own_v) = own_edit(inner) if own_edit else inner, own
    out = edited(own_q, own_k, own_v, {**here, OTHERS: shared})
    if out.shape[1] == q.shape[axis]:
        return out
    if beside_edit:
        asked, keys, values = (_flat(x if split else x.flatten(2), split) for x in (others[0], k, v))
        rest = beside_edit(plain)(asked, keys, values, here)
    else:
        rest = whole[-1] if whole else compute(others[0], k, v)
    after = end if whole and not beside_edit else start
    return torch.cat([rest[:, :start], out, rest[:, after:]], 1)


def place(tokens: int, options: dict) -> tuple[int, int]:
    """The first of the picture's own tokens, and the one after their last, among all."""
    (network, words), grid = options[FORWARD], options[SHAPE].grid
    family, picture = FAMILIES[type(network)], math.prod(grid)
    if tokens == picture:
        return 0, picture
    before, after = (count and count(network, options, picture) for count in (family.before, family.after))
    start = tokens - picture - (after or 0) if before is None else before
    left = tokens - picture - start
    if start < 0 or left < 0 or after not in (None, left):
        raise ValueError(f"Attention has {tokens} tokens, where {words} words and a grid of "
                         f"{' x '.join(map(str, grid))} were expected. Another node changes the tokens: remove "
                         "it. Or ComfyUI before 0.30 does not count those of a reference latent: update it.")
    return start, start + picture


def _widened(x: Tensor, heads: int, width: int, split: bool) -> Tensor:
    """x with zeros in the channels that its heads lack."""
    x = x if split else x.unflatten(2, (heads, -1))
    x = F.pad(x, (0, width - x.shape[-1])) if width > x.shape[-1] else x
    return x if split else x.flatten(2)


def _formed(x: Tensor, heads: int, split: bool) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2) if split else x


def _flat(x: Tensor, split: bool) -> Tensor:
    return x.transpose(1, 2).flatten(2) if split else x
