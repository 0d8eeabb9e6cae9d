"""What cannot be learned, and what is said of what one may not mean."""
import dataclasses

import pytest
import torch
from palimpsest.concept.custom_diffusion import KeysAndValues
from palimpsest.concept.dco import DCO
from palimpsest.concept.disenbooth import Disentangled
from palimpsest.concept.dreambooth import AllWeights
from palimpsest.concept.lora import LoRA
from palimpsest.concept.sude import Inheritance
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing import concept_checks, learning
from palimpsest.editing.concepts import ConceptImages, Prior, PromptRows
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.host.concept_files import lora_file, read_file, with_weights
from palimpsest.nodes.concept.decomposition import PalimpsestDecomposition
from palimpsest.nodes.concept.dreamartist import PalimpsestDreamArtist

import tiny
from concepts import Texts, images
from node_execution import executor  # noqa: F401  runs every test as the host does

CAPTIONS = "a photo of * on grass", "a * at night"
WORD, THIN = TextualInversion("thing", "dog", 1, 1e-3), LoRA(1e-3)


class Others(AllWeights):
    """What attention's LoRA leaves."""

    def takes(self, name, weight):
        return "attn" not in name


def shows(given, latent):
    """Pictures with another latent, where there is one."""
    return given if latent is None else ConceptImages(
        tuple(dataclasses.replace(e, latent=latent) for e in given.examples), given.identifier)


@pytest.mark.parametrize("given, said", [
    (dict(trained=[]), "nothing to train"),
    (dict(images=ConceptImages((), "sks")), "no picture"),
    (dict(trained=[LoRA(0.0)]), "learning rate of LoRA is 0"),
    (dict(trained=[WORD], captions=("a dog",)), r"have no \*"),
    (dict(trained=[WORD, TextualInversion("other", "cat", 1, 1e-3)]), "2 new words"),
    (dict(trained=[TextualInversion("thing", "dog", 3, 1e-3)], like="two dogs"), "is 2 tokens"),
    (dict(trained=[LoRA(1e-3, text_encoder=True)], clip=Texts), "turn text_encoder off"),
    (dict(trained=[LoRA(1e-3, layers="attention", text_encoder=True), Others(1e-3, text_encoder=True)]),
     "both train the text encoder"),
    (dict(trained=[THIN], captions=("a dog",), identifier=""), "connect Concept Images"),
    (dict(trained=[THIN], prior="a * dog"), "connect Class Images"),
    (dict(trained=[AllWeights(1e-3)], memory=10 ** 6), "train LoRA Weights"),
    (dict(trained=[WORD, WORD], captions=("a embedding:thing",)), "new words are called thing"),
    (dict(trained=[WORD, TextualInversion("Thing", "dog", 1, 1e-3)], captions=("a embedding:thing",)),
     "new words are called Thing"),
    (dict(trained=[PromptRows(tiny.cond(), 0.0)]), "learning rate of PromptRows is 0"),
    (dict(prior=()), "no picture of the class"),
    (dict(objective=DCO()), "no noun is left, as in 'a photo of \\*'"),
    (dict(objective=DCO(), captions=("a * dog", "a *, at night")), "in 1 of 2 no noun is left"),
    (dict(objective=Inheritance()), "Inheritance asks .* no noun is left"),
    (dict(identifier=" "), r"\* reads as ' ' in the captions"),
    (dict(identifier="embedding:mine"), r"\* reads as 'embedding:mine' in the captions"),
    (dict(latent=torch.full((4, 8, 8), float("nan"))), "The latent of picture 1 has 256 of 256 values that are NaN"),
    (dict(latent=torch.ones(16, 8, 8)), "The latent of picture 1 has 16 channels, this MODEL works on 4"),
    (dict(latent=torch.zeros(4, 8, 8)), "The latent of picture 1 is empty"),
    (dict(prior="a dog", of_class=torch.ones(16, 8, 8)), "The latent of class picture 1 has 16 channels"),
    (dict(narrow=32), "rows of 64 numbers, and this BaseModel MODEL reads rows of 32"),
    (dict(objective=Disentangled(torch.ones(1, 7))), "DisenBooth adds CLIP's 7 numbers"),
    (dict(dynamic=True), "load it with ComfyUI's own nodes"),
])
def test_bad_input_is_refused_before_anything_is_computed(given, said, monkeypatch):
    monkeypatch.setattr(learning, "differentiable", None)  # would be an error of another kind
    model, clip = tiny.sd15(context_dim=given.get("narrow", 64)), given.get("clip", tiny.clip)()
    trained = given.get("trained", [THIN])
    if "like" in given:
        trained = [dataclasses.replace(trained[0], like=given["like"])]
    pictures = given.get("images") or shows(images(model, given.get("captions", ("a photo of *",)),
                                                   given.get("identifier", "sks")), given.get("latent"))
    prior = None
    if "prior" in given:
        others = images(model, (given["prior"],)) if given["prior"] else ConceptImages(())
        prior = Prior(shows(others, given.get("of_class")), 1.0)
    model.is_dynamic = lambda: "dynamic" in given  # on a graphics card its weights move
    if "memory" in given:
        monkeypatch.setattr(concept_checks, "total_bytes", lambda model: given["memory"])
    with pytest.raises(ValueError, match=said):
        learn_concept(model, clip, pictures, trained, prior, objective=given.get("objective"))


