"""Words and their tokens, on the host's own tokenizers."""
import logging
import re

import comfy.text_encoders.sd2_clip
import pytest
import torch
from palimpsest.host.tokens import encode, parse_word_values, parse_words, tokenize, tokenize_rows
from palimpsest.nodes.attention.p2p import per_token
from palimpsest.nodes.prompt import PalimpsestPromptEdit
from safetensors.torch import save_file

import tiny
from clips import TokenizerOnly
from nodes import CLIPTextEncode
from vocabulary import (
    ALIGNER,
    BOS,
    CAT,
    EOS,
    clip,  # noqa: F401
)


class Strange:
    """HunyuanDiT's encoders."""

    def tokenize(self, text, return_word_ids=False):
        return {"hydit_clip": [[(1, 1.0, 0)]], "mt5xl": [[(1, 1.0, 0)]]}


def spelled(tokens):
    return [(word.text, word.positions) for word in tokens.words]


def test_words_are_found_behind_weights_and_brackets(clip):
    tokens = tokenize(clip, r"a ((red:1.2) cat:0.5), \(one\) xylophonist (oak)tree")
    assert spelled(tokens) == [("a", (1,)), ("red", (2,)), ("cat,", (3, 4)), ("(one)", (5, 6, 7)),
                               ("xylophonist", (8, 9, 10, 11)), ("oaktree", (12, 13))]
    assert tokens.weights[2:5] == (1.2, 0.5, 1.0) and tokens.weights[12] == pytest.approx(1.1)
    assert len(tokens.ids) == 77 and tokens.ids[0] == BOS and tokens.ids[3] == CAT and set(tokens.ids[14:]) == {EOS}


def test_every_token_of_a_prompt_belongs_to_one_word(clip):
    text = "Ein café,  d'été & 🐟🐟 l'İstanbul\t(日本語:1.3) <|endoftext|> don't?! ((deep)) 1990s unbalanced) ("
    tokens = tokenize(clip, text)
    given = [t for chunk in clip.tokenize(text, return_word_ids=True)["l"] for t in chunk]
    assert sorted(p for w in tokens.words for p in w.positions) == [i for i, (_, _, word) in enumerate(given) if word]
    assert [w.text for w in tokens.words] == [
        "Ein", "café,", "d'été", "&", "🐟🐟", "l'İstanbul", "日本語", "<|endoftext|>", "don't?!", "deep", "1990s",
        "unbalanced)", "("]


def test_positions_run_on_through_the_chunks_of_a_long_prompt(clip):
    tokens = tokenize(clip, " ".join(["photo"] * 80) + " cat")
    assert len(tokens.ids) == 154 and tokens.ids[76:78] == (EOS, BOS)
    assert [w.positions[0] for w in tokens.words] == [*range(1, 76), *range(78, 84)]
    assert tokens.find("cat").positions == (83,) and tokens.find("photo#76").positions == (78,)


def test_a_short_weighted_part_is_kept_whole_by_the_host_and_found_in_the_next_chunk(clip):
    tokens = tokenize(clip, " ".join(["photo"] * 74) + " (wolfhound:1.2)")
    assert tokens.ids[75:78] == (EOS, EOS, BOS) and tokens.find("wolfhound").positions == (78, 79)


def test_an_embedding_is_a_word_of_its_vectors(tmp_path):
    vectors = torch.arange(3 * 768).reshape(3, 768).float()
    save_file({"emb_params": vectors}, tmp_path / "ink.safetensors")
    tokens = tokenize(tiny.clip(str(tmp_path)), "a embedding:ink, cat (embedding:ink:1.2)dark embedding: ink")
    assert spelled(tokens) == [("a", (1,)), ("embedding:ink,", (2, 3, 4, 5)), ("cat", (6,)),
                               ("embedding:inkdark", (7, 8, 9, 10)), ("embedding: ink", (11, 12, 13))]
    assert tokens.find("embedding:ink").positions == (2, 3, 4, 7, 8, 9)
    assert max(tokens.ids[2:5]) < 0 and len(set(tokens.ids[2:5])) == 3
    assert tokens.ids[2:5] == tokens.ids[7:10] == tokens.ids[11:14] and tokens.weights[7] == 1.2


