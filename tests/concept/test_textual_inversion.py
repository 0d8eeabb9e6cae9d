"""Textual Inversion: the gradient of a word through the host's text encoder, and the file that holds the word."""
import shutil

import folder_paths
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing import learner, learning
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.host.concept_files import embedding_file, with_words, word_exists
from safetensors.torch import load

import clips
import tiny
from concepts import EVERY, Texts, clip_of, drawn, images, transformers_clip
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import relative

RATE, SEED = 1e-3, 4


def test_a_step_equals_transformers_and_diffusers():
    """One AdamW step of the vector, through transformers' text encoder and diffusers' U-Net of equal weights."""
    model, clip = tiny.sd15(), tiny.clip()
    given = images(model, ("a photo of * dog",))
    learned = learn_concept(model, clip, given, [TextualInversion("thing", "cat", 1, RATE)], steps=1, seed=SEED)
    (_, level, noise), = drawn(model, 1, 1, torch.Generator().manual_seed(SEED))
    with torch.inference_mode(False):
        encoder = transformers_clip(clip)
        ids = [token for token, _ in clip.tokenize("a photo of cat dog")["l"][0]]
        place = [token for token, _ in clip.tokenize("cat")["l"][0]][1]
        table = encoder.get_input_embeddings()
        vector = table.weight[place].detach().clone().requires_grad_()
        found = {}
        table.register_forward_hook(lambda module, args, out: torch.cat(
            [out[:, :ids.index(place)], vector[None, None], out[:, ids.index(place) + 1:]], 1))
        clean = model.model.process_latent_in(given.examples[0].latent.clone())[None]
        sigma = model.model.model_sampling.sigmas[level].clone()
        noisy = (clean + sigma * noise.clone()) / (1 + sigma ** 2) ** 0.5
        text = encoder(torch.tensor([ids])).last_hidden_state
        loss = (twin.unet(model)(noisy, level, text).sample - noise).square().mean()
        found, = torch.autograd.grad(loss, vector)
        optimiser = torch.optim.AdamW([vector], lr=RATE)
        vector.grad = found
        optimiser.step()
        after = vector.detach()
    assert learned.losses[0] == pytest.approx(float(loss), rel=1e-5)
    assert relative(learned.words["thing"]["clip_l"][0], after) < 1e-6
    moved = learned.state["optimiser"]["state"][0]["exp_avg"] / 0.1  # AdamW's first mean is a tenth of the gradient
    assert relative(moved[0], found) < 1e-5


@pytest.mark.parametrize("family, vectors", [("sd15", 1), ("sd15", 2), ("sdxl", 1)])
def test_the_word_serves_as_it_learned(family, vectors):
    """`embedding:NAME` reads the learned vectors, SDXL's one for each encoder. Other prompts stay as they are."""
    model = {"sd15": tiny.sd15, "sdxl": tiny.sdxl}[family]()
    clip = {"sd15": tiny.clip, "sdxl": tiny.sdxl_clip}[family]()
    learned = learn_concept(model, clip, images(model), [TextualInversion("thing", "cat", vectors, 1e-2)], steps=2)
    m, told = applied(model, clip, learned)
    assert set(learned.words["thing"]) == ({"clip_l"} if family == "sd15" else {"clip_l", "clip_g"})
    assert not learned.weights and all(len(v) == vectors for v in learned.words["thing"].values())
    tokens = told.tokenize("a photo of embedding:thing")
    for key, rows in tokens.items():
        held = [token for token, *_ in rows[0] if torch.is_tensor(token)]
        assert torch.equal(torch.stack(held).cpu(), learned.words["thing"][f"clip_{key}"])
    same, word, like = (tiny.encode(c, text)[0][0] for c, text in (
        (told, "a dog"), (told, "a photo of embedding:thing"), (clip, "a photo of" + vectors * " cat")))
    assert torch.equal(same, tiny.encode(clip, "a dog")[0][0])
    assert relative(word, like) > 1e-4


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_hosts_file_of_two_vectors_encodes_as_in_training(family, tmp_path):
    """Bit for bit what goes into the network in the next step."""
    model = {"sd15": tiny.sd15, "sdxl": tiny.sdxl}[family]()
    encoders, seen = {"sd15": tiny.clip, "sdxl": tiny.sdxl_clip}[family], []
    clip, given, trained = encoders(), images(model), [TextualInversion("thing", "cat", 2, 1e-2)]
    learned = learn_concept(model, clip, given, trained, steps=2)
    hook = model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args, told: seen.append((told["context"].detach(), told.get("y"))), with_kwargs=True)
    learn_concept(model, clip, given, trained, steps=1, concept=learned)
    hook.remove()
    (tmp_path / "thing.safetensors").write_bytes(embedding_file(learned.words["thing"]))
    (text, extra), = tiny.encode(encoders(str(tmp_path)), "a photo of embedding:thing")
    (context, y), = seen
    assert torch.equal(context, text) and not torch.equal(text, tiny.encode(clip, "a photo of cat cat")[0][0])
    assert y is None or torch.equal(y[:, :tiny.POOLED].detach(), extra["pooled_output"])


