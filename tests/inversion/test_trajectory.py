"""The INVERSION value: what it accepts, its values at a σ, and that nothing changes it."""
import copy
import dataclasses

import pytest
import torch
from palimpsest.host.sampling import Fingerprint
from palimpsest.inversion.trajectory import Inversion, Theta

SIGMAS = torch.tensor([8.0, 4.0, 1.0, 0.0])
FINGERPRINT = Fingerprint("BaseModel", "SD15", 4, "eps", "0" * 64)


def latents(batch=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, 4, 3, 3, generator=generator) for _ in SIGMAS)


def make(**changes):
    values = {"sigmas": SIGMAS, "latents": latents(), "conditioning": [[torch.zeros(1, 8, 16), {}]],
              "fingerprint": FINGERPRINT, **changes}
    return Inversion(**values)


def test_on_the_grid_the_stored_latent_itself_is_read():
    inversion = make()
    for sigma, latent in zip(SIGMAS.tolist(), inversion.latents):
        assert inversion.at(sigma) is latent
        assert inversion.at(sigma * (1 + 1.4e-4)) is latent
    assert inversion.at(0.0) is inversion.latents[-1]


def test_between_levels_a_deterministic_trajectory_is_linear_in_sigma_and_says_so_once(caplog):
    inversion = make()
    found = inversion.at(2.5)  # halfway from 1 to 4
    torch.testing.assert_close(found, (inversion.latents[1] + inversion.latents[2]) / 2)
    torch.testing.assert_close(inversion.at(0.25), 0.25 * inversion.latents[2] + 0.75 * inversion.latents[3])
    assert caplog.text.count("interpolated") == 1
    assert "3 steps from sigma 8 to 0" in caplog.text


def test_just_beyond_the_tolerance_is_already_between_levels():
    inversion = make()
    assert inversion.at(4.0 * (1 - 1.6e-4)) is not inversion.latents[1]


def test_where_the_hosts_sde_samplers_begin_is_the_first_step_of_a_flow():
    first = float(torch.tensor(1.0) - torch.tensor(1e-4))  # in single precision a little more than 1e-4 off
    assert make(sigmas=torch.tensor([1.0, 0.6, 0.3, 0.0])).step(first) == 0


def test_outside_the_grid_both_schedules_are_named():
    inversion = make(provenance={"scheduler": "karras"})
    assert not inversion.covers(14.6) and not inversion.covers(-0.1)
    with pytest.raises(ValueError, match=r"sigma 14.6.*3 karras steps from sigma 8 to 0"):
        inversion.at(14.6)
    with pytest.raises(ValueError, match=r"2 steps from sigma 14.6 to 0.*3 karras steps from sigma 8"):
        inversion.require(torch.tensor([14.6, 4.0, 0.0]))
    inversion.require(torch.tensor([8.0, 3.0, 0.0]))


def test_nothing_lies_between_independently_noised_levels():
    inversion = make(trajectory="independent")
    assert inversion.covers(4.0) and not inversion.covers(2.0)
    assert inversion.at(1.0) is inversion.latents[2]
    with pytest.raises(ValueError, match="sigma 2.*noised independently"):
        inversion.at(2.0)


def test_without_a_trajectory_nothing_is_covered():
    inversion = make(latents=None, method="NPI")
    assert not inversion.covers(4.0) and inversion.shape is None and inversion.batch == 1
    with pytest.raises(ValueError, match="NPI INVERSION keeps no trajectory"):
        inversion.at(4.0)


@pytest.mark.parametrize("changes, message", [
    ({"sigmas": torch.tensor([1.0, 4.0, 8.0, 0.0])}, "1 is followed by 4"),
    ({"sigmas": torch.tensor([8.0, 4.0, 4.0, 0.0])}, "4 is followed by 4"),
    ({"sigmas": torch.tensor([8.0, 4.0, 1.0, 0.5])}, "the last is 0.5"),
    ({"sigmas": torch.tensor([float("nan"), 4.0, 1.0, 0.0])}, "nan is followed by 4"),
    ({"sigmas": SIGMAS.double()}, "float64"),
    ({"sigmas": torch.tensor([0.0])}, "no step"),
    ({"latents": latents()[:3]}, "3 latents for 4 sigmas"),
    ({"latents": (*latents()[:3], torch.zeros(1, 4, 3, 3))}, r"sigma 0 is \[1, 4, 3, 3\], the first is \[2, 4, 3"),
    ({"latents": tuple(x.half() for x in latents())}, "float16"),
    ({"latents": (*latents()[:2], latents()[2] * torch.nan, latents()[3])}, "sigma 1 has 72 of 72 values NaN"),
    ({"conditioning": [[torch.zeros(1, 8, 16), {}]] * 2}, "2 entries"),
])
def test_what_is_no_trajectory_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_nothing_changes_it():
    learned = {"null": Theta(torch.zeros(3, 1, 8, 16), "step", "prediction")}
    inversion = make(theta=learned, provenance={"steps": 3})
    learned.clear()
    assert list(inversion.theta) == ["null"]
    with pytest.raises(TypeError):
        inversion.theta["null"] = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        inversion.sigmas = None
    assert isinstance(make(latents=list(latents())).latents, tuple)
    assert copy.deepcopy(inversion) is inversion  # the host's oldest supported clone() copies model_options deeply


def test_facts_of_it():
    tokens = ("a", "b")
    inversion = make(conditioning=[[torch.zeros(1, 8, 16), {"palimpsest_tokens": tokens}]])
    assert (inversion.batch, tuple(inversion.shape), inversion.tokens) == (2, (4, 3, 3), tokens)
    assert make().tokens is None
