"""Imagic against diffusers: three and three steps of its community script, on equal weights and equal noise."""
import pytest
import torch
from diffusers import DDPMScheduler
from palimpsest.bench import twin
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.imagic import learn, mixed
from palimpsest.editing.learning import applied
from palimpsest.nodes.concept.imagic import PalimpsestImagic, PalimpsestImagicMix
from palimpsest.nodes.concept.lora import PalimpsestLearnLoRA
from palimpsest.nodes.concept.textual_inversion import PalimpsestNewWord

import tiny
from concepts import EVERY, drawn, images, prediction
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

PROMPT_RATE, RATE, SEED, STEPS, SHARE = 1e-3, 2e-4, 5, 3, 1.2


@torch.enable_grad()
def their_training(model, given, text):
    """(e_opt, the tuned network, losses) of the script's two loops: Adam, one noise a step, ε, MSE."""
    unet = twin.unet(model)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    clean, losses = model.model.process_latent_in(given.examples[0].latent[None].clone()), []
    e_opt = text.clone().requires_grad_()
    for leaves, rate in (([e_opt], PROMPT_RATE), (list(unet.parameters()), RATE)):
        generator = torch.Generator().manual_seed(SEED)
        optimiser = torch.optim.Adam(leaves, lr=rate)
        for _ in range(STEPS):
            (_, level, noise), = drawn(model, 1, 1, generator)
            t = torch.tensor([level])
            predicted = unet(scheduler.add_noise(clean, noise, t), t, e_opt).sample
            loss = torch.nn.functional.mse_loss(predicted, noise, reduction="none").mean([1, 2, 3]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        e_opt = e_opt.detach()
    return e_opt, unet, losses


def test_three_and_three_steps_and_the_mix_equal_diffusers():
    model, target = tiny.sd15(), tiny.encode(tiny.clip(), "a blue cat on a mat")
    given = images(model)
    learned = learn(model, given, target, [AllWeights(RATE)], STEPS, PROMPT_RATE, STEPS, 1, SEED)
    (e_mix, _), = prompt = mixed(learned.prompt, target, SHARE)
    x, plain = prediction(model, target)
    with torch.inference_mode(False), torch.no_grad():
        text = target[0][0].clone()
        e_opt, unet, losses = their_training(model, given, text)
        sigma = model.model.model_sampling.sigmas[500].clone()
        their_mix = SHARE * text + (1 - SHARE) * e_opt
        wanted = x - sigma * unet(twin.z_of(x.clone(), sigma), 500, their_mix).sample
    assert learned.losses == pytest.approx(losses, rel=1e-5)
    assert relative(e_mix - text, their_mix - text) < 1e-4 and relative(their_mix, text) > 1e-4
    _, found = prediction(applied(model, None, learned)[0], prompt)
    assert relative(found, wanted) < 1e-5 and relative(plain, wanted) > 1e-3


@pytest.mark.parametrize("family", EVERY)
def test_every_family_learns_a_prompt_and_then_the_picture(family):
    model = EVERY[family]()
    trained, = PalimpsestLearnLoRA.execute(1e-2, 4, 0.0, "all", False).result
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    base = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    m, prompt, concept = PalimpsestImagic.execute(model, latent, tiny.cond(), 2, 1e-2, 2, 1.0, 1, 0, trained).result
    assert relative(prompt[0][0], tiny.cond()[0][0]) > 1e-4 and len(concept.losses) == 4
    assert m.patches and concept.weights and not concept.words
    assert all(torch.equal(weight, base[name]) for name, weight in model.model.state_dict().items())
    again = PalimpsestImagic.execute(model, latent, tiny.cond(), 2, 1e-2, 2, 1.0, 1, 0, trained).result[1]
    assert torch.equal(again[0][0], prompt[0][0])


def test_what_cannot_work_is_said():
    model = tiny.sd15()
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    with pytest.raises(ValueError, match="TextualInversion, which learns in the text"):
        word = PalimpsestNewWord.execute("thing", "", 1, 1e-3).result[0]
        PalimpsestImagic.execute(model, latent, tiny.cond(), 1, 1e-3, 1, 1e-6, 1, 0, word)
    with pytest.raises(ValueError, match="no second prompt"):
        trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "all", True).result[0]
        PalimpsestImagic.execute(model, latent, tiny.cond(), 1, 1e-3, 1, 1e-6, 1, 0, trained)
    with pytest.raises(ValueError, match="one is needed"):
        PalimpsestImagic.execute(model, latent, [*tiny.cond(), *tiny.cond()], 1, 1e-3, 1, 1e-6, 1, 0)
    with pytest.raises(ValueError, match="LATENT is empty"):
        PalimpsestImagic.execute(model, {"samples": torch.zeros(1, 4, 8, 8)}, tiny.cond(), 1, 1e-3, 1, 1e-6, 1, 0)
    with pytest.raises(ValueError, match="encode both with one CLIP"):
        PalimpsestImagicMix.execute(tiny.cond(tokens=4), tiny.cond(), 0.7)
