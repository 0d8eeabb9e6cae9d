"""SuDe: its loss against the authors' lines on equal predictions, and a step on diffusers' network."""
import math

import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.lora import LoRA
from palimpsest.concept.sude import Inheritance
from palimpsest.editing.learning import learn_concept
from palimpsest.nodes.concept.sude import PalimpsestSuDe

import tiny
from concepts import Texts, drawn, images
from node_execution import executor  # noqa: F401  runs every test as the host does

SEED, CAPTION = 4, "a photo of a * dog"


@pytest.mark.parametrize("like_the_class", [False, True], ids=["lasts", "truncated"])
def test_the_loss_is_the_authors_on_equal_predictions(like_the_class):
    """Theirs is of steps down to the level below; the two levels' ratio is known."""
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas, t = (1 - betas).cumprod(0), 600
    now, below = alphas[t], alphas[t - 1]
    c_1 = betas[t] * below ** 0.5 / (1 - now)
    c_2, var_t = (1 - below) * (1 - betas[t]) ** 0.5 / (1 - now), betas[t] * (1 - below) / (1 - now)
    subject, of_class, of_none, x_t = torch.randn(4, 1, 4, 8, 8, dtype=torch.float64,
                                                  generator=torch.Generator().manual_seed(0))
    if like_the_class:
        subject = 2 * of_class - of_none
    x_t1, x_c, mu = (c_1 * x0 + c_2 * x_t for x0 in (subject, of_class, of_none))
    mu_c = x_c
    loss = ((x_t1 - mu_c).pow(2).mean() - (x_t1 - mu).pow(2).mean()) / (2 * var_t + 1e-6)
    loss_refer = (((x_c - mu_c).pow(2) - (x_c - mu).pow(2)) / (2 * var_t + 1e-6)).mean()
    theirs = loss * (loss - loss_refer > 0).double() * (1 / c_1) * 0.4
    levels = (now ** 0.5 / (1 - now)) / (below ** 0.5 / (1 - below))
    ours = Inheritance(weight=0.4).compared(subject, [of_class, of_none], ((1 - now) / now) ** 0.5)
    assert float(ours) == pytest.approx(float(theirs * levels), rel=1e-3) and levels == pytest.approx(1, abs=0.02)
    assert (float(ours) == 0) == like_the_class


def test_the_first_step_is_that_loss_beside_the_pictures():
    model, clip = tiny.sd15(), tiny.clip()
    given, weight = images(model, (CAPTION,)), 0.7
    basis = LoRA(1e-3)
    learned = learn_concept(model, clip, given, [basis], steps=1, seed=SEED, objective=Inheritance("", weight))
    generator = torch.Generator().manual_seed(SEED)
    for name, w in model.model.diffusion_model.named_parameters():
        if basis.takes(name, w):
            basis.start(w, generator)
    (_, level, noise), = drawn(model, 1, 1, generator)
    sigma = model.model.model_sampling.sigmas[level].clone()
    with torch.inference_mode(False), torch.no_grad():
        noise, clean = noise.clone(), model.model.process_latent_in(given.examples[0].latent.clone())[None]
        x = (clean + sigma * noise) / (1 + sigma ** 2) ** 0.5
        eps = [twin.unet(model)(x, level, tiny.encode(clip, text)[0][0].clone()).sample
               for text in ("a photo of a sks dog", "a photo of a dog", "")]
        own, of_class, of_none = (clean + sigma * noise - sigma * e for e in eps)
        gained = (own - of_class).square().mean() - (own - of_none).square().mean()
        tau = float(gained > -(of_class - of_none).square().mean())
        expected = (eps[0] - noise).square().mean() + weight * tau * (1 + sigma ** 2) ** 0.5 / 2 / sigma ** 2 * gained
    assert tau == 1 and abs(float(gained)) > 1e-3
    assert learned.losses[0] == pytest.approx(float(expected), rel=1e-3)


def test_a_flow_model_learns_by_it_and_the_class_stays(monkeypatch):
    """A gradient comes through the subject's prediction alone, and σ is told as that of a picture of size 1."""
    model, ((objective,),), told = tiny.flux(), PalimpsestSuDe.execute(0.4, "").result, []
    compared = Inheritance.compared

    def noted(self, found, others, noise):
        told.append(([one.requires_grad for one in (found, *others)], float(noise)))
        return compared(self, found, others, noise)

    monkeypatch.setattr(Inheritance, "compared", noted)
    with_it, plain = (learn_concept(model, Texts(), images(model, (CAPTION,)), [LoRA(1e-3)], steps=1, objective=asked)
                      for asked in (objective, None))
    (learns, noise), = told
    assert learns == [True, False, False] and noise > 0
    assert with_it.losses != plain.losses and all(math.isfinite(loss) for loss in with_it.losses)