def test_the_hosts_quantised_tensors_are_known_whatever_dtype_they_tell():
    quantised = pytest.importorskip("comfy.quant_ops").QuantizedTensor
    if not hasattr(quantised, "from_float"):
        pytest.skip("this host has none")
    model, clip = tiny.sd15(), tiny.clip()
    to_q = model.model.diffusion_model.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    q_proj = clip.cond_stage_model.get_submodule("clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj")
    for layer, basis, cure in ((q_proj, LoRA(1e-3, text_encoder=True), "turn text_encoder off"),
                               (to_q, AllWeights(1e-3), "train LoRA Weights, or load a checkpoint")):
        with torch.inference_mode():
            held = quantised.from_float(layer.weight.data, "TensorCoreFP8Layout")
            layer.weight = torch.nn.Parameter(held, requires_grad=False)
        assert layer.weight.dtype.itemsize > 1
        with pytest.raises(ValueError, match=f"weight is QuantizedTensor of torch.float.*{cure}"):
            learn_concept(model, clip, images(model), [basis])


class Packed(torch.Tensor):
    """A weight of another node's loader, as GGUF files are held."""


def test_weights_of_other_nodes_loaders_learn_no_lora():
    model, clip = tiny.sd15(), tiny.clip()
    to_q = model.model.diffusion_model.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    to_q.weight = torch.nn.Parameter(to_q.weight.data.as_subclass(Packed), requires_grad=False)
    with pytest.raises(ValueError, match="is Packed of torch.float32, and learning adds to plain numbers: load a"):
        learn_concept(model, clip, images(model), [THIN])
    assert len(learn_concept(model, clip, images(model), [WORD], steps=1).losses) == 1


def test_an_embedding_that_the_clip_knows_may_be_the_identifier():
    model, clip = tiny.sd15(), tiny.clip()
    _, knows = applied(model, clip, learn_concept(model, clip, images(model, ("a *",)), [WORD], steps=1))
    given = images(model, ("a photo of *",), "embedding:thing")
    assert learn_concept(model, knows, given, [THIN], steps=1).weights


def test_captions_without_the_concept_are_said(caplog):
    model, clip = tiny.sd15(), tiny.clip()
    learn_concept(model, clip, images(model, ("a * dog", "a dog", "a sks dog")), [THIN], steps=0)
    assert "1 of 3 captions have neither * nor sks" in caplog.text and "'a dog'" in caplog.text
    caplog.clear()
    learn_concept(model, clip, images(model, ("a dog",)), [THIN], steps=0, objective=DCO())
    assert not caplog.text


@pytest.mark.parametrize("basis", [THIN, AllWeights(1e-3), KeysAndValues(1e-3)], ids=lambda basis: type(basis).__name__)
def test_a_concept_does_not_go_on_from_a_model_that_has_its_file(basis, tmp_path):
    """Of 16 bits, as Save Concept writes it. Another concept's does not matter."""
    model, clip = tiny.sd15(), tiny.clip()
    learned, other = (learn_concept(model, clip, images(model), [basis], steps=1, seed=seed) for seed in (0, 1))

    def loaded(concept):
        path = tmp_path / f"{id(concept)}.safetensors"
        path.write_bytes(lora_file({name: value.half() for name, value in concept.weights.items()}, {}))
        return with_weights(model, clip, read_file(path)[0], 0.7, 0.0)[0]

    assert len(learn_concept(loaded(other), clip, images(model), [basis], steps=1, concept=learned).losses) == 2
    with pytest.raises(ValueError, match="on top of themselves"):
        learn_concept(loaded(learned), clip, images(model), [basis], steps=1, concept=learned)


def test_nor_from_a_clip_that_has_it_but_from_both_at_strength_0():
    model, clip, trained = tiny.sd15(), tiny.clip(), [LoRA(1e-2, text_encoder=True)]
    learned = learn_concept(model, clip, images(model), trained, steps=2)
    m, c = applied(model, clip, learned)
    for whose, given in (("CLIP", (model, c)), ("MODEL", (m, clip))):
        with pytest.raises(ValueError, match=f"The {whose} has the .* on top of themselves: connect the {whose}"):
            learn_concept(given[0], given[1], images(model), trained, steps=1, concept=learned)
    weak = applied(model, clip, learned, 0.0, 0.0)
    assert len(learn_concept(*weak, images(model), trained, steps=1, concept=learned).losses) == 3


