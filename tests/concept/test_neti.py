"""NeTI: the authors' mapper, the textual bypass, and a network that learns through the host's encoder and network."""
import json

import pytest
import torch
from palimpsest.concept import neti
from palimpsest.concept.neti import ANCHORS, HIDDEN, NeuralSpaceTime
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import WordTable
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.editing.word_spaces import edges, prompt, stage_of
from palimpsest.host.layered import transformers
from palimpsest.nodes.concept.neti import PalimpsestNeTI

import tiny
from concepts import drawn, images, prediction
from node_execution import executor  # noqa: F401  runs every test as the host does
from pack import ROOT
from runs import relative
from word_spaces import CAPTION, Plain, serves

RATE, SEED, TEXT, STAGES = 1e-2, 4, "a photo of embedding:thing dog", NeuralSpaceTime.stages
PLACES, BYPASS = 7, 0.2


def test_the_mapper_equals_the_authors():
    """tests/data/neti.json has what their NeTIMapper gave with these weights, also with the hidden vector cut."""
    known = json.loads((ROOT / "tests/data/neti.json").read_text(encoding="utf-8"))
    layers, width, generator = known["layers"], known["width"], torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    w = draw(neti.WAVES, 2) / 0.2 * torch.tensor(neti.DEVIATIONS)
    theta = {"w": w, "norm": torch.tensor(known["norm"]), "0.bias": draw(ANCHORS * layers)}
    for n, fan in (("1", ANCHORS * layers), ("2", HIDDEN)):
        theta |= {f"{n}.weight": draw(HIDDEN, fan), f"{n}.bias": draw(HIDDEN), f"{n}.norm.weight": draw(HIDDEN),
                  f"{n}.norm.bias": draw(HIDDEN)}
    theta |= {"3.weight": draw(2 * width, HIDDEN), "3.bias": draw(2 * width)}
    grid = torch.cartesian_prod(torch.arange(0.0, 1000, 100), torch.arange(float(layers)))
    theta["0.weight"] = neti.encoding(w, *grid.T)
    assert relative(theta["0.weight"][:, :3].sum(1), torch.tensor(known["first"])) < 1e-5
    for case in known["cases"]:
        cut = None if case["cut"] is None else torch.full((layers,), case["cut"])
        found = neti.mapper(theta, torch.full((layers,), case["t"]), torch.arange(float(layers)), cut)
        assert relative(found, torch.tensor(case["output"])) < 1e-5


def test_the_bypass_reaches_values_alone():
    """Keys read the encoder's output, values the same with 0.2 of its norm added at the word, before the last
    normalisation; a word of equal vectors and no bypass is Textual Inversion."""
    model, clip = tiny.sd15(), tiny.clip()
    places, generator = transformers(model.model.diffusion_model), torch.Generator().manual_seed(2)
    vectors, added = (torch.randn(1, PLACES, 1, tiny.DIM, generator=generator) for _ in range(2))
    added = BYPASS * torch.nn.functional.normalize(added, dim=-1)
    (rows, _), = prompt(clip, {"thing": WordTable({"clip_l": vectors}, places, {"clip_l": added})}, TEXT)
    rows = rows.unflatten(1, (-1, 2 * PLACES))
    with torch.inference_mode(False):
        plain = Plain(model, clip)
        for n in range(PLACES):
            keys, values = plain.bypassed(vectors[0, n, 0].clone(), added[0, n, 0].clone(), BYPASS)
            assert relative(rows[:, :, n], keys.detach()) < 1e-5
            assert relative(rows[:, :, PLACES + n], values.detach()) < 1e-5
            assert relative(keys.detach(), values.detach()) > 1e-3
    word = learn_concept(model, clip, images(model, (CAPTION,)), [TextualInversion("thing", "cat", 1, RATE)], steps=1)
    vector = word.words["thing"]["clip_l"].repeat(1, PLACES, 1, 1)
    equal = WordTable({"clip_l": vector}, places, {"clip_l": torch.zeros_like(vector)})
    _, served = prediction(model, prompt(clip, {"thing": equal}, TEXT))
    _, wanted = prediction(model, tiny.encode(applied(model, clip, word)[1], TEXT))
    assert relative(served, wanted) < 1e-6


