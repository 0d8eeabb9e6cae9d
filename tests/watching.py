"""Cases of every family and the predictions of each forward of a run, for the tests of all editors."""
from dataclasses import dataclass
from functools import cache

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.editing.editor import editors
from palimpsest.host.keys import RUN

import tiny
from editors import ACTS, CROSS_END, EDITORS, LATER, READS, STEPS
from runs import Case, kept, parts, pictures, repeated

LONG = "soft light, " * 26  # 78 tokens
PROMPTS = {"plain": ("a red cat on a mat", "a blue cat on a mat"),
           "weights": ("a (red:1.3) cat on a mat", "a (blue:0.7) cat on a (mat:1.2)"),
           "target long": ("a red cat on a mat", f"a blue cat on a mat, {LONG}"),
           "source long": (f"a red cat on a mat, {LONG}", "a blue cat on a mat"),
           "both long": (f"a red cat on a mat, {LONG}", f"a blue cat on a mat, {LONG}")}
each_family = pytest.mark.parametrize("family", tiny.UNETS)


@kept
def made(family, source, targets, size=8, dtype=torch.float32, picture=None):
    """A Case of one picture, of the second of two (1) or of both of two (2)."""
    both = pictures(family, parts(family, dtype)[0], 2, size)
    latent = None if picture is None else both if picture == 2 else both[picture:picture + 1]
    return Case(family, source, targets, steps=STEPS, size=size, dtype=dtype, latent=latent)


def case(family, prompts="plain", **kwargs):
    source, target = PROMPTS[prompts]
    return made(family, source, (target,), **kwargs)


def near(case, rows, seed=8):
    """Different starts for several rows, close enough to the inverted noise to be edits of it."""
    noise = torch.randn((rows, *case.noise.shape[1:]), generator=torch.Generator().manual_seed(seed))
    return repeated(case.noise, rows // len(case.noise)) + 0.2 * case.noise.std() * noise


def assert_close(a, b, tolerance=2e-5):
    """Equal within fp32 rounding. A forward rounds about a hundred times (1e-6). CFG 7.5 and four steps
    make it ten times larger."""
    worst = float((a - b).abs().max() / b.abs().max())
    assert worst <= tolerance, worst


def differ(a, b):
    return float((a - b).abs().max() / b.abs().max()) > 1e-3


@dataclass(frozen=True)
class Chunk:
    """One cond entry's part of a forward.

    role: the name of its list, "reference", or "added" and a number if an editor added the list.
    entry: the list and the index that it comes from.
    x0: its prediction.
    controlled: whether a ControlNet acted.
    together: the number of chunks in the forward.
    """
    sigma: float
    role: str
    entry: "tuple | None"
    x0: torch.Tensor
    controlled: bool
    together: int


def watch(case, model, guider=None, order=("positive", "negative"), run=None, cfg=7.5, **kwargs):
    """(result, Chunks) of one run. With another pack's wrapper, such as this one, each forward
    reads the source at one σ."""
    noted = []

    def apply(executor, x, t, c_concat, c_crossattn, control, options, *args, **extra):
        x0 = executor(x, t, c_concat, c_crossattn, control, options, *args, **extra)
        run = options.get(RUN)
        if x.requires_grad or run is None and editors(model):  # a forward of an editor's own
            return x0
        chunks = list(zip(options["cond_or_uncond"], options["uuids"], x0.chunk(len(options["uuids"]))))
        read = run is not None and bool(run.reference.reading)
        noted.extend((float(options["sigmas"][0]), read, *chunk, control is not None, len(chunks)) for chunk in chunks)
        return x0

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", apply)
    positive, negative = kwargs.pop("positive", case.target), kwargs.pop("negative", case.null)
    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
    else:
        guider = guider(model)
    result = (run or case.sample)(guider=guider, **kwargs)
    entries = {e["uuid"]: (name, i) for name, found in guider.original_conds.items() for i, e in enumerate(found)}
    roles = dict(enumerate(order))
    return result, [Chunk(sigma, "reference" if read else roles.get(index, f"added {index}"),
                          entries.get(uuid), *rest) for sigma, read, index, uuid, *rest in noted]


@cache
def watched(editor, family, size=8, **kwargs):
    """(result, Chunks) of a run with an editor alone, or with none for "". Made once."""
    c = case(family, size=size)
    return watch(c, EDITORS[editor](c) if editor else c.model, **kwargs)


def predictions(case, model, positive=None, **kwargs):
    """Chunks of a run whose rows are set to the source's own latent at every σ, whatever was predicted before."""
    return watch(case, model, run=lambda guider: case.predictions(None, None, guider=guider),
                 positive=positive or case.target, **kwargs)[1]


def of(chunks, role):
    return [c for c in chunks if c.role == role]


def acts(editor, case, sigma):
    begun = editor not in LATER or sigma < case.sigmas[0]
    return editor in ACTS and begun and sigma >= limit(case, CROSS_END)


def reads(editor, case, sigma):
    return editor in READS and sigma >= limit(case, CROSS_END)


def limit(case, percent):
    return case.model.get_model_object("model_sampling").percent_to_sigma(percent)
