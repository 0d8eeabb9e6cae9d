"""What cannot work is refused before the first model call, with two facts and the remedy."""
import dataclasses
import inspect
import re

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.host.sampling import schedule
from palimpsest.inversion.trajectory import Inversion, Theta
from palimpsest.nodes.attention.store import PalimpsestAttentionMask
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert

from node_execution import executor  # noqa: F401
from refusals import WINDOW, blend, counting, inject, maps, plain, refused, replay, store, window


@pytest.mark.parametrize("edit", [inject, window])
def test_latents_of_another_size(edit):
    case, wide = counting(), plain(size=16)
    with refused(case.calls, "[4, 16, 16]", "[4, 8, 8]", "Replay's LATENT"):
        case.sample(edit(case, case.model), latent=wide.noise)


@pytest.mark.parametrize("edit", [inject, window])
def test_the_pictures_own_latent_in_place_of_its_noise(edit):
    """As far below the noise as a picture is at a trained model's first level."""
    case = counting()
    with refused(case.calls, f"sigma {float(case.sigmas[0]):.3g}", "11 % of the INVERSION's norm", "Replay's LATENT"):
        case.sample(edit(case, case.model), latent=case.noise / 9)


@pytest.mark.parametrize("edit", [inject, window])
def test_a_schedule_that_leaves_the_inversions(edit):
    case = counting()
    normal = schedule(case.model, "normal", 5)
    assert normal[0] > case.sigmas[0]
    with refused(case.calls, "5 steps", "sigma 14.61", case.inversion.schedule, "Replay's SIGMAS"):
        case.sample(edit(case, case.model), sigmas=normal)


def test_levels_between_independently_noised_ones():
    case = counting()
    inversion = dataclasses.replace(case.inversion, trajectory="independent")
    between = (case.sigmas[:-1] + case.sigmas[1:]) / 2
    with refused(case.calls, f"{len(between) - 1} steps", case.inversion.schedule, "Replay's SIGMAS"):
        case.sample(blend(case, inversion=inversion, mask=WINDOW), sigmas=torch.cat([between, torch.zeros(1)])[1:])


def test_rows_that_are_no_multiple():
    case, three = counting(batch=2, targets=("a blue cat on a mat", "a red dog on a mat")), torch.randn(3, 4, 8, 8)
    for edit in (inject, window):
        with refused(case.calls, "3 rows", "2 pictures", "Repeat Latent Batch"):
            case.sample(edit(case, case.model), latent=three)
    one = counting(targets=("a blue cat on a mat", "a red dog on a mat"))
    with refused(one.calls, "2 target prompts", "3 rows", "Repeat Latent Batch"):
        one.sample(inject(one), latent=three)
    with refused(one.calls, "2 masks", "3 rows", "multiple of 2"):
        one.sample(blend(one, mask=WINDOW.expand(2, -1, -1)), latent=three)


def test_broken_latents():
    case = counting()
    broken = case.latent.clone()
    broken[0, 0, 0, 0] = torch.nan
    with refused(case.calls, "1 of 256 values", "NaN", "fp32"):
        PalimpsestDDIMInvert.execute(case.model, case.source, {"samples": broken}, 3, "ddim_uniform")
    with refused(case.calls, f"sigma {case.sigmas[0]:.4g}", "1 of 256 values", "fp32"):
        Inversion(case.sigmas, (broken, *case.inversion.latents[1:]), case.source, case.inversion.fingerprint,
                  provenance={})
    for edit in (inject, window):
        with refused(case.calls, "1 of 256 values", "NaN", "Replay's LATENT"):
            case.sample(edit(case, case.model), latent=broken)


