"""The nodes of concepts, from pictures to the host's own files, on the miniature."""
import dataclasses
import json
from pathlib import Path

import folder_paths
import pytest
import torch
from palimpsest.host.sampling import fingerprint
from palimpsest.miniature.model import load_miniature
from palimpsest.nodes.concept import learn
from palimpsest.nodes.concept.custom_diffusion import PalimpsestLearnKV
from palimpsest.nodes.concept.dreambooth import PalimpsestLearnAll, PalimpsestPriorPreservation
from palimpsest.nodes.concept.images import PalimpsestClassImages, PalimpsestConceptImages
from palimpsest.nodes.concept.learn import (
    PalimpsestApplyConcept,
    PalimpsestConceptHook,
    PalimpsestLearnConcept,
    PalimpsestSaveConcept,
)
from palimpsest.nodes.concept.lora import PalimpsestLearnLoRA
from palimpsest.nodes.concept.svdiff import PalimpsestLearnSpectral
from palimpsest.nodes.concept.textual_inversion import PalimpsestNewWord
from palimpsest.nodes.miniature import PalimpsestMiniatureSubject
from safetensors import safe_open
from safetensors.torch import load_file

import nodes
from node_execution import executor, in_lists  # noqa: F401  runs every test as the host does
from runs import kept, relative


@kept
def parts():
    return load_miniature()


@kept
def concept_images(identifier="sks", count=2):
    pictures, captions, *_ = PalimpsestMiniatureSubject.execute(0, count).result
    return in_lists(PalimpsestConceptImages, pictures, parts()[2], captions, identifier).result[0]


def sampled(model, clip, text="a photo of a sks star on a grass background", concept=None, cfg=3.0):
    prompt, null = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in (text, ""))
    prompt = PalimpsestConceptHook.execute(prompt, concept, 1.0).result[0] if concept else prompt
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    return nodes.common_ksampler(model, 0, 3, cfg, "ddim", "ddim_uniform", prompt, null, empty)[0]["samples"]


def test_from_pictures_to_files_that_the_hosts_loaders_read(tmp_path, monkeypatch):
    """A word and a LoRA, learned together with pictures of the class, saved, and loaded without this pack."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    model, clip, vae = parts()
    trained = PalimpsestNewWord.execute("my-star", "star", 1, 1e-2).result[0]
    trained = PalimpsestLearnLoRA.execute(1e-2, 4, 2.0, "all", False, trained).result[0]
    others, pictures = PalimpsestClassImages.execute(
        model, clip, vae, "star", "a photo of a *\na sketch of a *", 3, 128, 128, 2, 3.0, "ddim", "ddim_uniform",
        0).result
    assert pictures.shape == (3, 128, 128, 3)
    assert sorted(e.caption for e in others.examples) == [
        "a photo of a star", "a photo of a star", "a sketch of a star"]
    objective, = PalimpsestPriorPreservation.execute(others, 1.0).result
    m, c, concept, losses, _ = PalimpsestLearnConcept.execute(
        model, clip, concept_images(), trained, 2, 1, 0, objective).result
    assert len(losses["loss"]) == 2 and torch.isfinite(torch.tensor(losses["loss"])).all()
    files = PalimpsestSaveConcept.execute(concept, "my-concept", "fp32").result[0].split("\n")
    assert files == ["loras/my-concept_00001_.safetensors", "embeddings/my-star_00001_.safetensors"]
    assert PalimpsestSaveConcept.execute(concept, "my-concept", "fp32").result[0].startswith("loras/my-concept_00002_")
    with safe_open(tmp_path / files[0], "pt") as file:
        said = file.metadata()
    about = json.loads(said["palimpsest"])
    assert said["modelspec.trigger_phrase"] == "embedding:my-star_00001_"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "2")
    assert about["base"] == dataclasses.asdict(fingerprint(model))
    assert about["steps"] == 2 and about["captions"] == [e.caption for e in concept_images().examples]
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    theirs, _ = nodes.LoraLoader().load_lora(model, clip, files[0], 1.0, 0.0)
    knows = clip.clone()
    knows.tokenizer = type(clip.tokenizer)(embedding_directory=str(tmp_path / "embeddings"))
    ours = sampled(m, c, "a photo of a embedding:my-star star")
    assert relative(sampled(theirs, knows, "a photo of a embedding:my-star_00001_ star"), ours) < 1e-5
    assert relative(sampled(model, clip, "a photo of a star star"), ours) > 1e-3


@pytest.mark.parametrize("node, settings", [
    (PalimpsestLearnAll, (1e-3, False)), (PalimpsestLearnKV, (1e-2,)), (PalimpsestLearnSpectral, (1e-1,)),
    (PalimpsestLearnLoRA, (1e-2, 4, 0.0, "attention", True))], ids=lambda node: getattr(node, "__name__", ""))
def test_every_trainable_learns_and_can_be_weakened(node, settings):
    model, clip, _ = parts()
    trained = node.execute(*settings).result[0]
    m, c, concept, *_ = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 2, 1, 0).result
    before, full = sampled(model, clip), sampled(m, c)
    half = sampled(*PalimpsestApplyConcept.execute(model, clip, concept, 0.5, 0.5).result)
    none = sampled(*PalimpsestApplyConcept.execute(model, clip, concept, 0.0, 0.0).result)
    assert torch.equal(none, before)
    assert 0 < relative(half, before) < relative(full, before)


@pytest.mark.parametrize("node, settings", [
    (PalimpsestLearnAll, (1e-3, True)), (PalimpsestLearnKV, (1e-2,)), (PalimpsestLearnSpectral, (1e-1,))],
    ids=lambda node: getattr(node, "__name__", ""))
def test_files_of_whole_changes_are_what_was_learned(node, settings, tmp_path, monkeypatch):
    """Of weights and biases, through the host's own loader."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    model, clip, _ = parts()
    m, c, concept, *_ = PalimpsestLearnConcept.execute(
        model, clip, concept_images(), node.execute(*settings).result[0], 2, 1, 0).result
    file = PalimpsestSaveConcept.execute(concept, "mine", "fp32").result[0].split("\n")[0]
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    theirs, knows = nodes.LoraLoader().load_lora(model, clip, file, 1.0, 1.0)
    assert relative(sampled(theirs, knows), sampled(m, c)) < 1e-5 < 1e-3 < relative(sampled(model, clip), sampled(m, c))


