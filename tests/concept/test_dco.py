"""DCO: its loss where nothing is learned yet, and after a step against diffusers' networks in the authors' program."""
import math

import comfy.utils
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.dco import DCO
from palimpsest.concept.lora import LoRA
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import Prior
from palimpsest.editing.learning import learn_concept
from palimpsest.host.concept_files import lora_names
from palimpsest.nodes.concept.dco import PalimpsestDCO
from palimpsest.nodes.concept.dreambooth import PalimpsestPriorPreservation
from palimpsest.nodes.concept.learn import PalimpsestLearnConcept

import tiny
from concepts import drawn, images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

SEED, CAPTIONS = 4, ("a photo of a * dog",)


@pytest.mark.parametrize("basis", [LoRA(1e-2, text_encoder=True), TextualInversion("thing", "dog", 1, 1e-2)],
                         ids=["weights", "word"])
def test_the_loss_of_a_model_that_learned_nothing_is_log_2(basis):
    """Under equal prompts: the caption's own word, or the word that the new one starts as."""
    model, clip = tiny.sd15(), tiny.clip()
    base = "dog" if isinstance(basis, TextualInversion) else "sks"
    learned = learn_concept(model, clip, images(model, CAPTIONS), [basis], steps=2, objective=DCO(base=base))
    log_2 = float(torch.tensor(2.0).log())
    assert learned.losses[0] == log_2 != learned.losses[1]
    other = learn_concept(model, clip, images(model, CAPTIONS), [basis], steps=1, objective=DCO(base="cat"))
    assert other.losses[0] != log_2


def test_its_gradient_there_is_that_of_the_plain_loss_times_half_beta():
    """Of one row's error, and of the weights, up to what clipping scales them by."""
    with torch.inference_mode(False), torch.enable_grad():
        error = torch.tensor([0.3, 0.1], requires_grad=True)
        gradient, = torch.autograd.grad(DCO(40.0).losses(error, error.detach()).sum(), error)
    assert torch.equal(gradient, torch.full((2,), 20.0))
    model, clip = tiny.sd15(), tiny.clip()
    runs = [learn_concept(model, clip, images(model, CAPTIONS), [LoRA(1e-2)], steps=1, seed=SEED, objective=objective)
            for objective in (DCO(base="sks"), None)]
    dco, plain = (torch.cat([s["exp_avg"].flatten() for s in run.state["optimiser"]["state"].values()]) for run in runs)
    assert float(torch.nn.functional.cosine_similarity(dco, plain, 0)) > 1 - 1e-5


def prediction(unet, model, noise, level, clean, text):
    sigma = model.model.model_sampling.sigmas[level].clone()
    return unet((clean + sigma * noise) / (1 + sigma ** 2) ** 0.5, level, text).sample


