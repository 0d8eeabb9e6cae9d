"""What the pack reads of the host's samplers and models: percents, added noise, fingerprints, parametrisations."""
import comfy.k_diffusion.sampling
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import pytest
import torch
from palimpsest.host.sampling import Solver, check_family, fingerprint, prediction_type, sample, schedule, split_at
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import tiny
from node_execution import executor  # noqa: F401
from replaying import (
    FAMILIES,
    invert,
    model,  # noqa: F401
    picture,
)


def test_a_percent_that_falls_on_a_level_starts_there():
    model = tiny.sd3()
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)])
    assert [split_at(model, sigmas, p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_samplers_that_add_noise_are_known_by_what_they_do(name, model):
    """The same start with two seeds on a closed-form denoiser. Only a solver that draws noise gives two results."""
    perfect = model.clone()
    perfect.set_model_unet_function_wrapper(
        lambda _, args: args["input"] / (1 + args["timestep"].view(-1, 1, 1, 1) ** 2))
    solver = Solver.of(comfy.samplers.sampler_object(name))
    found = [sample(perfect, tiny.cond(), picture(model)["samples"], schedule(model, "normal", 6), solver, seed=seed)
             for seed in (1, 2)]
    assert solver.adds_noise != torch.equal(*found)


def test_another_family_is_refused_and_another_checkpoint_said(model, said):
    inversion = invert(model)[0]
    said()  # the warning about its steps
    for other, message in ((tiny.sd2(), "prediction is eps, this MODEL's is v"),
                           (tiny.sdxl(), "model is BaseModel.*SDXL"), (tiny.flux(), "model is BaseModel.*Flux")):
        with pytest.raises(ValueError, match=message):
            PalimpsestReplay.execute(other, inversion, 0.0)
    check_family(model, inversion)
    assert not said()
    for _ in range(2):  # each node warns separately
        check_family(tiny.sd15(seed=1), inversion)
        assert ["another checkpoint" in text for text in said()] == [True]


def test_the_fingerprint_knows_how_wide_a_prompt_the_model_reads():
    widths = {name: (f.context_width, f.pooled_width)
              for name, f in ((n, fingerprint(make())) for n, make in FAMILIES.items())}
    assert widths == {"sd15": (64, None), "sd2": (64, None), "sdxl": (64, 32 + 6 * 256), "flux": (64, 32),
                      "sd3": (64, 32),
                      "qwen": (None, None), "zimage": (64, None)}


def test_parametrisations_without_a_known_step_are_refused_by_name(model):
    names = "COSMOS_RFLOW", "IMG_TO_IMG", "IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM"  # an older host knows fewer
    for kind in (getattr(comfy.model_sampling, name) for name in names if hasattr(comfy.model_sampling, name)):
        strange = model.clone()
        sampling = type("Sampling", (comfy.model_sampling.ModelSamplingDiscrete, kind), {})
        strange.add_object_patch("model_sampling", sampling(model.model.model_config))
        with pytest.raises(ValueError, match=f"predicts by {kind.__name__}"):
            prediction_type(strange)
    assert [prediction_type(FAMILIES[f]()) for f in ("sd15", "sd2", "sdxl", "sd3")] == ["eps", "v", "eps", "flow"]