@pytest.mark.parametrize("bypass", [False, True])
def test_the_hosts_own_nodes_take_what_was_learned(bypass):
    loader = pytest.importorskip("comfy_extras.nodes_train").LoraModelLoader
    if not hasattr(loader, "execute"):
        pytest.skip("ComfyUI 0.3.64 has no bypass")
    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-2, 4, 2.0, "all", False).result[0]
    m, c, _, _, lora = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 2, 1, 0).result
    assert relative(sampled(loader.execute(model, lora, 1.0, bypass).result[0], c), sampled(m, c)) < 1e-5


def test_a_concept_on_one_prompt_is_the_tuned_model_to_the_last_bit():
    model, clip, _ = parts()
    trained = PalimpsestLearnKV.execute(1e-1).result[0]
    tuned, _, concept, *_ = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 1, 1, 0).result
    wanted = sampled(tuned, clip, cfg=1.0)
    assert torch.equal(sampled(model, clip, concept=concept, cfg=1.0), wanted)
    assert relative(sampled(model, clip, cfg=1.0), wanted) > 1e-3
    with pytest.raises(ValueError, match="words need no hook"):
        PalimpsestConceptHook.execute([], dataclasses.replace(concept, weights={}), 1.0)


def test_pictures_of_other_sizes_join():
    _, _, vae = parts()
    wide = in_lists(PalimpsestConceptImages, torch.rand(1, 64, 128, 3), vae, "a *", "sks", concept_images()).result[0]
    assert len(wide.examples) == 3 and wide.examples[-1].latent.shape == (4, 8, 16)
    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "attention", False).result[0]
    assert PalimpsestLearnConcept.execute(model, clip, wide, trained, 2, 3, 0).result[2].weights


def test_captions_are_one_for_all_or_one_each():
    with pytest.raises(ValueError, match="1 captions and no picture"):
        in_lists(PalimpsestConceptImages, torch.rand(0, 64, 64, 3), parts()[2], "a *", "sks")
    with pytest.raises(ValueError, match="3 pictures and 2 captions"):
        in_lists(PalimpsestConceptImages, torch.rand(3, 64, 64, 3), parts()[2], "a *\nthe *", "sks")
    with pytest.raises(ValueError, match="one identifier"):
        in_lists(PalimpsestConceptImages, torch.rand(1, 64, 64, 3), parts()[2], "a *", "other", concept_images())


def test_class_images_need_a_noun_and_its_place():
    for noun, templates in (("", "a *"), ("star", "a star"), ("* star", "a *"), ("", "")):
        with pytest.raises(ValueError, match="give a noun"):
            PalimpsestClassImages.execute(*parts(), noun, templates, 1, 128, 128, 1, 1.0, "ddim", "simple", 0)


def test_without_templates_the_class_is_drawn_at_forty_places_and_plainly():
    found, _ = PalimpsestClassImages.execute(*parts(), "star", " ", 41, 128, 128, 1, 1.0, "ddim", "simple", 0).result
    said = [example.caption for example in found.examples]
    assert len({*said}) == 41 and said[0] == "a photo of a star" and all(" a star" in text for text in said)