@pytest.mark.parametrize("weight", [None, 0.5], ids=["alone", "prior"])
def test_the_second_step_equals_the_authors_program(weight):
    """Both models are diffusers' of equal weights; the lines are those of the program, which leaves the prior's loss as
    it is."""
    model, clip, beta = tiny.sd15(), tiny.clip(), 1000.0
    given, basis, others = images(model, CAPTIONS), LoRA(1e-3, layers="all"), images(model, ("a dog",), seed=8)
    prior = Prior(others, weight) if weight else None
    one, two = (learn_concept(model, clip, given, [basis], prior, steps=n, seed=SEED, objective=DCO(beta))
                for n in (1, 2))
    generator = torch.Generator().manual_seed(SEED)
    for weight_of in basis_weights(model, basis):
        basis.start(weight_of, generator)
    draws = []
    for _ in range(2):
        draws.append([(pictures, *drawn(model, 1, 1, generator)[0][1:])
                      for pictures in ((given, others) if prior else (given,))])
    with torch.inference_mode(False), torch.no_grad():
        frozen, learned = twin.unet(model), twin.unet(model)
        called, theirs = lora_names(model), comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        inside = dict(learned.named_parameters())
        for name in theirs.keys() & inside.keys():
            file = called[theirs[name]]
            if name.endswith("weight") and f"{file}.lora_up.weight" in one.weights:
                up, down = (one.weights[f"{file}.lora_{end}.weight"].flatten(1) for end in ("up", "down"))
                inside[name] += (up @ down).view(inside[name].shape)
        losses = []
        for pictures, level, noise in draws[1]:
            noise, clean = noise.clone(), model.model.process_latent_in(pictures.examples[0].latent.clone())[None]
            texts = [tiny.encode(clip, pictures.examples[0].caption.replace("* ", word))[0][0].clone()
                     for word in ("sks ", "")]
            losses.append([torch.nn.functional.mse_loss(prediction(unet, model, noise, level, clean, text), noise)
                           for unet, text in ((learned, texts[0]), (frozen, texts[1]))])
        (loss_model, loss_refer), *plain = losses
        inside_term = -1 * beta * (loss_model - loss_refer)
        loss = -1 * torch.nn.LogSigmoid()(inside_term) + sum(weight * ours for ours, _ in plain)
    assert two.losses[1] == pytest.approx(float(loss), rel=1e-3)
    assert abs(two.losses[1] - math.log(2)) > 1e-2


def basis_weights(model, basis):
    names = lora_names(model)
    return [w for n, w in model.model.diffusion_model.named_parameters() if n in names and basis.takes(n, w)]


def test_a_new_words_vectors_keep_their_norms():
    model, clip = tiny.sd15(), tiny.clip()
    word = TextualInversion("thing", "a dog", 2, 1e-1)
    kept, free = (learn_concept(model, clip, images(model, CAPTIONS), [word], steps=3, objective=objective).words
                  ["thing"]["clip_l"] for objective in (DCO(), None))
    start = learn_concept(model, clip, images(model, CAPTIONS), [word], steps=0).words["thing"]["clip_l"]
    assert torch.allclose(kept.norm(dim=1), start.norm(dim=1), rtol=1e-5) and relative(kept, start) > 1e-2
    assert not torch.allclose(free.norm(dim=1), start.norm(dim=1), rtol=1e-3)


def test_a_concept_goes_on_under_the_objective_it_began_with():
    model, clip = tiny.sd15(), tiny.clip()
    given, basis = images(model, CAPTIONS), LoRA(1e-2)
    half = learn_concept(model, clip, given, [basis], steps=1, objective=DCO())
    whole = learn_concept(model, clip, given, [basis], steps=2, objective=DCO())
    on = learn_concept(model, clip, given, [basis], steps=1, objective=DCO(), concept=half)
    assert on.losses == whole.losses
    with pytest.raises(ValueError, match="go on with the same"):
        learn_concept(model, clip, given, [basis], steps=1, concept=half)


def test_objectives_chain_on_the_node_one_of_a_kind():
    model, clip = tiny.sd15(), tiny.clip()
    given, others = images(model, CAPTIONS), images(model, ("a dog",), seed=8)
    chained, = PalimpsestPriorPreservation.execute(others, 0.5, *PalimpsestDCO.execute(1000.0, " sks ").result).result

    def losses(objective):
        learned = PalimpsestLearnConcept.execute(model, clip, given, (LoRA(1e-2),), 1, 1, SEED, objective)
        return learned.result[3]["loss"]

    plain = learn_concept(model, clip, given, [LoRA(1e-2)], Prior(others, 0.5), steps=1, seed=SEED).losses[0]
    own = learn_concept(model, clip, given, [LoRA(1e-2)], steps=1, seed=SEED).losses[0]
    assert losses(chained)[0] == pytest.approx(math.log(2) + plain - own, rel=1e-5)
    with pytest.raises(ValueError, match="two objectives of one kind, DCO and DCO"):
        losses((DCO(), DCO(10.0)))
