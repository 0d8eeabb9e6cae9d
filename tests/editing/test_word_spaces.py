"""Words in layers and stages: two in one prompt, and files that hold none."""
import json

import pytest
import torch
from palimpsest.concept.textual_inversion import TextualInversion
from palimpsest.editing.concepts import Concept, WordTable
from palimpsest.editing.learning import learn_concept
from palimpsest.editing.word_files import KEY, read_word, word_file
from palimpsest.editing.word_spaces import prompt
from palimpsest.host.concept_files import lora_file, vectors_of, with_words
from palimpsest.host.layered import transformers
from palimpsest.host.sampling import fingerprint
from palimpsest.nodes.concept.words import PalimpsestConceptPrompt

import tiny
from concepts import images
from node_execution import executor  # noqa: F401  runs every test as the host does
from runs import kept, relative

STAGES, LAYERS = 3, 7


@kept
def parts():
    model = tiny.sd15()
    return model, tiny.clip(), transformers(model.model.diffusion_model)


def table(places, stages=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(stages, len(places) or 1, 1, tiny.DIM, generator=generator)
    return WordTable({"clip_l": vectors}, places)


def concept(words):
    return Concept({}, {}, fingerprint(parts()[0]), tables=words)


def test_two_words_stand_in_one_prompt():
    """One in layers, one in stages: each keeps its own vectors, and one word's coarse layers go with another's fine."""
    _, clip, places = parts()
    one, other, staged = table(places), table(places, seed=1), table((), STAGES, 2)
    both = prompt(clip, {"one": one, "staged": staged}, "a embedding:one in embedding:staged style")
    assert len(both) == STAGES
    for n, (rows, _) in enumerate(both):
        for layer in range(LAYERS):
            single = {name: WordTable({"clip_l": v}) for name, v in (
                ("one", one.vectors["clip_l"][:, layer:layer + 1]), ("staged", staged.vectors["clip_l"][n:n + 1]))}
            (wanted, _), = prompt(clip, single, "a embedding:one in embedding:staged style")
            assert relative(rows[:, layer::LAYERS], wanted) < 1e-6
    (mixed, _), = PalimpsestConceptPrompt.execute(clip, concept({"one": one}), "a embedding:one", "m, u0", 0.0, 1.0,
                                                  "a embedding:other", concept({"other": other})).result[0]
    for layer in range(LAYERS):
        name, own = ("one", one) if layer in (2, 3) else ("other", other)
        alone = WordTable({"clip_l": own.vectors["clip_l"][:, layer:layer + 1]})
        (wanted, _), = prompt(clip, {name: alone}, f"a embedding:{name}")
        assert relative(mixed[:, layer::LAYERS], wanted) < 1e-6


@pytest.mark.parametrize("behind", [".", "'s hat", "!"])
def test_a_sign_behind_a_word_does_not_hide_it_from_the_host(behind):
    clip, words = tiny.clip(), {"thing": WordTable({"clip_l": torch.randn(1, 1, 1, tiny.DIM)})}
    found, apart = (prompt(clip, words, f"a photo of {said}") for said in (f"embedding:thing{behind}",
                                                                          f"embedding:thing {behind}"))
    assert torch.equal(found[0][0], apart[0][0])
    model, word = tiny.sd15(), TextualInversion("thing", "cat", 1, 1e-2)
    learned = learn_concept(model, clip, images(model, (f"a photo of embedding:thing{behind}",)), [word], steps=1)
    assert relative(learned.words["thing"]["clip_l"], vectors_of(clip, "cat")["clip_l"]) > 1e-3


def test_a_text_of_two_chunks_is_read_whole():
    _, clip, places = parts()
    text = "a embedding:one " + "very " * 90 + "small"
    (rows, _), = prompt(clip, {"one": table(places)}, text)
    alone = WordTable({"clip_l": table(places).vectors["clip_l"][:, :1]})
    (wanted, _), = prompt(clip, {"one": alone}, text)
    assert rows.shape[1] == 2 * 77 * LAYERS and relative(rows[:, ::LAYERS], wanted) < 1e-6
    with pytest.raises(ValueError, match="different numbers of chunks"):
        prompt(clip, {"one": table(places)}, text, "a cat", frozenset(places[1:]))


def test_a_text_that_no_layer_reads_may_be_of_any_length():
    """75 tokens without the word, 76 with it; and another text before and after it, which no layer reads beside it."""
    _, clip, places = parts()
    text = "a embedding:one " + "very " * 73 + "dog"
    (rows, _), = prompt(clip, {"one": table(places)}, text)
    assert rows.shape[1] == 2 * 77 * LAYERS
    around = prompt(clip, {"one": table(places)}, text, "a cat", None, 0.2, 0.6)
    assert [rows.shape[1] for rows, _ in around] == [77, 2 * 77 * LAYERS, 77]


@pytest.mark.parametrize("before", [10, 70])
def test_a_word_of_many_vectors_has_them_all_where_the_text_parts_it(before):
    """The host parts a word of eight or more over two chunks. `prompt` gives the word's own vectors in its place, as
    an embedding's file does."""
    _, clip, _ = parts()
    vectors = torch.randn(1, 1, 10, tiny.DIM, generator=torch.Generator().manual_seed(3))
    text = "very " * before + "embedding:long dog"
    (found, _), = prompt(clip, {"long": WordTable({"clip_l": vectors})}, text)
    (wanted, _), = tiny.encode(with_words(clip, {"long": {"clip_l": vectors[0, 0]}}), text)
    assert found.shape[1] == (77 if before == 10 else 154) and relative(found, wanted) < 1e-6


def test_words_that_do_not_go_together_are_refused():
    _, clip, places = parts()
    with pytest.raises(ValueError, match="different layers or stages"):
        prompt(clip, {"one": table(places), "two": table(places[:3])}, "a embedding:one")
    with pytest.raises(ValueError, match="call their word one"):
        PalimpsestConceptPrompt.execute(clip, concept({"one": table(places)}), "a embedding:one", "", 0.0, 1.0, "",
                                        concept({"one": table(places)}))
    with pytest.raises(ValueError, match="none in layers or stages"):
        PalimpsestConceptPrompt.execute(clip, concept({}), "a embedding:one", "", 0.0, 1.0, "")


def test_a_file_holds_the_word_to_the_bit_or_is_refused(tmp_path):
    path, whole = tmp_path / "one.word.safetensors", concept({"one": table(parts()[2], STAGES)})

    def refused(data, said):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=said):
            read_word(path)

    data = word_file(whole, "one")
    path.write_bytes(data)
    found = read_word(path)
    assert found.tables["one"].places == whole.tables["one"].places and found.fingerprint == whole.fingerprint
    assert torch.equal(found.tables["one"].vectors["clip_l"], whole.tables["one"].vectors["clip_l"])
    refused(data[:200], "cannot be read as a safetensors file")
    refused(lora_file({"lora_up.weight": torch.ones(2, 2)}, {}), "make no whole word")
    refused(word_file(concept({"one": WordTable({"clip_l": torch.ones(1, 3, 1, 4)}, parts()[2])}), "one"), "no whole")
    refused(word_file(concept({"one": WordTable({"clip_l": torch.full((1, 1, 1, 4), torch.nan)})}), "one"), "no whole")
    vector = {"vectors.clip_l": torch.ones(1, 1, 1, 4)}
    refused(lora_file(vector, {KEY: json.dumps({"version": 9})}), "update the pack")
    refused(lora_file(vector, {KEY: json.dumps({"version": 1, "name": "../one", "places": []})}), "no whole")
