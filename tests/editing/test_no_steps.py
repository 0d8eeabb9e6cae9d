"""SIGMAS without a step, as SplitSigmas leaves at its ends and a scheduler at denoise 0: the LATENT comes back."""
import pytest
import torch
from comfy.samplers import sampler_object
from comfy_extras.nodes_custom_sampler import SamplerCustom, SplitSigmas
from palimpsest.editing.inverting import invert
from palimpsest.inversion.method import methods

from every import INVERSIONS
from node_execution import executor  # noqa: F401
from refusals import counting, inject, plain, refused, replay, window
from runs import kept


@kept
def inverted(name):
    return plain().inversion if name == "DDIM" else INVERSIONS[name](plain())


def ends(sigmas):
    """SIGMAS of no step: none at all, the noisiest level, the clean one."""
    steps = len(sigmas) - 1
    return torch.zeros(0), SplitSigmas.execute(sigmas, 0).result[0], SplitSigmas.execute(sigmas, steps).result[1]


@pytest.mark.parametrize("edit", [inject, window])
@pytest.mark.parametrize("name", methods())
def test_the_latent_comes_back_as_it_is(name, edit):
    case = counting()
    model, solver, sigmas, latent = replay(case, inversion=inverted(name))
    edited = edit(case, model)
    before = len(case.calls)
    for none in ends(sigmas):
        found = SamplerCustom.execute(edited, False, 0, 7.5, case.target, case.null, solver, none, latent).result[0]
        assert torch.equal(found["samples"], latent["samples"]), none
    assert len(case.calls) == before


def test_the_hosts_own_sampler_gives_it_back_too():
    case, euler = counting(), sampler_object("euler")
    for none in ends(case.sigmas):
        assert torch.equal(case.sample(inject(case), sampler=euler, sigmas=none), case.noise)
    assert not case.calls


@pytest.mark.parametrize("name", [name for name, method in methods().items() if method.invert or method.along])
def test_no_inversion_is_made_of_them(name):
    case = counting()
    for none in ends(case.sigmas):
        with refused(case.calls, f"[{len(none)}]", "no step", "two levels", "scheduler node"):
            invert(name, case.model, case.source, {"samples": case.latent}, sigmas=none)