def test_an_embedding_that_is_missing_has_no_place(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        tokens = tokenize(tiny.clip(str(tmp_path)), "a embedding:none cat")
    assert spelled(tokens) == [("a", (1,)), ("cat", (2,))]


def test_both_encoders_of_sdxl_agree():
    text = "a (red:1.2) cat" + " photo" * 80
    both, single = tokenize(tiny.sdxl_clip(), text), tokenize(tiny.clip(), text)
    assert both.words == single.words and both.weights == single.weights and len(both.ids) == 154


def test_encoders_with_an_embedding_of_unequal_lengths_are_refused(tmp_path):
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)}, tmp_path / "ink.safetensors")
    clip = tiny.sdxl_clip(str(tmp_path))
    with pytest.raises(ValueError, match="4 of 77 tokens in encoder g and 3 of 77 in l"):
        tokenize(clip, "embedding:ink cat")


def test_sd2_is_read_like_sd1(clip):
    tokens = tokenize(TokenizerOnly(comfy.text_encoders.sd2_clip.SD2Tokenizer()), "a wolfhound, (red:1.2)")
    assert tokens.words == tokenize(clip, "a wolfhound, (red:1.2)").words


def test_text_encoders_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="encoders hydit_clip, mt5xl, .*SDXL, SD3, Flux.*load the CLIP of such"):
        tokenize(Strange(), "a cat")


def test_a_prompt_that_the_tokenizer_splits_elsewhere_is_refused(clip):
    """A control character that is a space for Python but not for the tokenizer."""
    with pytest.raises(ValueError, match="as 3 tokens and its words one by one as 2 other ones: write the prompt in "
                                         "plain"):
        tokenize(clip, "red\x1ccat")


def test_a_word_is_found_by_name_case_and_number(clip):
    tokens = tokenize(clip, 'A "Cat", a dog & a cat.')
    assert [tokens.find(n).positions for n in ("cat", "CAT#1", " cat#2 ", "&")] == [(3, 9), (3,), (9,), (7,)]
    other = tokenize(clip, "a dog")
    chosen = parse_words("dog, cat#2,\n", [tokens, other])
    assert [[w.text for w in row] for row in chosen] == [["dog", "cat"], ["dog"]] and parse_words(" ", [tokens]) == [[]]
    with pytest.raises(ValueError, match='"cat" names no word of "a dog"'):
        parse_words("cat", [tokens, other])


@pytest.mark.parametrize("name, said", [
    ("lion", '"lion" 0 times'), ("cat#3", '"cat" 2 times'), ("cat#0", '"cat" 2 times')])
def test_an_unknown_word_lists_the_words(clip, name, said):
    with pytest.raises(ValueError, match=rf"{said}.*choose from its words \(a, cat, and, a, cat\)"):
        tokenize(clip, "a cat and a cat").find(name)


def test_word_values_are_read():
    assert parse_word_values("Lion: 0.4, cat#2:1,\n embedding:ink: -2, default: 1.0,") == {
        "lion": 0.4, "cat#2": 1.0, "embedding:ink": -2.0, "default": 1.0}
    assert parse_word_values("") == {}


@pytest.mark.parametrize("text, said", [
    ("lion 0.4", '"lion 0.4" is no word'), ("lion: high", "lion: high"), (": 3", '": 3" is no word'),
    ("lion: nan", "lion: nan"), ("lion: inf", "lion: inf"), ("a: 1, A: 2", "two values, 1 and 2")])
def test_word_values_that_cannot_be_read_say_how_to_write_them(text, said):
    with pytest.raises(ValueError, match=said):
        parse_word_values(text)


@pytest.mark.parametrize("number", ["2", "-1", "1e+30"])
def test_a_number_without_a_meaning_names_the_range(number):
    with pytest.raises(ValueError, match=f"gives {re.escape(number)}, where .* from 0 to 1 "):
        parse_word_values(f"lion: {number}", 0, 1)
    assert parse_word_values("lion: 0, cat: 1", 0, 1) == {"lion": 0, "cat": 1}


