"""Words and prompts that do not fit are refused before the first model call, with two facts and the remedy."""
import dataclasses

import pytest
import torch
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing
from palimpsest.nodes.attention.reweight import PalimpsestAttentionReweight
from palimpsest.nodes.attention.store import PalimpsestAttentionHeatmap, PalimpsestAttentionMask
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.prompt import PalimpsestPromptEdit

import nodes as host
import tiny
from editors.guidance.attend_excite import excite
from editors.guidance.self_guidance import guide
from node_execution import executor  # noqa: F401
from refusals import WINDOW, blend, counting, inject, maps, plain, refused, store
from runs import clip, prompts


@pytest.mark.parametrize("act, of_source", [
    (lambda c, a: inject(c, word_weights="horse: 2"), False), (lambda c, a: inject(c, word_ends="horse: 0.2"), False),
    (lambda c, a: c.sample(blend(c, target_words="cat, horse", attention=a)), False),
    (lambda c, a: blend(c, source_words="horse", attention=a), True),
    (lambda c, a: PalimpsestAttentionMask.execute(a, "horse", 0.3, 0, 0.0), True),
    (lambda c, a: PalimpsestAttentionHeatmap.execute(a, torch.zeros(1, 64, 64, 3), "horse"), True)])
def test_an_unknown_word(act, of_source):
    """The error lists all words of the prompt."""
    case = counting()
    with refused(case.calls, '"horse"', "a, red, cat, on, a, mat" if of_source else "a, blue, cat, on, a, mat"):
        act(case, maps())


def test_a_word_swap_of_prompts_of_different_length():
    with refused([], "source prompt has 3 words, target 4", "choose refinement"):
        PalimpsestPromptEdit.execute(clip(), "a red cat", "a red fluffy cat", "word swap")


@pytest.mark.parametrize("source, target, mode, said", [
    ("a red cat", "two blue dogs", "auto", True), ("a red cat", "fish on sand below", "auto", True),
    ("a red cat", "two blue dogs", "word swap", False), ("a red cat", "a blue dog", "auto", False),
    ("cat", "dog", "auto", False), ("", "two blue dogs", "auto", False)])
def test_a_target_of_other_words_alone_is_said(source, target, mode, said, caplog):
    PalimpsestPromptEdit.execute(clip(), source, target, mode)
    assert (f'"{target}" shares no word' in caplog.text) == said


def test_a_word_mask_that_comes_out_empty():
    case, attention = counting(), maps()
    for act in (lambda: blend(case, source_words="cat", threshold=1.0, attention=attention),
                lambda: blend(case, source_words="cat", threshold=1.0, attention=attention, mask=WINDOW),
                lambda: blend(case, target_words="cat", threshold=1.0, attention=attention),
                lambda: PalimpsestAttentionMask.execute(attention, "cat", 1.0, 0, 0.0)):
        with refused(case.calls, "'cat'", "threshold 1.0", "empty", "lower the threshold (0 finds one)"):
            act()


def test_an_empty_mask_is_meant():
    case = plain()
    out = case.sample(blend(case, start=0.0, mask=0 * WINDOW))
    torch.testing.assert_close(case.model.model.process_latent_in(out), case.inversion.latents[-1], rtol=0, atol=1e-4)


def test_an_inversion_of_another_text():
    case = counting()
    _, _, other = prompts(case.clip, "a green bird", "a blue bird")
    for act in (inject, store):
        with refused(case.calls, "'a red cat on a mat'", "'a green bird'", "the same Prompt Edit"):
            act(case, edit=other)


def test_an_attention_of_another_picture():
    case = counting()
    for other, fact in (({"source": "a green bird"}, "'a green bird'"), ({"size": 16}, "16 × 16"),
                        ({"batch": 2}, "2 pictures")):
        attention = maps(**other)
        for words in ({"source_words": "a"}, {"target_words": "a"}):
            with refused(case.calls, "'a red cat on a mat'", "8 × 8", fact, "the same INVERSION"):
                blend(case, attention=attention, **words)


