"""Prompt Edit: rows encoded as by the host, and aligned or refused."""
import pytest
import torch
from palimpsest.miniature.model import load_miniature
from palimpsest.nodes.prompt import PalimpsestPromptEdit

import tiny
from nodes import CLIPTextEncode
from vocabulary import clip  # noqa: F401


def edit(clip, source, target, mode="auto"):
    return PalimpsestPromptEdit.execute(clip, source, target, mode).result


def test_rows_are_what_the_host_encodes(clip):
    long = "a (red:1.3) cat" + " photo" * 90
    source, target, prompt_edit = edit(clip, "a cat\n", f"a dog\n \n{long}\r\na big cat")
    (cross, extra), = target
    assert cross.shape == (3, 154, tiny.DIM) and extra["pooled_output"].shape[0] == 3
    (alone, alone_extra), = CLIPTextEncode().encode(clip, long)[0]
    assert torch.equal(cross[1:2], alone) and torch.equal(extra["pooled_output"][1:2], alone_extra["pooled_output"])
    (alone, alone_extra), = CLIPTextEncode().encode(clip, "a dog")[0]
    assert torch.equal(cross[:1, :77], alone) and torch.equal(extra["pooled_output"][:1], alone_extra["pooled_output"])
    torch.testing.assert_close(cross[:1, 77:], CLIPTextEncode().encode(clip, "")[0][0][0], rtol=0, atol=2e-6)
    (cross, extra), = source
    assert cross.shape == (1, 77, tiny.DIM) and extra["palimpsest_tokens"] == (prompt_edit.pairs[0].source,)
    assert target[0][1]["palimpsest_tokens"] == tuple(pair.target for pair in prompt_edit.pairs)
    assert [pair.mode for pair in prompt_edit.pairs] == ["replace", "refine", "refine"]
    assert [pair.mapper.shape for pair in prompt_edit.pairs] == [(77, 154)] * 3


def test_sources_that_differ_are_rows_of_their_own(clip):
    source, _, prompt_edit = edit(clip, "a cat\na dog", "a red cat\na red dog")
    assert source[0][0].shape[0] == 2 and [pair.source.words[-1].text for pair in prompt_edit.pairs] == ["cat", "dog"]
    assert edit(clip, "a cat\na cat", "a red cat\na red dog")[0][0][0].shape[0] == 1


def test_an_empty_source_is_aligned_and_an_empty_target_is_refused(clip):
    source, _, prompt_edit = edit(clip, "", "a cat")
    assert torch.equal(source[0][0], CLIPTextEncode().encode(clip, "")[0][0][0])
    assert prompt_edit.pairs[0].kept[:4].tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match='target prompt is empty and the source is "a cat"'):
        edit(clip, "a cat", " \n")


def test_source_lines_must_fit_the_target_lines(clip):
    with pytest.raises(ValueError, match="2 source prompts and 3 target prompts"):
        edit(clip, "a\nb", "a\nb\nc")


@pytest.mark.parametrize("source, target, words, warns", [
    ("a photo of a cat on a sofa", "a photo of a dog on a sofa", "cat, sofa, dog and reads both prompts as one", True),
    ("一个红苹果", "一个白苹果", "一个红苹果, 一个白苹果 and reads", True),
    ("a photo of a red star", "a photo of a red cat", "cat, which says nothing", False),
    ("a cat and a red star", "a cat and a (red:1.6) star", "cat, which says nothing", False),
    ("a photo of a red star", "a photo of a tilted red star", "", False)])
def test_words_that_the_miniature_does_not_know_are_said(source, target, words, warns, caplog):
    caplog.set_level("INFO", "palimpsest")
    edit(load_miniature()[1], source, target)
    found = [(r.levelname, r.getMessage()) for r in caplog.records if "The miniature" in r.getMessage()]
    assert len(found) == bool(words)
    for level, text in found:
        assert level == ("WARNING" if warns else "INFO")
        assert text.startswith(f"The miniature does not know {words}") and "circle, square" in text


def test_the_mode_can_be_chosen(clip):
    assert edit(clip, "a cat", "a dog", "refinement")[2].pairs[0].mode == "refine"
    with pytest.raises(ValueError, match="source prompt has 2 words, target 3"):
        edit(clip, "a cat", "a big cat", "word swap")
