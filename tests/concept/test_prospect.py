"""ProSpect: a vector of each stage learns at that stage's levels, and its prompt says it there."""
import pytest
import torch
from palimpsest.concept.prospect import PromptSpectrum
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import Concept, WordTable
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.editing.word_spaces import edges, prompt, stage_of
from palimpsest.nodes.concept.prospect import PalimpsestProSpect
from palimpsest.nodes.concept.words import PalimpsestConceptPrompt

import tiny
from concepts import drawn, images, prediction
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import kept, relative
from word_spaces import CAPTION, Plain, serves

RATE, SEED, TEXT, STAGES = 1e-2, 4, "a photo of embedding:thing dog", 10


@kept
def table():
    """A word of random vectors."""
    return WordTable({"clip_l": torch.randn(STAGES, 1, 1, tiny.DIM, generator=torch.Generator().manual_seed(1))})


def test_a_timestep_reads_the_stage_that_the_authors_list_has_for_it():
    """Their list begins with the stage in which sampling ends. The host's schedule gives an entry a stage, and no level
    of the network two."""
    sampling = tiny.sd15().model.model_sampling
    told = [(float(sampling.percent_to_sigma(a)), float(sampling.percent_to_sigma(b)))
            for a, b in zip(edges(STAGES), edges(STAGES)[1:])]
    for t in range(1000):
        authors = int(t * STAGES / 1000)
        sigma = float(sampling.sigmas[t])
        assert stage_of(sampling, sigma, STAGES) == STAGES - 1 - authors
        assert [start >= sigma >= end for start, end in told].index(True) == STAGES - 1 - authors
        assert sum(start >= sigma >= end for start, end in told) == 1


def test_steps_equal_transformers_and_diffusers():
    """AdamW on the vectors of the stages that were drawn; the others stay where they began but for its decay."""
    model, clip = tiny.sd15(), tiny.clip()
    found = learn_concept(model, clip, images(model, (CAPTION,)), [PromptSpectrum("thing", "cat", 1, RATE)], None, 3, 1,
                          SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.inference_mode(False):
        plain, losses, drawn_stages = Plain(model, clip), [], set()
        vectors = plain.vector.repeat(STAGES, 1).requires_grad_()
        optimiser = torch.optim.AdamW([vectors], lr=RATE)
        for _ in range(3):
            (_, level, noise), = drawn(model, 1, 1, generator)
            stage = STAGES - 1 - level * STAGES // 1000
            loss = plain.loss([plain.text(vectors[stage])], level, noise)
            vectors.grad, = torch.autograd.grad(loss, vectors)
            optimiser.step()
            losses.append(float(loss.detach()))
            drawn_stages.add(stage)
    told = found.tables["thing"].vectors["clip_l"][:, 0, 0]
    assert 1 < len(drawn_stages) < STAGES
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert relative(told - plain.vector, vectors.detach() - plain.vector) < 1e-3
    moved = found.state["optimiser"]["state"][0]["exp_avg"].flatten(1).abs().amax(1)
    assert {n for n in range(STAGES) if moved[n]} == drawn_stages


def test_equal_vectors_are_textual_inversion():
    model, clip = tiny.sd15(), tiny.clip()
    word = learn_concept(model, clip, images(model, (CAPTION,)), [TextualInversion("thing", "cat", 1, RATE)], steps=1)
    equal = WordTable({"clip_l": word.words["thing"]["clip_l"].repeat(STAGES, 1, 1, 1)})
    _, served = prediction(model, prompt(clip, {"thing": equal}, TEXT))
    _, wanted = prediction(model, tiny.encode(applied(model, clip, word)[1], TEXT))
    assert relative(served, wanted) < 1e-6


def test_the_file_predicts_as_in_training(tmp_path, monkeypatch):
    model, clip = tiny.sd15(), tiny.clip()
    word, = PalimpsestProSpect.execute("thing", "cat", RATE).result[0]
    concept = learn_concept(model, clip, images(model, (CAPTION,)), [word], None, 2, 4, SEED)
    training, served = serves(model, clip, concept, word, tmp_path, monkeypatch)
    assert served == pytest.approx(training, rel=1e-5)


def test_an_attribute_is_the_word_in_some_stages():
    """Start and end go to the nearest stage. Stages with one text are one entry."""
    clip, words = tiny.clip(), {"thing": table()}
    whole = prompt(clip, words, TEXT)
    assert len(whole) == STAGES and whole[0][1]["start_percent"] == 0.0 and whole[-1][1]["end_percent"] == 1.0
    assert all(before[1]["end_percent"] == after[1]["start_percent"] for before, after in zip(whole, whole[1:]))
    late = prompt(clip, words, TEXT, "a red dog", start=0.62)
    assert [extras["start_percent"] for _, extras in late] == [0.0, *edges(STAGES)[6:-1]]
    assert torch.equal(late[0][0], tiny.encode(clip, "a red dog")[0][0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(late[1:], whole[6:]))
    narrow = prompt(clip, words, TEXT, "a red dog", start=0.51, end=0.54)  # both are nearest to one edge
    assert [extras["start_percent"] for _, extras in narrow] == [0.0, *edges(STAGES)[5:7]]
    assert torch.equal(narrow[1][0], whole[5][0])
    for n, (rows, _) in enumerate(whole):
        assert n == 0 or relative(rows, whole[n - 1][0]) > 1e-4


def test_sdxl_learns_it_in_both_encoders():
    model, clip = tiny.sdxl(), tiny.sdxl_clip()
    found = learn_concept(model, clip, images(model, (CAPTION,)), [PromptSpectrum("thing", "cat", 1, RATE)], steps=1)
    assert set(found.tables["thing"].vectors) == {"clip_l", "clip_g"}
    assert torch.isfinite(prediction(model, prompt(clip, found.tables, TEXT))[1]).all()


def test_a_word_for_all_layers_has_none_to_choose():
    with pytest.raises(ValueError, match="one for all layers"):
        concept = Concept({}, {}, None, tables={"thing": table()})
        PalimpsestConceptPrompt.execute(tiny.clip(), concept, TEXT, "d0", 0.0, 1.0, "")