@pytest.mark.parametrize("node, names", [(PalimpsestDreamArtist, "my-neg"), (PalimpsestDecomposition, "my-1, my-2")])
def test_one_of_two_outputs_alone_is_refused(node, names, caplog, monkeypatch):
    """What the objective reads must learn, and words that no caption has need it. Both errors name what lacks."""
    monkeypatch.setattr(learning, "differentiable", None)  # would be an error of another kind
    model, clip = tiny.sd15(), tiny.clip()
    more = (1, 1, 1e-3, 3.0) if node is PalimpsestDreamArtist else (1e-3, 0.5)
    trained, (objective,) = node.execute("my", "cat", *more).result
    for others, learns in (([THIN], "of no node"), ([WORD], "thing")):
        with pytest.raises(ValueError, match=f"words {names}, .*the words {learns}: connect also the trainable"):
            learn_concept(model, clip, images(model), others, objective=objective)
    with pytest.raises(ValueError, match="connect also the objective"):
        learn_concept(model, clip, images(model), trained)
    assert not caplog.text


def test_a_second_concept_with_a_words_name_is_said(caplog):
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model, ("a *",)), [WORD], steps=1)
    _, knows = applied(model, clip, learned)
    assert "takes its place" not in caplog.text
    applied(model, knows, learned)
    assert "knows an embedding called thing, and the CONCEPT's takes its place" in caplog.text


def test_a_concept_goes_on_with_what_it_began_with_only():
    model, clip = tiny.sd15(), tiny.clip()
    learned = learn_concept(model, clip, images(model), [THIN], steps=1)
    with pytest.raises(ValueError, match="go on with the same"):
        learn_concept(model, clip, images(model), [AllWeights(1e-3)], concept=learned)
    with pytest.raises(ValueError, match="CONCEPT was made on another family"):
        applied(tiny.sd2(), clip, learned)
    with pytest.raises(ValueError, match="on top of themselves"):
        learn_concept(applied(model, clip, learned, 0.5)[0], clip, images(model), [THIN], concept=learned)
    with pytest.raises(ValueError, match="learn on from its MODEL"):
        learn_concept(model, clip, images(model), [THIN], concept=dataclasses.replace(learned, state=None))
    whole = learn_concept(model, clip, images(model), [AllWeights(1e-3)], steps=1)
    with pytest.raises(ValueError, match="on top of themselves"):
        learn_concept(applied(model, clip, whole)[0], clip, images(model), [AllWeights(1e-3)], concept=whole)


def test_going_on_with_something_else_to_learn_from_is_said(caplog):
    model, clip = tiny.sd15(), tiny.clip()
    given, others = images(model, CAPTIONS), images(model, ("a dog", "a cat"), seed=9)
    learned = learn_concept(model, clip, given, [THIN], Prior(others, 0.5), steps=1)
    one, two = given.examples
    masked = dataclasses.replace(one, masks={"*": torch.ones(8, 8)})

    def goes_on(examples=given.examples, identifier="sks", prior=None, batch=1):
        caplog.clear()
        learn_concept(model, clip, ConceptImages(tuple(examples), identifier), [THIN], prior or Prior(others, 0.5),
                      steps=0, batch=batch, concept=learned)
        said = caplog.text.partition("another choice of ")[2].partition(", so it is")[0]
        return said.replace(" (2 pictures now, 2 before)", "")

    again = [dataclasses.replace(e, latent=e.latent.clone()) for e in given.examples]
    assert not goes_on() and not goes_on(again) and not caplog.text
    assert goes_on([one, two, one]) == "captions, pictures (3 pictures now, 2 before)"
    assert goes_on([one, dataclasses.replace(two, latent=one.latent)]) == goes_on([masked, two]) == "pictures"
    assert goes_on([one, dataclasses.replace(two, caption="the *")]) == "captions"
    assert goes_on(identifier="xyz") == "identifier" and goes_on(batch=2) == "batch"
    assert goes_on(prior=Prior(others, 0.6)) == "prior"
    assert goes_on(prior=Prior(images(model, ("a dog", "a bird"), seed=9), 0.5)) == "class pictures"
    assert goes_on(prior=Prior(others, 0.5, True)) == "class pictures"
    assert goes_on(prior=Prior(others, 0.0)) == "prior, class pictures"


def test_a_word_has_a_name_that_the_host_reads_whole():
    with pytest.raises(ValueError, match="letter"):
        TextualInversion("my thing", "dog", 1, 1e-3)
