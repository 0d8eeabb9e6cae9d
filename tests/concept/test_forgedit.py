"""Forgedit: joint steps against diffusers' network, the embedding's geometry, and what is forgotten."""
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.forgedit import forgotten, learn, projected
from palimpsest.concept.svdiff import SpectralShifts
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.nodes.concept.forgedit import PalimpsestForgedit, PalimpsestForgeditPrompt, PalimpsestForget
from palimpsest.nodes.concept.lora import PalimpsestLearnLoRA

import tiny
from concepts import EVERY, drawn, images, prediction
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import kept, relative

PROMPT_RATE, RATE, SEED, STEPS, BATCH = 1e-3, 2e-4, 6, 2, 2


@torch.enable_grad()
def jointly(model, given, text):
    """(e_src, the tuned network, losses) of one Adam with a rate for each."""
    unet, e_src = twin.unet(model), text.clone().requires_grad_()
    clean, losses = model.model.process_latent_in(given.examples[0].latent[None].clone()), []
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.Adam([{"params": unet.parameters(), "lr": RATE}, {"params": [e_src], "lr": PROMPT_RATE}])
    for _ in range(STEPS):
        rows = drawn(model, 1, BATCH, generator)
        levels, noise = torch.tensor([level for _, level, _ in rows]), torch.cat([noise for *_, noise in rows]).clone()
        sigma = model.model.model_sampling.sigmas.clone()[levels].view(-1, 1, 1, 1)
        noisy = twin.z_of(clean + sigma * noise, sigma)
        loss = (unet(noisy, levels, e_src.expand(BATCH, -1, -1)).sample - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return e_src.detach(), unet, losses


def test_prompt_and_network_learn_together_as_in_the_paper():
    model, source = tiny.sd15(), tiny.encode(tiny.clip(), "a red cat on a mat")
    given = images(model)
    learned = learn(model, given, source, [AllWeights(RATE)], PROMPT_RATE, STEPS, BATCH, SEED)
    x, plain = prediction(model, source)
    with torch.inference_mode(False), torch.no_grad():
        e_src, unet, losses = jointly(model, given, source[0][0].clone())
        sigma = model.model.model_sampling.sigmas[500].clone()
        wanted = x - sigma * unet(twin.z_of(x.clone(), sigma), 500, e_src).sample
    assert learned.losses == pytest.approx(losses, rel=1e-5)
    assert relative(learned.prompt[0][0] - source[0][0], e_src - source[0][0]) < 1e-4
    _, found = prediction(applied(model, None, learned)[0], learned.prompt)
    assert relative(found, wanted) < 1e-5 and relative(plain, wanted) > 1e-3


def test_identity_and_edit_stand_apart():
    """e_edit is orthogonal to e_src; both at 1 give the target less the part that it shares, plus e_src whole."""
    learned, target = tiny.cond(seed=3), tiny.cond(seed=4)
    (e, extras), = projected(learned, target, 0.9, 1.3)
    e_src, e_tgt = learned[0][0], target[0][0]
    edit = (e - 0.9 * e_src) / 1.3
    assert abs(float((edit * e_src).sum())) < 1e-3 * float(e_src.square().sum())
    shared = e_tgt - edit
    assert relative(shared / shared.norm(), e_src / e_src.norm() * (shared * e_src).sum().sign()) < 1e-4
    assert extras is target[0][1]
    for edit, wanted in ((0.0, e_src), (1.0, e_tgt)):
        found, = PalimpsestForgeditPrompt.execute(learned, target, "subtraction", edit, 0.9).result
        assert relative(found[0][0], wanted) < 1e-6


@kept
def concept():
    return learn(tiny.sd15(), images(tiny.sd15()), tiny.cond(), [AllWeights(1e-3)], 1e-3, 1, 1)


@pytest.mark.parametrize("half, other", [("encoder", "up_blocks"), ("decoder", "down_blocks")])
@pytest.mark.parametrize("keeps, part", [("nothing", None), ("attention", "_attn"), ("keys and values", "_to_k")])
def test_one_half_forgets_but_for_what_is_kept(half, other, keeps, part):
    held, left = concept().weights, PalimpsestForget.execute(concept(), half, keeps).result[0].weights
    gone = held.keys() - left.keys()
    mine = "down_blocks" if half == "encoder" else "up_blocks"
    assert gone and all(mine in name for name in gone)
    assert {n for n in left if other in n or "mid_block" in n} == {n for n in held if other in n or "mid_block" in n}
    assert bool([n for n in left if mine in n]) == (part is not None)
    assert part is None or not any(part in name for name in gone)


def test_a_concept_in_few_numbers_forgets_them_too():
    model = tiny.sd15()
    learned = learn_concept(model, tiny.clip(), images(model), [SpectralShifts(1e-2)], steps=1)
    left = forgotten(learned, "encoder", "attention")
    gone = {name.removesuffix(".diff") for name in learned.weights.keys() - left.weights.keys()}
    assert gone and learned.compact.keys() - left.compact.keys() == gone


def test_a_concept_with_nothing_to_forget_is_refused():
    once = forgotten(concept(), "encoder", "attention")
    with pytest.raises(ValueError, match="would forget nothing"):
        forgotten(once, "encoder", "attention")


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_other_families_learn_too(family):
    model = EVERY[family]()
    trained, = PalimpsestLearnLoRA.execute(1e-2, 4, 0.0, "all", False).result
    latent = {"samples": model.model.process_latent_out(tiny.latent(model))}
    m, prompt, learned = PalimpsestForgedit.execute(model, latent, tiny.cond(), 2, 1e-2, 1.0, 2, 0, trained).result
    assert m.patches and relative(prompt[0][0], tiny.cond()[0][0]) > 1e-4
    if family == "flux":
        with pytest.raises(ValueError, match="SD1.x, SD2.x, SDXL"):
            PalimpsestForget.execute(learned, "encoder", "nothing")
