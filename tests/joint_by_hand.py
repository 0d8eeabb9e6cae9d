"""Runs of a small transformer under one edit, by explicit softmaxes with slices written by hand."""
import math

import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.editing.inverting import invert
from palimpsest.editing.layers import self_attention_layers
from palimpsest.editing.replay import replay
from palimpsest.host.network import resolutions
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention

import joint
from joint import JOINT
from runs import kept

OVERRIDE, SOURCE, TARGET = "optimized_attention_override", joint.cond(5), joint.cond(8, seed=4)


@kept
def made(family):
    return JOINT[family]()


def flux():
    return made("flux")


def picture(size=(8, 8), batch=1, family="flux"):
    return {"samples": joint.latent(family, made(family), batch, size)}


@kept
def inverted(size=(8, 8), batch=1, family="flux"):
    return invert("DDIM", made(family), SOURCE, picture(size, batch, family),
                  sigmas=torch.tensor([0.8, 0.0])).inversion


def cells(inversion, family):
    """The tokens of its picture."""
    return math.prod(inversion.shape[1:]) // (1 if family in joint.CELLS else 4)


def everywhere(model):
    """All layers."""
    return ", ".join({p.section for p in self_attention_layers(model.model.diffusion_model)})


def masactrl(model, inversion, **given):
    return PalimpsestMutualSelfAttention.execute(model, inversion, 0.0, 1.0, everywhere(model), "", "", 0.1, True,
                                                 **given).result[0]


def free_prompt(model, inversion):
    return PalimpsestFreePromptEdit.execute(model, inversion, 0.0, 1.0, everywhere(model)).result[0]


def sampled(model, inversion, prompt=TARGET, cfg=1.0, negative=TARGET):
    _, solver, sigmas, latent = replay(model, inversion)
    return SamplerCustom.execute(model, False, 0, cfg, prompt, negative, solver, sigmas, latent).result[0]["samples"]


def under(function, family, inversion, prompt):
    """One step under an attention function of our own."""
    model = made(family).clone()
    model.model_options["transformer_options"][OVERRIDE] = function
    latent = model.model.process_latent_out(inversion.path[0])
    return sample(model, prompt, latent, inversion.sigmas, Solver())


def softmax(q, k, v, changed=lambda maps: maps):
    out = changed((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)) @ v
    return out.transpose(1, 2).flatten(2)


# {family: (tokens, those before the picture's), of so many words and tokens of the picture}
PLACES = {"wan": lambda words, tokens: (tokens, 0), "ltx video": lambda words, tokens: (tokens, 0),
          "flux2": lambda words, tokens: (512 + tokens, 512), "hidream": lambda words, tokens: (tokens + 3 * words, 0),
          "auraflow": lambda words, tokens: (8 + words + tokens, 8 + words),
          **({"zimage": lambda words, tokens: (32 + -(-tokens // 32) * 32, 32)} if joint.TODAY else {})}
BEHIND = "lumina2", *["zimage"] * (not joint.TODAY)  # the picture stands behind a prompt that is not filled up


def of_picture(family, words, tokens, found):
    """The picture's own of the tokens that some attention has, or None where it is none that is edited."""
    total, start = PLACES.get(family, lambda words, tokens: (words + tokens, words))(words, tokens)
    if found == tokens and family == "sd35 medium":
        return slice(0, tokens)
    return slice(start, start + tokens) if found == total else None


def shaped(q, k, v, heads, skip_reshape=False, **_):
    """[rows, heads, tokens, width]"""
    return (q, k, v) if skip_reshape else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]


def placed(family, x, by):
    """q or k [..., width] of tokens that stand so many places further on the first axis, by RoPE's own equation."""
    width, theta = made(family).model.diffusion_model.axes_dims[0], 10_000.0
    pairs = torch.view_as_complex(x[..., :width].unflatten(-1, (-1, 2)).contiguous())
    angles = by * theta ** -(torch.arange(0, width, 2) / width)
    moved = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    return torch.cat([moved, x[..., width:]], -1)


def in_source(inversion, prompt, tokens, family):
    """q, k and v of the picture's own tokens in each attention, under a prompt of 5 tokens, at the places that they
    have under one of 8."""
    known = []

    def record(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        own = of_picture(family, 5, tokens, split[0].shape[2])
        if own and split[1].shape[2] == split[0].shape[2]:
            known.append([x[:, :, own] for x in split])
            if family in BEHIND:
                known[-1][:2] = (placed(family, x, 3) for x in known[-1][:2])
        return func(q, k, v, heads, *args, **kwargs)

    under(record, family, inversion, prompt)
    return known


def by_hand(inversion, edit, prompt, tokens, family="flux", beside=0, words_too=False, changed=lambda maps: maps):
    """The run in which edit(q, k, v, source's q, k, v of the picture) gives what the picture's queries look up.
    beside: tokens of reference latents in the prompt. words_too: whether these and words look it up too. changed:
    what the probabilities become, those of the picture last."""
    known, calls = in_source(inversion, SOURCE, tokens, family), iter(range(99))

    def explicit(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        own = of_picture(family, 8, tokens, split[0].shape[2] - beside)
        if not own or split[1].shape[2] != split[0].shape[2]:
            return func(q, k, v, heads, *args, **kwargs)
        asked, keys, values = edit(*(x[:, :, own] for x in split), *known[next(calls)])
        rest = [torch.cat([x[:, :, :own.start], x[:, :, own.stop:]], 2) for x in split[1:]]
        out = softmax(*split)
        every = torch.cat([split[0][:, :, :own.start], asked, split[0][:, :, own.stop:]], 2)
        own = slice(None) if words_too else own
        out[:, own] = softmax(every[:, :, own], torch.cat([rest[0], keys], 2), torch.cat([rest[1], values], 2), changed)
        return out

    found = under(explicit, family, inversion, prompt)
    assert next(calls) == len(known) == len(resolutions(made(family).model.diffusion_model))
    return found
