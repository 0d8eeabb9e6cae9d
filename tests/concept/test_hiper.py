"""HiPer: the gradient of the rows through diffusers' network, and what the edit is given."""
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.editing.concepts import PromptRows
from palimpsest.editing.learning import learn_concept
from palimpsest.nodes.concept.hiper import PalimpsestHiPer, PalimpsestHiPerPrompt

import tiny
from concepts import EVERY, drawn, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

RATE, SEED, ROWS, STEPS = 5e-3, 3, 5, 3


def test_steps_equal_the_papers_equation():
    """Adam on the last rows through diffusers' network; the words' rows stay."""
    model, source = tiny.sd15(), tiny.encode(tiny.clip(), "a red cat on a mat")
    given, said = images(model), []
    learned = learn_concept(model, None, given, [PromptRows(source, RATE, ROWS)], None, STEPS, 1, SEED,
                            told=said.append)
    assert len(said) == 1 and said[0].step > 0
    with torch.inference_mode(False):
        unet, generator = twin.unet(model), torch.Generator().manual_seed(SEED)
        clean = model.model.process_latent_in(given.examples[0].latent[None].clone())
        words, rows = source[0][0][:, :-ROWS].clone(), source[0][0][:, -ROWS:].clone().requires_grad_()
        optimiser, losses = torch.optim.Adam([rows], lr=RATE), []
        for _ in range(STEPS):
            (_, level, noise), = drawn(model, 1, 1, generator)
            sigma = model.model.model_sampling.sigmas[level].clone()
            noisy = (clean + sigma * noise) / (1 + sigma ** 2) ** 0.5
            loss = (unet(noisy, level, torch.cat([words, rows], 1)).sample - noise).square().mean()
            rows.grad, = torch.autograd.grad(loss, rows)
            optimiser.step()
            losses.append(float(loss.detach()))
    found = learned.prompt[0][0]
    assert learned.losses == pytest.approx(losses, rel=1e-5)
    assert torch.equal(found[:, :-ROWS], source[0][0][:, :-ROWS])
    assert relative(found[:, -ROWS:] - source[0][0][:, -ROWS:], rows.detach() - source[0][0][:, -ROWS:]) < 1e-4


@pytest.mark.parametrize("family", EVERY)
def test_every_family_learns_rows_that_another_prompt_takes(family):
    model, target = EVERY[family](), tiny.cond(seed=5)
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    prompt, = PalimpsestHiPer.execute(model, latent, tiny.cond(), 3, 2, 1e-2, 1, 0).result
    assert relative(prompt[0][0][:, -3:], tiny.cond()[0][0][:, -3:]) > 1e-4
    (told, extras), = PalimpsestHiPerPrompt.execute(prompt, target, 3, 0.8).result[0]
    assert torch.equal(told[:, :-3], target[0][0][:, :-3]) and extras is target[0][1]
    assert torch.equal(told[:, -3:], 0.8 * prompt[0][0][:, -3:])


def test_what_cannot_work_is_said(caplog):
    model = tiny.sd15()
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    PalimpsestHiPer.execute(model, {**latent, "noise_mask": torch.ones(1, 1, 8, 8)}, tiny.cond(), 1, 1, 1e-2, 1, 0)
    assert "the whole picture is learned" in caplog.text
    with pytest.raises(ValueError, match="leaves none for its words"):
        PalimpsestHiPer.execute(model, latent, tiny.cond(), 8, 1, 1e-2, 1, 0)
