"""What "auto" chooses on nodes, by the kind of the edit."""
import re
from dataclasses import replace

import pytest
import torch
from palimpsest.editing.edit_kind import KINDS
from palimpsest.editing.editor import editors
from palimpsest.host.network import resolutions
from palimpsest.nodes.attention import p2p
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.store import PalimpsestAttentionMask, PalimpsestAttentionStore
from palimpsest.nodes.auto import JOINT, LAYOUT, SCHEDULES, Auto
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.showcase.rows import output

import unets
from node_execution import executor  # noqa: F401
from pack import ROOT
from runs import Case

SOURCE = "a red cat on a mat"
TARGETS = {"colour": "a blue cat on a mat", "object": "a red dog on a mat",
           "add": "a red cat on a mat and a ball", "style": "a sketch of a red cat on a mat"}


def inject(case, **inputs):
    return output(PalimpsestAttentionInject, model=case.model, inversion=case.inversion, prompt_edit=case.edit,
                  **inputs)


def stored(case):
    return output(PalimpsestAttentionStore, model=case.model, inversion=case.inversion, prompt_edit=case.edit,
                  resolution=0.5)


def blend(case, attention, **inputs):
    return output(PalimpsestLatentBlend, model=case.model, inversion=case.inversion, attention=attention, **inputs)


def masked(attention, **inputs):
    return output(PalimpsestAttentionMask, attention=attention, **inputs)


@pytest.mark.parametrize("schedules", [SCHEDULES, JOINT], ids=["U-Net", "transformer"])
def test_every_kind_has_a_schedule_that_injects_something(schedules):
    assert schedules.keys() == {*KINDS, ""} and all(any(ends) for ends in schedules.values())


@pytest.mark.parametrize("page", ["PalimpsestAttentionInject.md", "PalimpsestAttentionInject/zh.md"])
def test_the_help_page_states_the_schedules_loosest_first(page):
    text = (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+)[:：].*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)[,，] ?([\d.]+) \|", text, re.MULTILINE)
    assert [(kind, *map(float, ends)) for kind, *ends in rows] == [(k, *SCHEDULES[k], *JOINT[k]) for k in KINDS]


def test_inject_hands_on_a_line_of_what_was_set_or_chosen():
    case = Case(targets=[TARGETS["colour"]], steps=4)
    given = dict(cross_start=0.0, cross_end=0.7, self_start=0.0, self_end=0.3, cross_resolution=1.0,
                 self_resolution=0.5, word_weights="", word_ends="")
    said = {schedule: PalimpsestAttentionInject.execute(case.model, case.inversion, case.edit, **given,
                                                        schedule=schedule).result[1] for schedule in ("as set", "auto")}
    assert said == {"as set": "cross_end 0.7, self_end 0.3, self_resolution 0.5",
                    "auto": "auto: change of colour: red -> blue\ncross_end 0.4, self_end 1, self_resolution 1; "
                            "half the usual CFG keeps more of the picture"}


@pytest.mark.parametrize("targets, kinds", [
    ([TARGETS["colour"]], ["colour"]), ([TARGETS["object"]], ["object"]), (["a blue dog on a mat"], ["object"]),
    ([TARGETS["object"], TARGETS["style"]], ["object", "style"]),
    (["a sketch of a red dog on a mat"], ["object", "style"])])
def test_inject_takes_the_least_that_the_changes_of_all_rows_ask_for(targets, kinds):
    case = Case(targets=targets, batch=len(targets), steps=4)
    cross_end, self_end = (min(SCHEDULES[kind][i] for kind in kinds) for i in (0, 1))
    given = {"cross_end": cross_end, "self_end": self_end, "self_resolution": 1.0 if {*kinds} <= LAYOUT else 0.5}
    auto = case.sample(inject(case, schedule="auto", cross_end=1.0, self_end=1.0, self_resolution=0.25))
    assert torch.equal(auto, case.sample(inject(case, **given)))
    assert not torch.equal(auto, case.sample(inject(case, **{**given, "self_end": 1.0, "cross_end": 1.0})))


@pytest.mark.parametrize("family, chosen", [("flux", JOINT), ("wan", SCHEDULES)])
def test_where_words_and_picture_share_a_softmax_less_is_kept(family, chosen):
    case = Case(family, targets=[TARGETS["object"]], steps=4)
    auto = case.sample(inject(case, schedule="auto"))
    given = [case.sample(inject(case, cross_end=cross_end, self_end=self_end))
             for cross_end, self_end in (chosen["object"], (JOINT if chosen is SCHEDULES else SCHEDULES)["object"])]
    assert torch.equal(auto, given[0]) and not torch.equal(auto, given[1])


@pytest.mark.parametrize("typed, ends", [("", "red: 1, cat: 1, mat: 1"), ("cat: 0", "cat: 0")])
def test_the_words_that_stay_keep_the_sources_maps_where_others_go(typed, ends):
    """Unless ends were typed."""
    case = Case(source=TARGETS["add"], targets=(SOURCE,), steps=4)
    auto = case.sample(inject(case, schedule="auto", word_ends=typed))
    given = dict(zip(("cross_end", "self_end"), SCHEDULES["delete"]))
    assert torch.equal(auto, case.sample(inject(case, **given, word_ends=ends)))
    assert not torch.equal(auto, case.sample(inject(case, **given)))


@pytest.mark.parametrize("latent, shares", [((64, 64), (0.5, 0.5)), ((128, 96), (1 / 3, 1 / 3)), ((16, 16), (1.0, 0.5)),
                                            ((128, 128), (0.25, 0.25)), ((64, 96), (0.5, 0.5)), ((8, 8), (1.0, 0.5)),
                                            ((24, 32), (16 / 24, 0.5))])