def test_an_inversion_without_words():
    """With the host's own CLIP Text Encode."""
    case = counting()
    plain = PalimpsestDDIMInvert.execute(case.model, tiny.encode(case.clip, "a red cat on a mat"),
                                         {"samples": case.latent}, 3,
                                         "ddim_uniform").result[0]
    for act in (inject, store):
        with refused(case.calls, "without them", "Prompt Edit's source CONDITIONING"):
            act(case, inversion=plain)


@pytest.mark.parametrize("text", ["a blue cat on a mat", "a green bird"])
def test_a_target_that_prompt_edit_did_not_make(text):
    case = counting()
    by_words = blend(case, target_words="cat", attention=maps())
    positive = tiny.encode(case.clip, text)
    with refused(case.calls, "'a blue cat on a mat'", "a prompt that Prompt Edit did not make", "target CONDITIONING"):
        case.sample(inject(case), positive)
    with refused(case.calls, "carries no words", "target CONDITIONING"):
        case.sample(by_words, positive)


def test_a_target_of_another_prompt_edit():
    case = counting()
    with refused(case.calls, "'a blue cat on a mat'", "'a red cat on a mat'", "target CONDITIONING"):
        case.sample(inject(case), case.source)


def test_texts_appended_after_prompt_edit():
    """Their columns have no tokens, and would be taken for the host's repeats of the prompt's own columns."""
    case, facts = counting(), ("77 tokens", "154 columns", "Conditioning (Concat)", "one text of Prompt Edit")
    source, target = (host.ConditioningConcat().concat(c, tiny.encode(case.clip, "a green bird"))[0]
                      for c in (case.source, case.target))
    for model in (inject(case), blend(case, target_words="cat", attention=maps()),
                  PalimpsestAttentionReweight.execute(case.model, "cat: 3", "", "", 0.3, 0.0, 1.0).result[0],
                  PalimpsestPromptMixing.execute(case.model, case.source, 0.0, 0.8, "", "", 0.3, 0.8, "").result[0],
                  excite(case), guide(case)):
        with refused(case.calls, "'a blue cat on a mat'", *facts):
            case.sample(model, target)
    inversion = dataclasses.replace(case.inversion, conditioning=source)
    for act in (inject, store):
        with refused(case.calls, "'a red cat on a mat'", *facts):
            act(case, inversion=inversion)



@pytest.mark.parametrize("typed, facts", [({"word_ends": "blue: 2"}, ("gives 2", "from 0 to 1")),
                                          ({"word_weights": "blue: 1e30"}, ("gives 1e+30", "from -100 to 100"))])
def test_a_words_number_out_of_range(typed, facts):
    case = counting()
    with refused(case.calls, *facts):
        inject(case, **typed)


def test_a_source_without_words():
    case = counting()
    source, _, edit = prompts(case.clip, "", "a blue cat on a mat")
    with refused(case.calls, "Attention Store", "prompt '' has none", "Prompt Edit's source"):
        store(case, edit=edit, inversion=dataclasses.replace(case.inversion, conditioning=source))


@pytest.mark.parametrize("off, facts", [
    ({"cross_end": 0.0}, ("it runs from 0.0 to 0", "set cross_end,")),
    ({"cross_start": 0.9, "word_ends": "blue: 0.85"}, ("it runs from 0.9 to 0.85", "the word's end, above")),
    ({"word_ends": "blue: 0"}, ("it runs from 0.0 to 0", "the word's end, above")),
    ({"cross_resolution": 0.25, "self_resolution": 0.5}, ("cross_resolution is 0.25", "set it to 0.5 or more"))])
def test_word_weights_where_no_cross_attention_is_replaced(off, facts):
    case = counting()
    with refused(case.calls, "word_weights 'blue: 3'", *facts):
        inject(case, word_weights="blue: 3", **off)
    inject(case, word_weights="blue: 1", **off)
