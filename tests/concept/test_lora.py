"""LoRA against the paper's equation, a step of it in diffusers' network, and the loaders that read its file."""
import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from palimpsest.bench import twin
from palimpsest.concept.lora import LoRA
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.learning import _check_clip, applied, learn_concept
from palimpsest.host.concept_files import vectors_of
from peft import LoraConfig

import nodes
import tiny
from concepts import drawn, images, next_losses, prediction, transformers_clip
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (6, 5, 1, 1)])
def test_the_change_is_a_product_of_rank_r(shape):
    weight, basis = torch.randn(shape, generator=torch.Generator().manual_seed(0)), LoRA(1e-3, rank=2, alpha=1.0)
    theta = basis.start(weight, torch.Generator().manual_seed(1))
    assert not basis.delta(theta, weight).count_nonzero() and theta["A"].count_nonzero()
    theta["B"] = torch.randn(theta["B"].shape, generator=torch.Generator().manual_seed(2))
    delta = basis.delta(theta, weight)
    plain = torch.stack([sum(theta["B"][o, r] * theta["A"][r] for r in range(2)) for o in range(6)]) / 2
    assert relative(delta, plain.view(shape)) < 1e-6
    assert int(torch.linalg.matrix_rank(delta.flatten(1))) == 2


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_the_hosts_lora_loader_loads_the_file(precision, tmp_path, monkeypatch, caplog):
    """Convolutions, projections and the text encoder, by the names that other programs know too."""
    from palimpsest.host.concept_files import lora_file
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [LoRA(1e-2, layers="all", text_encoder=True)], steps=2)
    path = tmp_path / "thing.safetensors"
    path.write_bytes(lora_file({name: v.to(precision) for name, v in learned.weights.items()}, {}))
    monkeypatch.setattr(nodes.folder_paths, "get_full_path_or_raise", lambda kind, name: str(path))
    theirs = nodes.LoraLoader().load_lora(model, clip, "thing.safetensors", 1.0, 1.0)
    ours = applied(model, clip, learned)
    assert "not loaded" not in caplog.text
    latent, prompt = {"samples": tiny.latent(model)}, tiny.encode(clip, "a dog")
    sampled = [nodes.common_ksampler(m, 1, 3, 1.0, "euler", "simple", prompt, prompt, latent)[0]["samples"]
               for m in (theirs[0], ours[0], model)]
    texts = [tiny.encode(c, "a dog")[0][0] for c in (theirs[1], ours[1], clip)]
    close = 1e-6 if precision == torch.float32 else 1e-3
    for found, same, without in (sampled, texts):
        assert relative(found, same) < close and relative(found, without) > 10 * close
    assert {name.split("_")[1] for name in learned.weights} == {"unet", "te"}
    assert any(name.startswith("lora_unet_down_blocks_0_attentions_0") for name in learned.weights)


def test_the_hosts_lora_loader_reads_sdxls_two_text_encoders(tmp_path, monkeypatch, caplog):
    """All of them, by their names te1 and te2, and the loss is that of training."""
    from palimpsest.host.concept_files import lora_file
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    clip.cond_stage_model.float()  # the host rounds what it adds to weights of 16 bits
    given, trained = images(model), [LoRA(1e-2, layers="all", text_encoder=True)]
    learned = learn_concept(model, clip, given, trained, steps=2)
    (tmp_path / "thing.safetensors").write_bytes(lora_file(learned.weights, {}))
    monkeypatch.setattr(nodes.folder_paths, "get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    loads = [nodes.LoraLoader().load_lora(model, clip, "thing.safetensors", 1.0, strength) for strength in (1.0, 0.0)]
    assert "not loaded" not in caplog.text
    assert {name.split("_")[1] for name in learned.weights} == {"unet", "te1", "te2"}
    (training, served), (_, without) = (
        next_losses(model, clip, given, trained, learned, knows, "a photo of sks") for knows in loads)
    assert served == pytest.approx(training, rel=1e-5) and abs(without / training - 1) > 1e-4


def test_the_hosts_bypass_predicts_as_in_training():
    """Beside the weights in place of in them, which is how the host loads a LoRA on quantised ones."""
    from comfy_extras.nodes_train import LoraModelLoader
    if "bypass" not in inspect.signature(getattr(LoraModelLoader, "execute", print)).parameters:
        pytest.skip("this host has no bypass")
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [LoRA(1e-1, alpha=2.0, layers="all")], steps=2)
    beside, = LoraModelLoader.execute(model, dict(learned.weights), 1.0, bypass=True).result
    prompt = tiny.encode(clip, "a dog")
    found, served, plain = (prediction(m, prompt)[1] for m in (beside, applied(model, clip, learned)[0], model))
    assert relative(found, served) < 1e-5 and relative(plain, served) > 0.1