def test_the_file_is_what_other_programs_read():
    vectors = {"clip_l": torch.randn(2, 8)}
    assert load(embedding_file(vectors)).keys() == {"emb_params"}
    assert load(embedding_file({**vectors, "clip_g": torch.randn(2, 8)})).keys() == {"clip_l", "clip_g"}


def test_a_name_that_is_taken_is_refused(tmp_path):
    (tmp_path / "thing.safetensors").write_bytes(embedding_file({"clip_l": torch.randn(1, tiny.DIM)}))
    model, clip = tiny.sd15(), tiny.clip(str(tmp_path))
    with pytest.raises(ValueError, match="choose another name"):
        learn_concept(model, clip, images(model), [TextualInversion("thing", "cat", 1, 1e-2)])


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_an_emptied_temp_folder_takes_no_word_away(family, tmp_path, monkeypatch):
    """The host empties it at its start and end, also for a second one from the same place."""
    model, clip = EVERY[family](), clips.clip("sd3") if family == "sd3" else clip_of(family)
    trained = [TextualInversion("thing", "cat", 1, 1e-1)]
    whole = learn_concept(model, clip, images(model), trained, steps=2)
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    step = learner.Learner.step
    monkeypatch.setattr(learner.Learner, "step", lambda self: (shutil.rmtree(tmp_path, True), step(self))[1])
    found = learn_concept(model, clip, images(model), trained, steps=2).words["thing"]
    assert all(torch.equal(v, whole.words["thing"][encoder]) for encoder, v in found.items())
    knows = with_words(with_words(clip, {"thing": found}), {"other": found})
    before = tiny.encode(knows, "a embedding:thing, embedding:other dog")[0][0]
    shutil.rmtree(tmp_path, True)
    assert torch.equal(before, tiny.encode(knows, "a embedding:thing, embedding:other dog")[0][0])
    assert word_exists(knows, "thing") and word_exists(knows, "other") and not word_exists(clip, "thing")
    held = [sum(torch.is_tensor(token) for row in rows for token, *_ in row)
            for rows in knows.tokenize("a embedding:thing, embedding:other dog").values()]
    assert held.count(2) >= len(found)


def test_a_learning_word_that_the_tokens_lack_is_said(monkeypatch):
    monkeypatch.setattr(learner, "with_words", lambda clip, words: clip)
    with pytest.raises(ValueError, match="'a photo of embedding:thing' has embedding:thing, .* no vector of that"):
        learn_concept(tiny.sd15(), tiny.clip(), images(tiny.sd15()), [TextualInversion("thing", "cat", 1, 1e-2)])


@pytest.mark.parametrize("family", [name for name in ("flux", "sd3", "zimage") if name in clips.MADE])
def test_every_text_encoder_that_the_host_reads_embeddings_in_learns_a_vector(family):
    """SD3's lacks one of its three, as where the host's loader is given two."""
    model, clip = EVERY[family](), clips.clip(family)
    given, word = images(model, ("a photo of * dog",)), TextualInversion("thing", "cat", 1, 1e-1)
    start, learned = (learn_concept(model, clip, given, [word], steps=n).words["thing"] for n in (0, 2))
    assert set(start) == {"flux": {"clip_l", "t5xxl"}, "sd3": {"clip_l", "t5xxl"}, "zimage": {"qwen3_4b"}}[family]
    assert all(relative(learned[encoder], v) > 0.1 for encoder, v in start.items())
    told = with_words(clip, {"thing": start})
    texts = (told, "a embedding:thing dog"), (clip, "a cat dog")
    same = relative(*(c.encode_from_tokens(c.tokenize(text)) for c, text in texts))
    assert same < 1e-3 or family == "zimage"  # whose tokens have the blank before a word in them


def test_a_text_encoder_without_embeddings_is_refused(monkeypatch):
    """ComfyUI 0.30's tokenizer of Qwen-Image fails on them. Another one may have no place for them."""
    monkeypatch.setattr(learning, "differentiable", None)  # would be an error of another kind
    for family, clip in (("qwen", clips.clip("qwen")), ("sd15", Texts())):
        model = EVERY[family]()
        with pytest.raises(ValueError, match="takes no embedding in prompts .* train LoRA Weights"):
            learn_concept(model, clip, images(model), [TextualInversion("thing", "cat", 1, 1e-1)])
