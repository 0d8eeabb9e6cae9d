"""Where the words of a prompt stand among the columns of its CONDITIONING, beside CLIP's families."""
import re

import pytest
import torch
from palimpsest.attention.alignment import align
from palimpsest.host.tokens import encode, tokenize, tokenize_rows
from palimpsest.nodes.prompt import PalimpsestPromptEdit

import clips
from clips import TokenizerOnly
from runs import kept

TEXT = "a cat, a wolfhound & 2 dogs"


@kept
def tokenizer(family):
    return TokenizerOnly(clips.TOKENIZERS[family]())


@kept
def clip(family):
    return clips.clip(family)


# {family: the columns of (cat, wolfhound), all columns}, counted by hand
COLUMNS = {
    "flux": ([2], [6, 7, 8], 256), "chroma": ([2], [6, 7, 8], 14), "ltx video": ([2], [6, 7, 8], 128),
    "sd3": ([2, 77 + 2], [5, 6, 77 + 6, 77 + 7, 77 + 8], 154), "qwen": ([1], [4, 5], 15), "zimage": ([4], [7, 8], 18),
    "klein": ([4], [7, 8], 512), "flux2": ([33], [36, 37], 43),
    "hunyuan image": ([1], [4, 5], 11), "auraflow": ([1], [4, 5, 6, 7], 256),
    "lumina2": ([2], [5, 6, 7, 8], 13), "wan": ([1], [4, 5, 6, 7], 512), "hunyuan video": ([1], [4, 5], 11),
    "hidream": ([2, 128 + 2], [6, 7, 8, 128 + 5, 128 + 6], 256)}


@pytest.mark.parametrize("family", clips.TOKENIZERS)
def test_a_word_has_the_columns_of_its_own_tokens(family):
    tokens = tokenize(tokenizer(family), TEXT)
    cat, hound, count = COLUMNS[family]
    assert [w.text for w in tokens.named] == ["a", "cat", "a", "wolfhound", "&", "2", "dogs"]
    assert [*tokens.find("cat").positions] == cat and [*tokens.find("wolfhound").positions] == hound
    assert len(tokens.ids) == len(tokens.weights) == sum(tokens.streams) == count


@pytest.mark.parametrize("family", ["qwen", *(["zimage"] if "zimage" in clips.TOKENIZERS else [])])
def test_chinese_words_are_named_where_spaces_part_them(family):
    """As Prompt Edit's page says."""
    parted, whole = (tokenize(tokenizer(family), text) for text in ("一个 红 苹果", "一个红苹果"))
    assert [w.text for w in parted.named] == ["一个", "红", "苹果"] and len(whole.named) == 1
    places = [p for w in parted.named for p in w.positions]
    assert places == [*range(places[0], places[-1] + 1)]


@pytest.mark.parametrize("family", ["flux", "sd3", "hidream"])
def test_weights_are_no_words_where_the_host_reads_them(family):
    """And part a word that stands partly inside."""
    tokens = tokenize(tokenizer(family), "a (red:1.2)dish")
    assert [w.text for w in tokens.named] == ["a", "reddish"] == [w.text for w in tokens.words]
    assert 1.2 in {tokens.weights[p] for p in tokens.find("reddish").positions}
    assert "1.2" in [w.name for w in tokenize(tokenizer("qwen"), "a (red:1.2) dish").named]


@pytest.mark.parametrize("family", clips.MADE)
def test_the_words_columns_are_those_that_another_word_changes(family):
    """In the CONDITIONING that the host's text encoder makes. Those behind them see the word where they look back."""
    tokens = tokenize(clip(family), "a cat runs")
    ours, theirs = (encode(clip(family), tokenize_rows(clip(family), [text]))[0][0]
                    for text in ("a cat runs", "a dog runs"))
    assert ours.shape[1] == len(tokens.ids)
    changed, first = (ours != theirs).any(2)[0].nonzero()[:, 0].tolist(), 0
    for length in tokens.streams:
        mine = [p for p in tokens.find("cat").positions if first <= p < first + length]
        assert mine and [p for p in changed if first <= p < first + length][:len(mine)] == mine
        first += length
    if family in ("flux", "chroma"):
        assert changed == [*tokens.find("cat").positions]


@pytest.mark.parametrize("family, target", [("flux", "a dog, a hound & 2 cats"), ("sd3", "a fox, a dog & 3 cats"),
                                            ("qwen", "a dog, a big hound & 2 cats")])
def test_tokens_are_aligned_in_each_stream(family, target):
    """Each source token outside the words passes its whole map on, so that pictures' rows keep their sum."""
    source, target = (tokenize(tokenizer(family), text) for text in (TEXT, target))
    pair = align(source, target)
    cat, other = list(source.words[1].positions), list(target.words[1].positions)
    assert pair.mapper.shape == (len(source.ids), len(target.ids))
    assert pair.mode == ("refine" if "big" in target.text else "replace")
    if pair.mode == "replace":
        assert torch.equal(pair.mapper[cat][:, other].sum(1), torch.ones(len(cat)))
    else:
        assert not pair.kept[list(target.find("big").positions)].any()
    start = theirs = 0
    for mine, other in zip(source.streams, target.streams):
        inside = pair.mapper[start:start + mine]
        assert not inside[:, :theirs].any() and not inside[:, theirs + other:].any()
        start, theirs = start + mine, theirs + other
    frame = [p for p in range(len(source.ids)) if all(p not in w.positions for w in source.words)]
    assert torch.allclose(pair.mapper[frame].sum(1), torch.ones(len(frame)))


def test_prompts_of_other_lengths_share_a_batch_only_where_they_are_filled_up():
    with pytest.raises(ValueError, match='"a cat" has 7 tokens and another prompt 9.*Prompt Edit of its own'):
        PalimpsestPromptEdit.execute(clip("qwen"), "a cat", "a cat\na big red dog"[:20], "auto")
    source, target, edit = PalimpsestPromptEdit.execute(clip("flux"), "a cat", "a cat\na big red dog", "auto").result
    assert target[0][0].shape == (2, 256, 64) and target[0][1]["pooled_output"].shape == (2, 32)
    assert source[0][1]["palimpsest_tokens"] == (edit.pairs[0].source,)


def test_a_prompt_that_brings_a_template_is_refused():
    with pytest.raises(ValueError, match="not stand in the template of the text encoder qwen25_7b, .*without a temp"):
        tokenize(tokenizer("qwen"), "<|im_start|>user\na cat<|im_end|>")


def test_a_tokenizer_that_joins_words_is_refused():
    """As transformers 5 joins them with Llama's vocabulary: "a cat" is "ac" and "at"."""
    class Joins:
        def tokenize(self, text, return_word_ids=False):
            letters = [int.from_bytes(pair.encode(), "big") for pair in re.findall("..?", text.replace(" ", ""))]
            return {"umt5xxl": [[(i, 1.0, 1) if return_word_ids else (i, 1.0) for i in letters]]}

    with pytest.raises(ValueError, match='umt5xxl joins "a" of "a cat" to the word behind it.*transformers 5'):
        tokenize(Joins(), "a cat")
