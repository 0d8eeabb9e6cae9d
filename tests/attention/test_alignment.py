"""The alignment of two prompts' tokens, against the authors' aligner."""
import pytest
import torch
from palimpsest.attention.alignment import align, refinement, replacement
from palimpsest.host.tokens import tokenize

from vocabulary import (
    ALIGNER,
    EOS,
    clip,  # noqa: F401
)


@pytest.mark.parametrize("item", ALIGNER["pairs"], ids=lambda item: item["target"])
def test_alignment_equals_the_authors(clip, item):
    source, target = tokenize(clip, item["source"]), tokenize(clip, item["target"])
    mapper = item["refine"] + list(range(len(item["refine"]), 77))
    expected, kept = torch.zeros(77, 77), torch.tensor([float(i >= 0) for i in mapper])
    for j, i in enumerate(mapper):
        expected[i, j] = kept[j]
    refined = refinement(source, target)
    assert torch.equal(refined[0], expected) and torch.equal(refined[1], kept)
    if "replace" in item:
        expected = torch.eye(77)
        for i, j, value in item["replace"]:
            expected[i, j] = value
        assert torch.equal(replacement(source, target), expected)


def test_the_mode_follows_the_counts_of_words(clip):
    cat, dog, longer = (tokenize(clip, text) for text in ("a cat runs", "a wolfhound runs", "a big cat runs"))
    assert align(cat, dog).mode == "replace" and align(cat, longer).mode == align(cat, cat).mode == "refine"
    assert align(cat, dog, "refine").mode == "refine" and torch.equal(align(cat, dog, "replace").kept, torch.ones(77))
    with pytest.raises(ValueError, match="source prompt has 3 words, target 4: word swap needs equal counts; choose"):
        align(cat, longer, "replace")


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("text", ["", "a (red:1.3) wolfhound", "photo " * 74 + "(wolfhound:1.2) in rain", "cat " * 160])
def test_a_prompt_aligned_with_itself_is_the_identity(clip, mode, text):
    tokens = tokenize(clip, text)
    pair = align(tokens, tokens, mode)
    assert torch.equal(pair.mapper, torch.eye(len(tokens.ids))) and pair.kept.all()


def test_words_pushed_into_the_next_chunk_are_still_aligned(clip):
    """A word of four tokens replaces a word of one, so the last words cross the end of the first chunk."""
    end = " photo" * 73 + " red door"
    source, target = tokenize(clip, "cat" + end), tokenize(clip, "xylophonist" + end)
    pair = align(source, target)
    assert pair.mode == "replace" and len(source.ids) == len(target.ids) == 154
    assert source.find("red").positions == (75,) and target.find("red").positions == (80,)
    assert pair.mapper[1, 1:5].tolist() == [0.25] * 4
    for a, b in zip(source.words[1:], target.words[1:]):
        assert pair.mapper[a.positions[0]].nonzero().tolist() == [[b.positions[0]]]
    frame = [0, 76, 77]  # BOS, EOS, BOS; then the last EOS and the padding
    assert pair.mapper[frame, frame].tolist() == [1] * 3 and pair.mapper[79, 82] == 1
    assert torch.equal(pair.mapper[83:, 83:], torch.eye(71))


@pytest.mark.parametrize("short, long", [("cat" + " photo" * 70, "cat" + " photo" * 170),
                                         ("cat" + " photo" * 60, "xylophonist" + " bioluminescent" * 60)])
def test_prompts_of_unequal_chunks_lose_and_make_no_attention(clip, short, long):
    """Each BOS, EOS and padding token keeps its whole map. The first pair is refined, the second swapped."""
    short, long = tokenize(clip, short), tokenize(clip, long)
    n = len(long.ids)
    grown, shrunk = align(short, long), align(long, short)
    assert grown.mapper.shape == (77, n) and shrunk.mapper.shape == (n, 77) and n > 154
    assert grown.mapper.sum(1).tolist() == pytest.approx([1] * 77)
    starts, ends = list(range(0, n, 77)), [p for p in range(n) if long.ids[p] == EOS]
    assert grown.mapper[0].nonzero().flatten().tolist() == starts
    assert torch.equal(shrunk.mapper[starts, 0], torch.ones(len(starts)))
    assert torch.equal(shrunk.mapper[ends].sum(1), torch.ones(len(ends)))