@pytest.mark.parametrize("item", ALIGNER["words"], ids=lambda item: f"{item['word']} of {item['prompt']}")
def test_a_bare_word_is_all_its_occurrences_as_the_authors_find_them(clip, item):
    """Equal words are told apart by number, also in every list of words and in the numbers given to words."""
    tokens = tokenize(clip, item["prompt"])
    assert tokens.find(item["word"]).positions == tuple(item["indices"])
    numbered = [tokens.find(f"{item['word']}#{n + 1}").positions
                for n in range(item["prompt"].split().count(item["word"]))]
    assert sum(numbered, ()) == tuple(item["indices"])
    assert parse_words(f"{item['word']}, {item['word']}", [tokens]) == [[tokens.find(item["word"])] * 2]
    edit = PalimpsestPromptEdit.execute(clip, item["prompt"], item["prompt"], "auto").result[2]
    scaled, = per_token({item["word"]: 3.0}, edit, 1.0)
    assert scaled.tolist() == [3.0 if p in item["indices"] else 1.0 for p in range(77)]


NAMED = {"a cat, a dog": [("a", 1), ("cat", 2), ("a", 4), ("dog", 5)], "cat,dog": [("cat", 1), ("dog", 3)],
         "(cat:1.2), dog.": [("cat", 1), ("dog", 3)],
         "black/white... 3.5 d'été": [("black", 1), ("white", 3), ("3.5", 5), ("d'été", 8)],
         "a t-shirt & “ink”": [("a", 1), ("t-shirt", 2), ("&", 5), ("ink", 8)], "cat,,,": [("cat", 1)],
         "(oak)tree; score_9": [("oaktree", 1), ("score_9", 4)],
         "🐟🐟, 日本語。": [("🐟🐟,", 1), ("日本語", 4)]}  # one token is half a fish and the comma


@pytest.mark.parametrize("text", NAMED)
def test_punctuation_is_no_words_and_parts_words(clip, text):
    """Named so. The alignment's words stay the authors': split at spaces, and together they own every token."""
    tokens = tokenize(clip, text)
    assert [(word.text, word.positions[0]) for word in tokens.named] == NAMED[text]
    spelt = {i: clip.tokenizer.clip_l.inv_vocab[i].removesuffix("</w>") for i in tokens.ids}
    for word in tokens.named:
        read = "".join(spelt[tokens.ids[p]] for p in word.positions)
        assert not read.isascii() or read == word.text
    owned = [p for word in tokens.words for p in word.positions]
    assert owned == list(range(1, 1 + len(owned))) and tokens.ids[len(owned) + 1] == EOS
    assert len(tokens.words) == len(text.split())


def test_sdxl_rows_join_too():
    clip = tiny.sdxl_clip()
    tokens = tokenize_rows(clip, ["a cat", "a dog" + " photo" * 80])
    (cross, extra), = encode(clip, tokens)
    (alone, alone_extra), = CLIPTextEncode().encode(clip, tokens[1].text)[0]
    assert torch.equal(cross[1:], alone) and torch.equal(extra["pooled_output"][1:], alone_extra["pooled_output"])


def test_each_prompt_keeps_what_it_quotes(monkeypatch):
    """HunyuanImage reads it apart, by ByT5."""
    made, glyphs = tiny.clip(), [torch.full((1, 3, 8), float(n)) for n in range(2)]
    own, rows = made.encode_from_tokens_scheduled, tokenize_rows(made, ["a sign", "a wall"])

    def quoting(given):
        left = iter(given)

        def encoded(tokens):
            (cross, extra), = own(tokens)
            return [[cross, {**extra, "conditioning_byt5small": next(left)}]]
        return encoded

    monkeypatch.setattr(made, "encode_from_tokens_scheduled", quoting(glyphs))
    assert torch.equal(encode(made, rows)[0][1]["conditioning_byt5small"], torch.cat(glyphs))
    for other in (None, torch.zeros(1, 4, 8)):
        monkeypatch.setattr(made, "encode_from_tokens_scheduled", quoting([glyphs[0], other]))
        with pytest.raises(ValueError, match="conditioning_byt5small.*quote as much in each"):
            encode(made, rows)