def test_a_step_equals_transformers_and_diffusers(monkeypatch):
    """The loss of each layer's two texts through diffusers' network, and the gradient of every weight of the mapper."""
    monkeypatch.setattr(neti, "DROPOUT", 0.0)
    model, clip = tiny.sd15(), tiny.clip()
    word = NeuralSpaceTime("thing", "cat", 1, RATE)
    found = learn_concept(model, clip, images(model, (CAPTION,)), [word], None, 1, 1, SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.inference_mode(False):
        plain = Plain(model, clip)
        theta = word.begin({"clip_l": plain.vector[None]}, PLACES, generator)
        (_, level, noise), = drawn(model, 1, 1, generator)
        stage = stage_of(model.model.model_sampling, float(model.model.model_sampling.sigmas[level]), STAGES)
        assert edges(STAGES)[stage] <= 1 - level / 999 <= edges(STAGES)[stage + 1]
        at = word.at(theta, stage)
        texts = [plain.bypassed(v, b, BYPASS)
                 for v, b in zip(at.vectors["clip_l"][:, 0], at.added["clip_l"][:, 0])]
        keys, values = zip(*texts)
        loss = plain.loss(list(keys), level, noise, list(values))
        leaves = [value for value in theta.values() if value.requires_grad]
        gradients = torch.autograd.grad(loss, leaves)
    assert found.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    moved = [found.state["optimiser"]["state"][n]["exp_avg"] / 0.1 for n in range(len(leaves))]
    assert len(found.state["optimiser"]["state"]) == len(leaves) == 12
    for mine, wanted in zip(moved, gradients):
        assert wanted.count_nonzero() and relative(mine, wanted) < 1e-5
    table = found.tables["thing"]
    assert table.vectors["clip_l"].shape == (STAGES, PLACES, 1, tiny.DIM)
    norm = torch.cat([at.vectors["clip_l"][0, 0], torch.zeros(tiny.DIM)]).norm()
    assert 0 < float(norm.detach()) < float(plain.vector.norm())


def test_the_file_predicts_as_in_training(tmp_path, monkeypatch):
    """Without the dropout, which is for learning."""
    monkeypatch.setattr(neti, "DROPOUT", 0.0)
    model, clip = tiny.sd15(), tiny.clip()
    word, = PalimpsestNeTI.execute("thing", "cat", RATE).result[0]
    concept = learn_concept(model, clip, images(model, (CAPTION,)), [word], None, 1, 1, SEED)
    training, served = serves(model, clip, concept, word, tmp_path, monkeypatch)
    assert served == pytest.approx(training, rel=1e-5)


def test_half_of_the_hidden_vectors_are_cut():
    """At random lengths while it learns, by the generator; not in sampling."""
    word = NeuralSpaceTime("thing", "cat", 1, RATE)
    theta = {k: v.detach() for k, v in word.begin({"clip_l": torch.ones(1, 4)}, 200,
                                                  torch.Generator().manual_seed(0)).items()}
    whole, same = word.at(theta, 3), word.at(theta, 3)
    cut, again = (word.at(theta, 3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(whole.vectors["clip_l"], same.vectors["clip_l"])
    assert torch.equal(cut.vectors["clip_l"], again.vectors["clip_l"])
    changed = (cut.vectors["clip_l"] != whole.vectors["clip_l"]).any(-1).float().mean()
    assert 0.35 < float(changed) < 0.65


def test_two_encoders_are_refused():
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    with pytest.raises(ValueError, match=r"2 \(clip_l, clip_g\): take an SD1.x or SD2.x checkpoint"):
        learn_concept(model, clip, images(model, (CAPTION,)), [NeuralSpaceTime("thing", "cat", 1, RATE)])
