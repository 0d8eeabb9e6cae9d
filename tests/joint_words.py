"""Words in the joint attention of small random transformers: what a run computes there, and where it stands."""
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.editing.inverting import invert
from palimpsest.editing.replay import replay
from palimpsest.host.sampling import Solver, sample

import joint
from joint import VIDEO, WORDS
from runs import kept

OVERRIDE, SOURCE = "optimized_attention_override", "a red cat sits"
TOKENS = 5  # of the source, one more than its words


@kept
def made(family):
    return WORDS[family]()


@kept
def inverted(family):
    model = made(family)
    with torch.inference_mode():
        return invert("DDIM", model, joint.worded(family, SOURCE), {"samples": joint.latent(family, model)},
                      sigmas=torch.tensor([0.8, 0.0])).inversion


def picture(family):
    """How many tokens the picture has, and how many frames."""
    frames = 3 if family in VIDEO else 1
    return frames * (64 if family in joint.CELLS else 16), frames


def columns(family, position, tokens=TOKENS):
    """The keys of a text's token among all of joint attention's, of so many tokens."""
    cells = picture(family)[0]
    return {"auraflow": [8 + position], "flux2": [512 - tokens + position],
            "hidream": [cells + p for p in (position, 128 + position, 128 + tokens + position)]}.get(family, [position])


def keys_of(family, tokens, position):
    """The keys of a prompt's token. HiDream has those of its second encoder twice."""
    if family != "hidream":
        return columns(family, position, len(tokens.ids))
    start = picture(family)[0] + position
    return [start, start + tokens.streams[1]] if position >= 128 else [start]


def of_picture(family, total):
    """The picture's own of so many tokens."""
    cells, _ = picture(family)
    start = {"hidream": 0, "wan": 0, **({"zimage": 32} if joint.TODAY else {})}.get(family, total - cells)
    return slice(start, start + cells)


def shaped(q, k, v, heads, skip_reshape=False, **_):
    """[rows, heads, tokens, width]"""
    return (q, k, v) if skip_reshape else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v)]


def recorded(family, prompt, tokens=TOKENS, x=None):
    """q, k, v of every attention that the picture's tokens have with words, of so many, at the first step, of the
    inversion's latent or of x."""
    found, model, inversion = [], made(family).clone(), inverted(family)
    cells, _ = picture(family)
    length = cells + {"hidream": 128 + 2 * tokens, "auraflow": 8 + tokens, "flux2": 512,
                      **({"zimage": 32 + 16} if joint.TODAY else {})}.get(family, tokens)

    def record(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        asked, keys = split[0].shape[2], split[1].shape[2]
        if asked == cells != keys if family == "wan" else asked == keys == length:
            found.append(split)
        return func(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"][OVERRIDE] = record
    x = inversion.path[0] if x is None else x
    sample(model, prompt, model.model.process_latent_out(x), inversion.sigmas, Solver())
    return found


def sampled(model, inversion, prompt):
    _, solver, sigmas, latent = replay(model, inversion)
    return SamplerCustom.execute(model, False, 0, 1.0, prompt, prompt, solver, sigmas, latent).result[0]["samples"]