@pytest.mark.parametrize("act, facts", [
    (lambda c: inject(c, cross_end=0.0, self_end=0.0), ("0.0 to 0.0", "end above its start")),
    (lambda c: inject(c, cross_start=1.0, cross_end=0.8, self_start=0.5, self_end=0.5),
     ("1.0 to 0.8", "0.5 to 0.5", "end above")),
    (lambda c: inject(c, cross_resolution=0.0, self_resolution=0.0),
     ("up to 0.0 of", "from 0.0 to 0.4 on grids up to 0.0", "0.5 or more")),
    (lambda c: inject(c, cross_end=0.0, self_resolution=0.25),
     ("from 0.0 to 0.0 on grids up to 1.0", "from 0.0 to 0.4 on grids up to 0.25", "0.5 or more")),
    (lambda c: blend(c), ("neither MASK nor ATTENTION", "connect one")),
    (lambda c: blend(c, source_words="cat"), ("words but no ATTENTION", "Attention Store")),
    (lambda c: blend(c, mask=WINDOW, target_words="cat"), ("words but no ATTENTION", "Attention Store")),
    (lambda c: blend(c, mask=WINDOW, attention=maps()),
     ("ATTENTION but no source_words or target_words", "name the words")),
    (lambda c: blend(c, mask=WINDOW, start=1.0), ("starts at 1.0", "the schedule ends")),
    (lambda c: PalimpsestAttentionMask.execute(maps(), " ", 0.3, 0, 0.0), ("no word", "a, red, cat, on, a, mat")),
])
def test_a_node_that_would_do_nothing(act, facts):
    case = counting()
    with refused(case.calls, *facts):
        act(case)


def test_context_windows_beside_an_editor():
    case = counting()
    settings = inject(case), 16, 4, "standard_static", 1, False, "pyramid", 0, False, "", False, "", True
    known = len(inspect.signature(ContextWindowsManualNode.execute).parameters)  # an older host has the first eight
    windows = ContextWindowsManualNode.execute(*settings[:known])
    with refused(case.calls, "Context windows", "editors on this MODEL (1)", "remove the Context Windows node"):
        case.sample(windows.result[0])


def test_an_editor_that_meets_none_of_the_steps(caplog):
    """Only a warning, because the other steps may belong to another sampler."""
    case = plain()
    late, early = case.sigmas[-3:], case.sigmas[:3]
    there = case.model.model.process_latent_out(case.inversion.at(float(late[0])))
    case.sample(inject(case, cross_end=0.3, self_end=0.3), latent=there, sigmas=late)
    case.sample(blend(case, start=0.9, mask=WINDOW), sigmas=early)
    for name in ("Attention Inject", "Latent Blend"):
        assert len(re.findall(f"{name} acts on none of the 2 steps", caplog.text)) == 1
    case.sample(blend(case, inject(case), mask=WINDOW))
    assert caplog.text.count("acts on none") == 2


@pytest.mark.parametrize("edited", [inject, window, lambda case, model: replay(case, model)[0]])
def test_an_edited_model_where_the_source_is_read(edited):
    case = counting()
    model = edited(case, case.model)
    with refused(case.calls, "DDIM Invert", "1 edit", "before the first editor"):
        PalimpsestDDIMInvert.execute(model, case.source, {"samples": case.latent}, 3, "ddim_uniform")
    with refused(case.calls, "Attention Store", "1 edit", "before the first editor"):
        store(case, model)


@pytest.mark.parametrize("edit", [inject, window])
def test_what_an_inversion_learned_and_nobody_applies(edit):
    case = counting()
    case.inversion = dataclasses.replace(case.inversion, method="Null-Text", theta={
        "null embeddings": Theta(torch.zeros(len(case.sigmas) - 1, 1, 77, 64), "step", "prediction")})
    with refused(case.calls, "Null-Text", "null embeddings", "Replay Inversion"):
        case.sample(edit(case, case.model))


def test_an_inversion_without_a_trajectory():
    case = counting()
    bare = dataclasses.replace(case.inversion, latents=None)
    for act in (lambda: blend(case, inversion=bare, mask=WINDOW), lambda: case.sample(inject(case, inversion=bare)),
                lambda: store(case, inversion=bare), lambda: replay(case, inversion=bare)):
        with refused(case.calls, "DDIM INVERSION", "trajectory", "DDIM Invert"):
            act()


def test_a_noise_mask_on_the_latent():
    case = counting()
    m, sampler, sigmas, latent = replay(case)
    with refused(case.calls, "noise_mask", "adds no noise", "Latent Blend (Inversion)"):
        SamplerCustom.execute(m, False, 0, 1.0, case.target, case.null, sampler, sigmas,
                              {**latent, "noise_mask": torch.ones(1, 64, 64)})


def test_a_sampler_of_another_class():
    class Exotic(comfy.samplers.Sampler):
        pass

    case = counting()
    with refused(case.calls, "Exotic", "KSAMPLER", "KSamplerSelect"):
        replay(case, sampler=Exotic())
