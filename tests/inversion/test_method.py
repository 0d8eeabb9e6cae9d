"""What every method of the table writes is what its node does, and comes back from a file."""
import pytest
from palimpsest.inversion.method import METHODS
from palimpsest.nodes.inversion import (
    bdia,
    cycle_diffusion,
    ddpm,
    direct,
    edict,
    fixed_point,
    kv,
    ledits,
    negative_prompt,
    null_text,
    prompt_tuning,
    regularized,
    renoise,
    style_diffusion,
)
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert

import tiny
from node_execution import executor  # noqa: F401
from saving import (
    folders,  # noqa: F401
    loaded,
    same,
    saved,
)

NULL, TUNED = tiny.cond(seed=9), (tiny.cond(seed=9), 7.5, 1, 0.0)
MADE = {
    "DDIM": (PalimpsestDDIMInvert, ()), "Fixed Point": (fixed_point.PalimpsestFixedPointInvert, (2, 1e-5, "none")),
    "ReNoise": (renoise.PalimpsestReNoiseInvert, (2, 1, 1, 0.0, 0)),
    "ReNoise Ancestral": (renoise.PalimpsestReNoiseInvert, (2, 1, 1, 1.0, 0)),
    "Negative Prompt": (negative_prompt.PalimpsestNegativePromptInvert, (0.5, NULL)),
    "Regularized": (regularized.PalimpsestRegularizedInvert, (20.0, 20.0, 1, 1, 0)),
    "EDICT": (edict.PalimpsestEDICTInvert, (0.93, 1.0)), "BDIA": (bdia.PalimpsestBDIAInvert, (1.0, 1.0)),
    "Direct": (direct.PalimpsestDirectInvert, (1.0, 7.5, NULL)), "DDPM": (ddpm.PalimpsestDDPMInvert, (1.0, 0, 1.0)),
    "CycleDiffusion": (cycle_diffusion.PalimpsestCycleDiffusionInvert, (0.1, 0)),
    "LEDITS++": (ledits.PalimpsestLEDITSInvert, (0, 1.0)),
    "Null-Text": (null_text.PalimpsestNullTextOptimize, (7.5, 1, 0.0, "source prompt")),
    "Prompt Tuning": (prompt_tuning.PalimpsestPromptTuningInvert, (*TUNED, 0.8)),
    "StyleDiffusion": (style_diffusion.PalimpsestStyleDiffusionInvert, (*TUNED, 1.0, 0.5)),
    "KV": (kv.PalimpsestKVInvert, (*TUNED, ""))}


@pytest.mark.parametrize("method", METHODS)
def test_what_every_method_writes_comes_back(folders, method):
    """So the table of what each writes is what its node does."""
    model, (node, settings) = tiny.sdxl(), MADE[method]
    latent = {"samples": model.model.process_latent_out(tiny.latent(model, 2))}
    learns = "inversion" in node.GET_NODE_INFO_V1()["input"]["required"]
    given = tiny.cond(), latent, 2, "ddim_uniform"
    given = [PalimpsestDDIMInvert.execute(model, *given).result[0]] if learns else given
    made = node.execute(model, *given, *settings).result[0]
    assert made.method == method
    found = loaded(saved(made))
    assert same(found.theta, made.theta) and same(found.provenance, made.provenance)
