"""The steps of one schedule in two samplers, by the host's SplitSigmas: what a LATENT carries over, and what not."""
import re

import pytest
import torch
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom, SplitSigmas
from palimpsest.editing.inverting import invert
from palimpsest.host.sampling import schedule
from palimpsest.inversion.method import methods
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance, PalimpsestSEGARegions

from editors import EDITORS
from node_execution import executor  # noqa: F401
from refusals import plain, replay
from runs import Case, kept, relative

METHODS = {name: method for name, method in methods().items() if method.invert or method.along}
HANDS_ON = [name for name, method in METHODS.items() if method.hands_on]
LOST = "which no LATENT holds"


@kept
def inverted(name):
    case = plain()
    return invert(name, case.model, case.source, {"samples": case.latent}, 6).inversion


def sampled(start, sigmas, latent, prompt, cfg):
    case, (model, solver, *_) = plain(), start
    return SamplerCustom.execute(model, False, 0, cfg, prompt, case.null, solver, sigmas, latent).result[0]


def in_two(name, prompt, cfg, step):
    """(the picture of two samplers, that of one)."""
    start = replay(plain(), inversion=inverted(name))
    early, late = SplitSigmas.execute(start[2], step).result
    halfway = sampled(start, early, start[3], prompt, cfg)
    return [sampled(start, *rest, prompt, cfg)["samples"] for rest in ((late, halfway), start[2:])]


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_two_samplers_give_what_one_gives_or_a_warning(name, step, caplog):
    """A warning if and only if the method's steps hand on more than a latent."""
    apart = relative(*in_two(name, plain().target, 4.0, step))
    assert (apart > 1e-4) == (name in HANDS_ON), apart
    said = re.findall(f"{re.escape(name)}'s steps hand on .*, {LOST}: this sampler begins at sigma "
                      f"{float(replay(plain(), inversion=inverted(name))[2][step]):.3g}", caplog.text)
    assert len(said) == caplog.text.count(LOST) == (name in HANDS_ON)


REMEMBERED = {"sega": "SEGA Guidance hand on the momentum", "noise mask": "Noise Mask hand on the mask",
              "dreammatcher": "DreamMatcher hand on what matches in both pictures",
              **dict.fromkeys(("blend by words", "inject, blend", "blend, inject"),
                              "Reading words' maps hand on the maps so far"),
              "excite": "Attend-and-Excite hand on how far they are",
              "remove": "MagicRemover hand on its words' first maps",
              "composite": "Inject Composite hand on the composed picture"}


@pytest.mark.parametrize("editor, step", [*((e, 2 if e == "excite" else 4) for e in EDITORS),
                                          *((e, 7) for e in ("sega", "noise mask", "swap"))])
def test_an_editor_that_hands_on_more_than_a_latent_says_so(editor, step, caplog):
    """Of the others two samplers make what one makes. The second has half of the steps, or one."""
    case = Case(steps=8)
    model = EDITORS[editor](case)
    one, halfway = case.sample(model), case.sample(model, sigmas=case.sigmas[:step + 1])
    assert LOST not in caplog.text
    two = case.sample(model, sigmas=case.sigmas[step:], latent=halfway)
    assert (relative(two, one) > 1e-4) == (editor in REMEMBERED)
    times = 2 if editor == "dreammatcher" else editor in REMEMBERED  # which reads words' maps too
    assert caplog.text.count(LOST) == times and REMEMBERED.get(editor, "") in caplog.text


@pytest.mark.parametrize("start, noise, momentum, said", [
    (3, False, 0.1, 1), (4, False, 0.1, 1), (3, True, 0.1, 0), (3, False, 0.0, 0), (0, False, 0.1, 0)])
def test_an_editor_without_an_inversion_says_so_where_a_sampler_has_no_noise_of_its_own(start, noise, momentum, said,
                                                                                       caplog):
    """Image to image has, and no LATENT goes before the first step."""
    case = plain()
    model = PalimpsestSEGAGuidance.execute(case.model, case.target, "add", 5.0, 0.2, 1.0, 0.9, 1.0, momentum,
                                           0.4).result[0]
    sigmas = schedule(case.model, "simple", 6)
    SamplerCustom.execute(model, noise, 0, 4.0, case.source, case.null, KSamplerSelect.execute("euler").result[0],
                          sigmas[start:], {"samples": case.noise})
    assert caplog.text.count(LOST) == said


def test_no_warning_where_a_node_reads_along_a_trajectory_of_one_step(caplog):
    """It begins at sigma 0.04, since leading spacing leaves out the noisiest levels."""
    case = plain()
    short = invert("DDIM", case.model, case.source, {"samples": case.latent}, 1, "ddim_uniform").inversion
    model = PalimpsestSEGAGuidance.execute(case.model, case.target, "add", 5.0, 0.0, 1.0, 0.9, 1.0, 0.1, 0.4).result[0]
    PalimpsestSEGARegions.execute(model, short, case.null, torch.zeros(1, 64, 64, 3))
    assert float(short.sigmas[0]) < 0.1 and LOST not in caplog.text


@pytest.mark.parametrize("name", HANDS_ON)
def test_no_warning_where_replay_starts_later(name, caplog):
    late = replay(plain(), inversion=inverted(name), start=0.5)
    sampled(late, late[2], {"samples": torch.cat([late[3]["samples"]] * 2)}, plain().target, 4.0)
    assert len(late[2]) < len(inverted(name).sigmas) and LOST not in caplog.text


@pytest.mark.parametrize("name", ["EDICT", "BDIA", "LEDITS++"])
def test_no_warning_where_the_first_sampler_returned_on_the_sources_path(name, caplog):
    assert relative(*in_two(name, plain().source, 1.0, 3)) < 1e-4
    assert LOST not in caplog.text


def test_no_sampler_changes_an_inversion():
    """uni_pc writes into its sigmas, on a processor."""
    case, solver = plain(), KSamplerSelect.execute("uni_pc").result[0]
    made = invert("DDIM", case.model, case.source, {"samples": case.latent}, 6)
    model, _, sigmas, latent = replay(case, inversion=made.inversion)
    for given in sigmas, made.sigmas:
        sampled((model, solver), given, latent, case.target, 4.0)
        assert float(given[-1]) > 0 == float(made.inversion.sigmas[-1])