def test_attention_alone_and_all_layers():
    model = tiny.sd15()
    inside = dict(model.model.diffusion_model.named_parameters())
    attention = {n for n, w in inside.items() if LoRA(1e-3).takes(n, w)}
    every = {n for n, w in inside.items() if LoRA(1e-3, layers="all").takes(n, w)}
    assert attention == {n for n in inside if ".attn" in n and n.endswith("weight")} and attention < every
    assert every == {n for n, w in inside.items() if w.ndim > 1}
    after = {n for n, w in inside.items() if LoRA(1e-3, layers="after cross-attention").takes(n, w)}
    blocks = sum(n.endswith("attn2.to_q.weight") for n in inside)
    assert after == {n for n in every if ".attn2.to_out" in n or ".ff." in n} and len(after) == 3 * blocks


class Begun(LoRA):
    """One whose B is not 0, so that A has a gradient too."""

    def start(self, weight, generator):
        theta = super().start(weight, generator)
        return {**theta, "B": (0.1 * torch.randn(theta["B"].shape, generator=generator)).requires_grad_()}


@pytest.mark.parametrize("layers", ["attention", "all", "after cross-attention"])
def test_a_step_equals_pefts_in_diffusers(layers):
    model, clip, seed = tiny.sd15(), tiny.clip(), 6
    given, basis = images(model, ("a photo of * star",)), Begun(1e-3, rank=3, alpha=1.5, layers=layers)
    start, learned = (learn_concept(model, clip, given, [basis], steps=n, seed=seed) for n in (0, 1))
    generator = torch.Generator()
    generator.set_state(start.state["generator"])
    (_, level, noise), = drawn(model, 1, 1, generator)
    with torch.inference_mode(False):
        unet = twin.unet(model)
        names = {f"lora_unet_{name.replace('.', '_')}": name for name, _ in unet.named_modules()}
        taken = {names[key.partition(".")[0]] for key in start.weights}
        unet.add_adapter(LoraConfig(r=3, lora_alpha=1.5, target_modules=sorted(taken)))
        theirs = {}
        for name in taken:
            layer, key = unet.get_submodule(name), f"lora_unet_{name.replace('.', '_')}"
            for end, part in (("down", layer.lora_A.default.weight), ("up", layer.lora_B.default.weight)):
                theirs[f"{key}.lora_{end}.weight"] = part
                part.data.copy_(start.weights[f"{key}.lora_{end}.weight"])
        clean = model.model.process_latent_in(given.examples[0].latent.clone())[None]
        sigma = model.model.model_sampling.sigmas[level].clone()
        noisy = (clean + sigma * noise.clone()) / (1 + sigma ** 2) ** 0.5
        text = tiny.encode(clip, "a photo of sks star")[0][0].clone()
        loss = (unet(noisy, level, text).sample - noise).square().mean()
        loss.backward()
        optimiser = torch.optim.AdamW([part for part in unet.parameters() if part.requires_grad], lr=1e-3)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimiser.step()
        wanted = {key: (part.grad, part.detach()) for key, part in theirs.items()}
    names = [key for key in learned.weights if key.endswith(".weight")]
    assert learned.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5) and set(names) == set(wanted)
    # AdamW's first mean is a tenth of the gradient
    means = [10 * state["exp_avg"] for state in learned.state["optimiser"]["state"].values()]
    pairs = [(mean.flatten(), wanted[key][0].flatten()) for key, mean in zip(names, means, strict=True)]
    assert relative(*(torch.cat(side) for side in zip(*pairs))) < 1e-5
    pairs = [(learned.weights[key].flatten(), wanted[key][1].flatten()) for key in names]
    assert relative(*(torch.cat(side) for side in zip(*pairs))) < 1e-5
    assert all(not torch.equal(learned.weights[key], start.weights[key]) for key in names)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_diffusers_loads_the_file_and_predicts_as_in_training(precision, tmp_path):
    """As its pipelines load it: by its own reading, as peft's branches."""
    from palimpsest.host.concept_files import lora_file
    model, clip = tiny.sd15(), tiny.clip()
    clip.cond_stage_model.float()  # the host rounds what it adds to weights of 16 bits
    basis = LoRA(1e-1, alpha=2.0, layers="all", text_encoder=True)
    learned = learn_concept(model, clip, images(model), [basis], steps=2)
    file = lora_file({name: value.to(precision) for name, value in learned.weights.items()}, {})
    (tmp_path / "thing.safetensors").write_bytes(file)
    m, encoder = applied(model, clip, learned)
    (x, served), (_, plain) = (prediction(one, tiny.encode(clip, "a dog")) for one in (m, model))
    texts, ids = (tiny.encode(c, "a dog")[0][0] for c in (encoder, clip)), clip.tokenize("a dog")["l"][0]
    with torch.inference_mode(False), torch.no_grad():
        unet = twin.unet(model)
        state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(tmp_path), weight_name="thing.safetensors", unet_config=unet.config)
        StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, unet)
        sigma = model.model.model_sampling.sigmas[500].clone()
        text = tiny.encode(clip, "a dog")[0][0].clone()
        theirs = x.clone() - sigma * unet(twin.z_of(x.clone(), sigma), 500, text).sample
        reader = transformers_clip(clip)
        StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(state, alphas, reader)
        read = reader(torch.tensor([[token for token, _ in ids]])).last_hidden_state
    assert len(state) == 2 * len({name.split(".")[0] for name in learned.weights})
    assert sum(name.startswith("text_encoder.") for name in state) == 2 * sum(
        "_te_" in name and name.endswith(".alpha") for name in learned.weights) > 0
    close = 1e-5 if precision == torch.float32 else 1e-3
    for found, same, without in ((theirs, served, plain), (read, *texts)):
        assert relative(found, same) < close and relative(without, same) > 10 * close


def test_a_clip_of_another_family_is_refused():
    """Whose second text encoder has no vectors of the word, and whose weights have other names."""
    model, clip, wide = tiny.sd15(), tiny.clip(), tiny.sdxl_clip()
    for trained in (TextualInversion("my-thing", "cat", 1, 1e-2), LoRA(1e-3, text_encoder=True)):
        concept = learn_concept(model, clip, images(model), [trained], steps=1)
        applied(model, clip, concept)
        with pytest.raises(ValueError, match="connect the CLIP of the family"):
            applied(model, wide, concept)


def test_a_words_encoders_are_the_clips_but_for_t5():
    clip, word = tiny.clip(), next(iter(vectors_of(tiny.clip(), "cat").items()))
    for more, fits in (({"t5xxl": torch.ones(1, 8)}, True), ({"clip_g": torch.ones(1, 8)}, False)):
        concept = SimpleNamespace(words={"my-thing": dict([word]) | more}, weights={})
        with nullcontext() if fits else pytest.raises(ValueError, match="connect the CLIP of the family"):
            _check_clip(clip, concept)
