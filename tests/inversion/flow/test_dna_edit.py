"""DNAEdit against the authors' loop, the paper's equations, and on flow models."""
import json
from pathlib import Path

import pytest
import torch
from palimpsest.editing.inverting import invert
from palimpsest.inversion.flow import dna_edit

import tiny
from closed_form import denoiser, levels, network, noisy
from exact_inversions import replay
from node_execution import executor  # noqa: F401
from runs import relative

AUTHORS = json.loads((Path(__file__).parents[2] / "data" / "dna_edit.json").read_text())


def prompted(prompt):
    """A flow model whose velocity is the closed-form network's under a prompt."""
    return lambda z, sigma: z - sigma.view(-1, 1, 1, 1) * network(z + prompt, sigma.view(-1, 1, 1, 1))


def guided(cfg, prompt):
    """The same guided by CFG from no prompt to a prompt."""
    return lambda z, sigma: prompted(0)(z, sigma) + cfg * (prompted(prompt)(z, sigma) - prompted(0)(z, sigma))


def edited(target, path, moves, sigmas, first=0, **settings):
    return dna_edit.denoise(target, path[first], lambda i, _: path[i if i < 0 else first + i],
                            lambda i, _: moves[first + i], sigmas[first:], disable=True, **settings)


@pytest.mark.parametrize("first", [0, 2])
def test_a_run_ends_as_the_authors_does(first):
    """From the noisiest level and from a later one, of a picture of odd shape, at the authors' guidance."""
    x, sigmas = noisy(1, 3, 5, 8), torch.tensor([*AUTHORS["sigmas"], 0.0], dtype=torch.float64)
    path, moves = dna_edit.invert(prompted(0.3), x, sigmas, disable=True, seed=5, flow=True)
    found = edited(guided(3.5, -0.6), path, moves, sigmas, first, mvg=0.8)
    torch.testing.assert_close(found.flatten()[:8], torch.tensor(AUTHORS["edits"][str(first)], dtype=torch.float64),
                               rtol=1e-6, atol=1e-6)
    assert relative(found, x) > 0.1


def test_noise_is_aligned_as_the_paper_writes_it():
    """Z̃, Δv and N, step by step."""
    x, sigmas = noisy(3, 8), levels(7, True)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    path, moves = [x], []
    for t, later in zip(sigmas.flip(0), sigmas.flip(0)[1:]):
        guess = path[-1] + (later - t) / (1 - t) * (noise - path[-1])
        off = (guess - path[-1]) / (later - t) - network(guess, later)
        path.append(guess - (later - t) * off)
        moves.append((later - t) * off)
        noise = noise - (1 - t) * off
    found = dna_edit.invert(denoiser(True), x, sigmas, disable=True, seed=2, flow=True)
    for a, b in zip(found, (path[::-1], moves[::-1])):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_with_the_source_prompt_the_target_is_asked_where_the_source_was_and_the_picture_returns():
    """At mvg 1. Below, each step is drawn to the picture itself, which no straight way leads to."""
    x, sigmas, asked = noisy(2, 8), levels(9, False), []
    path, moves = dna_edit.invert(denoiser(False), x, sigmas, disable=True)

    def model(z, sigma):
        asked.append(z)
        return denoiser(False)(z, sigma)

    assert relative(edited(model, path, moves, sigmas, mvg=1.0), x) < 1e-12
    for z, latent, move in zip(asked, path, moves):
        torch.testing.assert_close(z, latent + move, rtol=1e-12, atol=1e-12)
    assert relative(edited(model, path, moves, sigmas, mvg=0.8), x) > 1e-2


@pytest.mark.parametrize("name", tiny.FLOWS)
def test_on_flow_models_the_picture_returns(name):
    """Whatever noise was drawn. Another prompt moves it."""
    model = tiny.FLOWS[name](output=0.05)
    latent = {"samples": tiny.latent(model)}
    for seed in (0, 1):
        inversion = invert("DNAEdit", model, tiny.cond(), latent, 6, mvg=1.0, seed=seed).inversion
        assert relative(replay(model, inversion), latent["samples"]) < 1e-5
    assert relative(replay(model, inversion, prompt=tiny.cond(seed=4)), latent["samples"]) > 1e-4