def test_a_small_latent_keeps_its_layout_on_sixteen_tokens_a_side_a_large_one_on_no_more_than_32(latent, shares):
    """The former where the layout is to be kept."""
    found = [Auto.of(Case(targets=(TARGETS[kind],)).edit).schedule(latent, 0.125)[2] for kind in ("colour", "object")]
    assert tuple(found) == shares


@pytest.mark.parametrize("family, size, share", [("sdxl", 128, 0.25), ("sdxl", 64, 0.5), ("sdxl", 256, 0.25),
                                                 ("wan", 80, 0.5), ("flux", 80, 1.0)])
def test_inject_replaces_up_to_32_tokens_a_side_and_the_coarsest_grid(family, size, share, monkeypatch):
    """SDXL's has 32 tokens of 128, and a transformer one grid."""
    case = Case(family, targets=[TARGETS["object"]], steps=2)
    if family == "sdxl":
        monkeypatch.setattr(p2p, "resolutions", lambda network: resolutions(unets.sdxl()))
    large = replace(case.inversion, latents=tuple(x[..., :1, :1].expand(*x.shape[:-2], size, size)
                                                  for x in case.inversion.latents))
    made = output(PalimpsestAttentionInject, model=case.model, inversion=large, prompt_edit=case.edit, schedule="auto")
    assert editors(made)[0].self_resolution == share


@pytest.mark.parametrize("source, target, why", [
    ("ein Hund auf der Wiese", "eine Katze auf der Wiese", "knows English alone"),
    (SOURCE, "the red cat on a mat", "finds no change between the two prompts; name in the target")])
def test_prompts_without_a_change_that_can_be_read_get_the_defaults_and_the_reason(source, target, why, caplog):
    case = Case(source=source, targets=(target,))
    assert torch.equal(case.sample(inject(case, schedule="auto")), case.sample(inject(case)))
    assert why in caplog.text and why in Auto.of(case.edit).said()
    assert "cross_end 0.8, self_end 0.4, self_resolution 0.5; mask: the whole picture" in caplog.text


@pytest.mark.parametrize("kind, typed", [("colour", {"source_words": "red, cat"}),
                                         ("object", {"source_words": "red, cat", "target_words": "red, dog"}),
                                         ("add", {"target_words": "ball"})])
@pytest.mark.parametrize("refine", [True, False])
def test_a_blend_finds_the_words_that_change(kind, typed, refine):
    case = Case(targets=(TARGETS[kind],), size=16, steps=3)
    attention = stored(case)
    auto = case.sample(blend(case, attention, choose_words="auto", refine=refine))
    assert torch.equal(auto, case.sample(blend(case, attention, refine=refine, **typed)))
    assert not torch.equal(auto, case.sample())


def test_rows_of_different_edits_have_masks_of_their_own():
    case = Case(targets=(TARGETS["style"], TARGETS["colour"]), batch=2, size=16, steps=3)
    attention = stored(case)
    blended, = (e for e in editors(blend(case, attention, choose_words="auto")) if e.name == "Latent Blend")
    assert blended.painted.flatten(1).float().mean(1).tolist() == [1, 0]
    row = blended.named.masks[-1]
    assert not row[0].any() and torch.equal(row[1], masked(attention, words="red, cat")[1])


def test_an_edit_of_the_whole_picture_is_not_blended_unless_a_mask_is_given():
    case = Case(targets=(TARGETS["style"],), size=16, steps=3)
    attention, half = stored(case), torch.zeros(1, 16, 16)
    half[..., 8:] = 1
    assert blend(case, attention, choose_words="auto") is case.model
    painted = case.sample(blend(case, attention, choose_words="auto", mask=half))
    alone = output(PalimpsestLatentBlend, model=case.model, inversion=case.inversion, mask=half)
    assert torch.equal(painted, case.sample(alone))


@pytest.mark.parametrize("kind, words", [("colour", "red, cat"), ("object", "red, cat"), ("add", ""), ("style", "")])
def test_attention_mask_finds_them_in_the_source(kind, words):
    attention = stored(Case(targets=(TARGETS[kind],), size=16, steps=3))
    found = masked(attention, choose_words="auto")
    assert torch.equal(found, masked(attention, words=words) if words else torch.ones(1, 16, 16))


def test_words_that_were_typed_are_not_lost_in_silence():
    case = Case(size=16, steps=3)
    with pytest.raises(ValueError, match="'cat', but auto chooses them: clear the words"):
        masked(stored(case), words="cat", choose_words="auto")
    with pytest.raises(ValueError, match="'cat', but auto chooses them: clear the words"):
        blend(case, stored(case), target_words="cat", choose_words="auto")
    with pytest.raises(ValueError, match="without the two prompts: connect Attention Store"):
        blend(case, None, choose_words="auto")


def test_the_words_of_a_target_are_those_that_are_sampled():
    case = Case(targets=(TARGETS["add"],), size=16, steps=3)
    with pytest.raises(ValueError, match="auto chose the words of 'a red cat on a mat and a ball', the positive"):
        case.sample(blend(case, stored(case), choose_words="auto"), positive=case.source)


def test_a_note_says_what_changes_and_what_was_chosen(caplog):
    caplog.set_level("INFO")
    Auto.of(Case(targets=(TARGETS["object"],)).edit).say("cross_end 0")
    assert caplog.messages[-1] == "auto: swap of an object: cat -> dog; cross_end 0; mask: red, cat, dog"


@pytest.mark.parametrize("kind, said", [("colour", True), ("style", True), ("object", False)])
def test_the_note_of_inject_says_where_less_guidance_helps(kind, said, caplog):
    caplog.set_level("INFO")
    inject(Case(targets=(TARGETS[kind],)), schedule="auto")
    assert ("half the usual CFG" in caplog.messages[-1]) == said
