"""An inversion, a latent or a schedule of another model is refused with two facts and the remedy."""
import pytest
import torch
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import joint
import tiny
from node_execution import executor  # noqa: F401
from refusals import blend, counted, counting, inject, maps, plain, refused, replay, store, window

EDITORS = {"Attention Inject": inject, "Latent Blend": window, "Attention Store": store, "Replay": replay}
OTHERS = {"sdxl": ("model is BaseModel, this MODEL's is SDXL", tiny.sdxl),
          "sd2": ("prediction is eps, this MODEL's is v", tiny.sd2),
          "sd2 base": ("context width is 64, this MODEL's is 96", lambda: tiny.sd15(context_dim=96)),
          "flux": ("model is BaseModel, this MODEL's is Flux", tiny.flux)}


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("editor", EDITORS)
def test_an_inversion_of_another_family(editor, family):
    case = plain()
    fact, make = OTHERS[family]
    other, calls = counted(make())
    with refused(calls, fact, "invert again with this one"):
        EDITORS[editor](case, other)


def test_a_family_whose_attention_of_words_is_not_known():
    case = counting()
    model, calls = counted(joint.ltx_video())
    inversion = PalimpsestDDIMInvert.execute(model, joint.cond(), {"samples": joint.latent("ltx video", model)}, 2,
                                             "ddim_uniform").result[0]
    facts = "SD1.x, SD2.x, SDXL", "Flux, Chroma, Qwen-Image", "this MODEL is LTXV", "choose a checkpoint"
    for act, name in ((inject, "Attention Inject"), (store, "Attention Store")):
        with refused(calls, name, *facts):
            act(case, model, inversion=inversion)
    with refused(calls, "Latent Blend by words", *facts):
        blend(case, model, inversion, target_words="cat", attention=maps())


def test_another_pooled_width():
    """SDXL's, and a model of its kind with other encoders."""
    model = tiny.sdxl()
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 2,
                                             "ddim_uniform").result[0]
    width = model.model.model_config.unet_config["adm_in_channels"]
    other, calls = counted(tiny.sdxl(adm_in_channels=width + 8))
    with refused(calls, f"pooled width is {width}, this MODEL's is {width + 8}", "invert again with this one"):
        PalimpsestReplay.execute(other, inversion, 0.0)


@pytest.mark.parametrize("make, shape, fact", [
    (tiny.sd15, (1, 4, 1, 8, 8), "[1, 4, 1, 8, 8], of 5 dimensions, this BaseModel MODEL works on 4"),
    (tiny.flux, (1, 16, 3, 8, 8), "[1, 16, 3, 8, 8], of 5 dimensions, this Flux MODEL works on 4"),
    (tiny.sd15, (1, 4, 64), "[1, 4, 64], of 3 dimensions, this BaseModel MODEL works on 4")])
def test_a_latent_of_other_dimensions(make, shape, fact):
    model, calls = counted(make())
    with refused(calls, fact, "the MODEL's own VAE"):
        PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": torch.ones(shape)}, 2, "ddim_uniform")


@pytest.mark.parametrize("make, top, most", [(tiny.sd15, 80.0, "14.61"), (tiny.flux, 14.6, "1")])
def test_sigmas_of_another_model(make, top, most):
    model, calls = counted(make())
    with refused(calls, f"begin at {top:g}", f"noise up to sigma {most}", "connect a scheduler node with this MODEL"):
        PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 2, "simple",
                                     torch.tensor([top, 0.5, 0.0]))


def test_sigmas_that_a_scheduler_rounds_pass():
    model = tiny.sd15()
    sigmas = torch.tensor([14.615, 1.0, 0.0])  # AlignYourSteps begins at 14.615, the model at 14.6146
    PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 2, "simple", sigmas)


@pytest.mark.parametrize("steps, scheduler, said", [
    (12, "ddim_uniform", "set to 12 steps, but ddim_uniform gives 13 on this MODEL"), (10, "ddim_uniform", ""),
    (2, "ddim_uniform", ""),
    (1, "ddim_uniform", "reaches only sigma 0.0413, but this MODEL's noise begins at 14.6"), (1, "sgm_uniform", "")])
def test_a_schedule_that_is_not_what_its_steps_let_expect_is_said(steps, scheduler, said, caplog):
    model = tiny.sd15()
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, steps,
                                             scheduler).result[0]
    told = " ".join(r.getMessage() for r in caplog.records if r.name == "palimpsest")
    assert said in told and bool(said) == bool(told), (told, inversion.schedule)