def test_the_class_has_a_seed_for_each_call_of_the_sampler_up_to_the_last_one():
    found, _ = PalimpsestClassImages.execute(*parts(), "star", "a *\nthe *", 2, 128, 128, 1, 1.0, "ddim", "simple",
                                             2 ** 64 - 2).result
    alone, _ = PalimpsestClassImages.execute(*parts(), "star", "the *", 1, 128, 128, 1, 1.0, "ddim", "simple", 0).result
    assert torch.equal(found.examples[1].latent, alone.examples[0].latent)


def test_embeddings_in_the_output_folder_are_found():
    folder = Path(folder_paths.get_output_directory(), "embeddings")
    from palimpsest.host.concept_files import register_folders
    register_folders()
    assert str(folder) in folder_paths.get_folder_paths("embeddings")


def test_a_run_saves_as_it_learns_looks_and_keeps_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "attention", False).result[0]
    m, _, concept, losses, _ = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 4, 1, 0,
                                                           save_every=2, look_every=2).result
    files = sorted(path.name for path in (tmp_path / "loras").iterdir())
    assert files == ["learned-2-steps_00001_.safetensors", "learned-4-steps_00001_.safetensors"]
    assert concept.looks and concept.notes["kept"] == concept.looks[-1].step and len(losses["loss"]) == 4
    kept, last = (load_file(tmp_path / "loras" / name) for name in files)
    wanted = {0: None, 2: kept, 4: last}[concept.notes["kept"]]
    assert wanted is None or all(torch.equal(wanted[name], value.half()) for name, value in concept.weights.items())


def test_the_hosts_graph_draws_the_losses(tmp_path, monkeypatch):
    from comfy_extras.nodes_train import LossGraphNode
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "attention", False).result[0]
    losses = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 2, 1, 0).result[3]
    draw = getattr(LossGraphNode, "execute", None) or LossGraphNode().plot_loss  # ComfyUI 0.3.64's name
    assert draw(losses, "loss") and list(tmp_path.rglob("*.png"))


def test_names_and_folders_that_no_loader_would_find_are_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "attention", False).result[0]
    concept = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 1, 1, 0).result[2]
    for name in ("", " ", ".", "../mine", "a/../../mine", "my\0dog", "my\ud83ddog"):
        with pytest.raises(ValueError, match="is of no file in"):
            PalimpsestSaveConcept.execute(concept, name, "fp16")
    with pytest.raises(ValueError, match="give a shorter name"):
        PalimpsestSaveConcept.execute(dataclasses.replace(concept, words={"my-dog": {"clip_l": torch.ones(1, 8)}}),
                                      300 * "a", "fp16")
    assert not list(tmp_path.rglob("my-dog*"))
    file, = PalimpsestSaveConcept.execute(concept, "dogs/my dög", "fp16").result
    assert file == "loras/dogs/my dög_00001_.safetensors"
    with safe_open(tmp_path / file, "pt") as held:
        assert held.metadata()["modelspec.trigger_phrase"] == "sks"
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "file"))
    monkeypatch.setattr(learn, "learn_concept", None)  # would be an error of another kind
    with pytest.raises(ValueError, match="set save_every to 0"):
        PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 2, 1, 0, save_every=1)


def test_a_step_of_more_rows_than_pictures_is_noted(caplog):
    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "attention", False).result[0]
    with caplog.at_level("INFO", "palimpsest"):
        PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 1, 2, 0)
        assert "rows of 2 pictures" not in caplog.text and "A step needs about" in caplog.text
        PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 1, 3, 0)
    assert "draws 3 rows of 2 pictures" in caplog.text


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    model, clip, _ = parts()
    trained = PalimpsestLearnLoRA.execute(1e-3, 4, 0.0, "attention", False).result[0]
    with monkeypatch.context() as disk:
        disk.setattr(learn, "lora_file", full)
        concept = PalimpsestLearnConcept.execute(model, clip, concept_images(), trained, 2, 1, 0,
                                                 save_every=1).result[2]
        assert len(concept.losses) == 2 and "1 steps learned cannot be saved (No space left" in caplog.text
        with pytest.raises(ValueError, match="No space left on device.*Nothing is learned again"):
            PalimpsestSaveConcept.execute(concept, "mine", "fp16")
    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", full)  # the last that it does
        with pytest.raises(ValueError, match="No space left on device"):
            PalimpsestSaveConcept.execute(concept, "mine", "fp16")
    assert not [*tmp_path.rglob("*mine*")]
    with pytest.raises(ValueError, match="give a shorter name"):
        PalimpsestSaveConcept.execute(concept, 300 * "x", "fp16")
    assert PalimpsestSaveConcept.execute(concept, "mine", "fp16").result[0]
