"""DisenBooth: its losses on diffusers' network, its adapter as PyTorch's layers, and CLIP vision of the host."""
import json
import math

import comfy.clip_vision
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.disenbooth import Disentangled, adapter
from palimpsest.concept.lora import LoRA
from palimpsest.editing.learning import learn_concept
from palimpsest.nodes.concept.disenbooth import PalimpsestDisenBooth

import tiny
from concepts import drawn, images
from node_execution import executor  # noqa: F401  runs every test as the host does

SEED, CAPTIONS = 4, ("a photo of a * dog", "a * dog on grass")


def width(clip):
    return tiny.encode(clip, "")[0][0].shape[-1]


def embeddings(count, width):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(9))


def test_the_adapter_is_a_mask_and_two_layers_beside_it():
    asked = Disentangled(embeddings(3, 8))
    theta = asked.begin(torch.Generator().manual_seed(0))
    theta["mask"] += torch.randn(8, generator=torch.Generator().manual_seed(1))
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    assert {name: v.shape for name, v in layers.state_dict().items()} == {
        {"0": "0", "1": "2"}[name[0]] + name[1:]: v.shape for name, v in theta.items() if name != "mask"}
    bound = 8 ** -0.5  # where PyTorch's layers begin
    assert all(float(v.abs().max()) <= bound for name, v in theta.items() if name != "mask")
    layers.load_state_dict({{"0": "0", "1": "2"}[name[0]] + name[1:]: v for name, v in theta.items() if name != "mask"})
    f = asked.embeddings / (1 + (-theta["mask"]).exp())
    with torch.no_grad():
        torch.testing.assert_close(adapter(theta, asked.embeddings), f + layers(f))


def test_the_first_step_is_the_papers_loss():
    model, clip, basis = tiny.sd15(), tiny.clip(), LoRA(1e-3)
    given = images(model, CAPTIONS)
    asked = Disentangled(embeddings(2, width(clip)), weak=0.3, apart=0.2)
    learned = learn_concept(model, clip, given, [basis], steps=1, batch=2, seed=SEED, objective=asked)
    generator = torch.Generator().manual_seed(SEED)
    for name, w in model.model.diffusion_model.named_parameters():
        if basis.takes(name, w):
            basis.start(w, generator)
    theta = asked.begin(generator)
    total = 0.0
    with torch.inference_mode(False), torch.no_grad():
        for number, level, noise in drawn(model, 2, 2, generator):
            sigma = model.model.model_sampling.sigmas[level].clone()
            noise, clean = noise.clone(), model.model.process_latent_in(given.examples[number].latent.clone())[None]
            x = (clean + sigma * noise) / (1 + sigma ** 2) ** 0.5
            f_s = tiny.encode(clip, CAPTIONS[number].replace("*", "sks"))[0][0].clone()
            f_i = adapter(theta, asked.embeddings[number])
            both, alone = ((twin.unet(model)(x, level, rows).sample - noise).square().mean()
                           for rows in (f_s + f_i, f_s))
            mean = f_s[0].mean(0)
            total += both + 0.3 * alone + 0.2 * (mean @ f_i) / (mean.norm() * f_i.norm())
    assert learned.losses[0] == pytest.approx(float(total / 2), rel=1e-3)
    plain = learn_concept(model, clip, given, [basis], steps=1, batch=2, seed=SEED)
    assert learned.weights.keys() == plain.weights.keys() and not learned.words  # the adapter is not kept


def test_the_adapter_learns_and_going_on_is_as_not_having_stopped():
    model, clip = tiny.sd15(), tiny.clip()
    given, asked = images(model, CAPTIONS), Disentangled(embeddings(2, width(clip)), lr=1e-2)

    def run(steps, concept=None):
        return learn_concept(model, clip, given, [LoRA(1e-3)], steps=steps, concept=concept, objective=asked)

    once, first = run(2), run(1)
    parted = run(1, first)
    assert once.losses == parted.losses and all(torch.equal(v, parted.weights[k]) for k, v in once.weights.items())
    before = asked.begin(torch.Generator()).values()
    for (now, later), start in zip(zip(*(c.state["theta"][-len(before):] for c in (first, once))), before):
        assert now.shape == start.shape and not torch.equal(now, later)


def test_the_hosts_clip_vision_reads_the_pictures(tmp_path):
    model, clip = tiny.sd15(), tiny.clip()
    torch.manual_seed(0)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "model_type": "clip_vision_model", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "hidden_act": "gelu", "image_size": 16, "patch_size": 8, "num_channels": 3,
        "projection_dim": width(clip)}))
    vision = comfy.clip_vision.ClipVisionModel(str(config))
    for p in vision.model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    seen = vision.encode_image(torch.rand(2, 24, 16, 3))
    (objective,), = PalimpsestDisenBooth.execute(seen, 0.01, 0.001, 1e-4).result
    assert objective.pictures == 2 and not torch.equal(*objective.embeddings)
    learned = learn_concept(model, clip, images(model, CAPTIONS), [LoRA(1e-3)], steps=2, objective=objective)
    assert all(math.isfinite(loss) for loss in learned.losses)


@pytest.mark.parametrize("count, more, said", [(3, 0, "knows 3 pictures, Concept Images has 2"),
                                               (2, 1, "SDXL and flow models have none")], ids=["count", "width"])
def test_other_pictures_or_another_encoder_are_refused(count, more, said):
    model, clip = tiny.sd15(), tiny.clip()
    with pytest.raises(ValueError, match=said):
        learn_concept(model, clip, images(model, CAPTIONS), [LoRA(1e-3)], steps=1,
                      objective=Disentangled(embeddings(count, width(clip) + more)))
