"""What cannot work is told with two facts and the remedy, before the first model call."""
import dataclasses
import re
from contextlib import contextmanager
from copy import copy

import comfy.samplers
import nodes as host
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.host.sampling import schedule
from palimpsest.inversion.trajectory import Inversion, Theta, check_schedule
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing
from palimpsest.nodes.attention.reweight import PalimpsestAttentionReweight
from palimpsest.nodes.attention.store import (
    PalimpsestAttentionHeatmap,
    PalimpsestAttentionMask,
    PalimpsestAttentionStore,
)
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend
from palimpsest.nodes.inversion.ddim import PalimpsestDDIMInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay
from palimpsest.nodes.prompt import PalimpsestPromptEdit

import tiny
from editors import excite, guide
from runs import Case, clip, kept, prompts

WINDOW = torch.ones(1, 64, 64)
INJECT = {"cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0, "self_end": 0.4, "cross_resolution": 1.0,
          "self_resolution": 0.5, "word_weights": "", "word_ends": ""}


@pytest.fixture(autouse=True)
def executor():
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@kept
def plain(**kwargs):
    return Case(steps=3, **kwargs)


def counting(**kwargs):
    """A case whose MODEL counts its forwards in `calls`."""
    case = copy(plain(**kwargs))
    case.model, case.calls = counted(case.model)
    return case


def counted(model):
    calls, m = [], model.clone()

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return m, calls


@contextmanager
def refused(calls, *facts):
    """ValueError with every one of these facts in its message, and no forward."""
    before = len(calls)
    with pytest.raises(ValueError) as caught:
        yield
    message = str(caught.value)
    del caught  # it holds this frame, which holds it: the host counts a MODEL that waits for the garbage collector as leaked
    assert not [fact for fact in facts if fact not in message], message
    assert len(calls) == before


def inject(case, model=None, edit=None, inversion=None, **changed):
    return PalimpsestAttentionInject.execute(model or case.model, inversion or case.inversion, edit or case.edit,
                                             **{**INJECT, **changed}).result[0]


def blend(case, model=None, inversion=None, start=0.2, source_words="", target_words="", threshold=0.3, **inputs):
    return PalimpsestLatentBlend.execute(model or case.model, inversion or case.inversion, start, source_words, target_words,
                                         threshold, **inputs).result[0]


def store(case, model=None, edit=None, inversion=None):
    return PalimpsestAttentionStore.execute(model or case.model, inversion or case.inversion, edit or case.edit,
                                            0.5).result[0]


@kept
def maps(**kwargs):
    """ATTENTION of a plain case."""
    return store(plain(**kwargs))


def replay(case, model=None, inversion=None, start=0.0, sampler=None):
    return PalimpsestReplay.execute(model or case.model, inversion or case.inversion, start, sampler).result


def window(case, model):
    return blend(case, model, mask=WINDOW)


EDITORS = {"Attention Inject": inject, "Latent Blend": window, "Attention Store": store, "Replay": replay}
OTHERS = {"sdxl": ("model is BaseModel, this MODEL's is SDXL", tiny.sdxl),
          "sd2": ("prediction is eps, this MODEL's is v", tiny.sd2),
          "sd2 base": ("context width is 64, this MODEL's is 96", lambda: tiny.sd15(context_dim=96)),
          "flux": ("model is BaseModel, this MODEL's is Flux", tiny.flux)}


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("editor", EDITORS)
def test_an_inversion_of_another_family(editor, family):
    case = plain()
    fact, make = OTHERS[family]
    other, calls = counted(make())
    if family == "flux" and editor.startswith("Attention"):
        fact = "edits the attention of U-Nets (SD1.x, SD2.x, SDXL), this MODEL is Flux"
    with refused(calls, fact, "choose a checkpoint" if fact.startswith("edits") else "invert again with this one"):
        EDITORS[editor](case, other)


@pytest.mark.parametrize("family", tiny.FLOWS)
def test_flow_models_have_no_attention_editors_yet(family):
    case = counting()
    flow, calls = counted(tiny.FLOWS[family]())
    inversion = PalimpsestDDIMInvert.execute(flow, tiny.cond(), {"samples": tiny.latent(flow)}, 2, "ddim_uniform").result[0]
    for act, name in ((inject, "Attention Inject"), (store, "Attention Store")):
        with refused(calls, name, "SD1.x, SD2.x, SDXL", type(flow.model).__name__, "choose a checkpoint"):
            act(case, flow, inversion=inversion)
    with refused(calls, "Latent Blend by words", type(flow.model).__name__, "choose a checkpoint"):
        blend(case, flow, inversion, target_words="cat", attention=maps())


def test_another_pooled_width():
    """SDXL's, and a model of its kind with other encoders."""
    model = tiny.sdxl()
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 2, "ddim_uniform").result[0]
    width = model.model.model_config.unet_config["adm_in_channels"]
    other, calls = counted(tiny.sdxl(adm_in_channels=width + 8))
    with refused(calls, f"pooled width is {width}, this MODEL's is {width + 8}", "invert again with this one"):
        PalimpsestReplay.execute(other, inversion, 0.0)


@pytest.mark.parametrize("make, shape, fact", [
    (tiny.sd15, (1, 4, 1, 8, 8), "[1, 4, 1, 8, 8], of 5 dimensions, this BaseModel MODEL works on 4"),
    (tiny.flux, (1, 16, 3, 8, 8), "[1, 16, 3, 8, 8], of 5 dimensions, this Flux MODEL works on 4"),
    (tiny.sd15, (1, 4, 64), "[1, 4, 64], of 3 dimensions, this BaseModel MODEL works on 4")])
def test_a_latent_of_other_dimensions(make, shape, fact):
    model, calls = counted(make())
    with refused(calls, fact, "the MODEL's own VAE"):
        PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": torch.ones(shape)}, 2, "ddim_uniform")


@pytest.mark.parametrize("make, top, most", [(tiny.sd15, 80.0, "14.61"), (tiny.flux, 14.6, "1")])
def test_sigmas_of_another_model(make, top, most):
    model, calls = counted(make())
    with refused(calls, f"begin at {top:g}", f"noise up to sigma {most}", "connect a scheduler node with this MODEL"):
        PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 2, "simple",
                                     torch.tensor([top, 0.5, 0.0]))


def test_sigmas_that_a_scheduler_rounds_pass():
    model = tiny.sd15()
    sigmas = torch.tensor([14.615, 1.0, 0.0])  # AlignYourSteps begins there, the model at 14.6146
    PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, 2, "simple", sigmas)


@pytest.mark.parametrize("steps, scheduler, said", [
    (12, "ddim_uniform", "set to 12 steps, ddim_uniform gives 13 on this MODEL"), (10, "ddim_uniform", ""),
    (2, "ddim_uniform", ""),
    (1, "ddim_uniform", "reaches sigma 0.0413 only, this MODEL's noise begins at 14.6"), (1, "sgm_uniform", "")])
def test_a_schedule_that_is_not_what_its_steps_let_expect_is_said(steps, scheduler, said, caplog):
    model = tiny.sd15()
    inversion = PalimpsestDDIMInvert.execute(model, tiny.cond(), {"samples": tiny.latent(model)}, steps, scheduler).result[0]
    told = " ".join(r.getMessage() for r in caplog.records if r.name == "palimpsest")
    assert said in told and bool(said) == bool(told), (told, inversion.schedule)


@pytest.mark.parametrize("edit", [inject, window])
def test_latents_of_another_size(edit):
    case, wide = counting(), plain(size=16)
    with refused(case.calls, "[4, 16, 16]", "[4, 8, 8]", "Replay's LATENT"):
        case.sample(edit(case, case.model), latent=wide.noise)


@pytest.mark.parametrize("edit", [inject, window])
def test_the_pictures_own_latent_in_place_of_its_noise(edit):
    """As far below the noise as a picture is at a trained model's first level."""
    case = counting()
    with refused(case.calls, f"sigma {float(case.sigmas[0]):.3g}", "11 % of the INVERSION's norm", "Replay's LATENT"):
        case.sample(edit(case, case.model), latent=case.noise / 9)


@pytest.mark.parametrize("edit", [inject, window])
def test_a_schedule_that_leaves_the_inversions(edit):
    case = counting()
    normal = schedule(case.model, "normal", 5)
    assert normal[0] > case.sigmas[0]
    with refused(case.calls, "5 steps", "sigma 14.61", case.inversion.schedule, "Replay's SIGMAS"):
        case.sample(edit(case, case.model), sigmas=normal)


def test_levels_between_independently_noised_ones():
    case = counting()
    inversion = dataclasses.replace(case.inversion, trajectory="independent")
    between = (case.sigmas[:-1] + case.sigmas[1:]) / 2
    with refused(case.calls, f"{len(between) - 1} steps", case.inversion.schedule, "Replay's SIGMAS"):
        case.sample(blend(case, inversion=inversion, mask=WINDOW), sigmas=torch.cat([between, torch.zeros(1)])[1:])


@pytest.mark.parametrize("act, of_source", [
    (lambda c, a: inject(c, word_weights="horse: 2"), False), (lambda c, a: inject(c, word_ends="horse: 0.2"), False),
    (lambda c, a: c.sample(blend(c, target_words="cat, horse", attention=a)), False),
    (lambda c, a: blend(c, source_words="horse", attention=a), True),
    (lambda c, a: PalimpsestAttentionMask.execute(a, "horse", 0.3, 0, 0.0), True),
    (lambda c, a: PalimpsestAttentionHeatmap.execute(a, torch.zeros(1, 64, 64, 3), "horse"), True)])
def test_an_unknown_word(act, of_source):
    """All the words of the prompt are listed."""
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
    """Made from the host's own CLIP Text Encode."""
    case = counting()
    plain = PalimpsestDDIMInvert.execute(case.model, tiny.encode(case.clip, "a red cat on a mat"), {"samples": case.latent}, 3,
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
    """Their columns have no tokens, and would be read as the host's repeats of the prompt's own."""
    case, facts = counting(), ("77 tokens", "154 columns", "Conditioning (Concat)", "one text of Prompt Edit")
    source, target = (host.ConditioningConcat().concat(c, tiny.encode(case.clip, "a green bird"))[0] for c in (case.source, case.target))
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


def test_a_source_without_words():
    case = counting()
    source, _, edit = prompts(case.clip, "", "a blue cat on a mat")
    with refused(case.calls, "Attention Store", "prompt '' has none", "Prompt Edit's source"):
        store(case, edit=edit, inversion=dataclasses.replace(case.inversion, conditioning=source))


@pytest.mark.parametrize("off, facts", [
    ({"cross_end": 0.0}, ("that runs from 0.0 to 0", "set cross_end,")),
    ({"cross_start": 0.9, "word_ends": "blue: 0.85"}, ("that runs from 0.9 to 0.85", "the word's end, above")),
    ({"word_ends": "blue: 0"}, ("that runs from 0.0 to 0", "the word's end, above")),
    ({"cross_resolution": 0.25, "self_resolution": 0.5}, ("cross_resolution is 0.25", "set it to 0.5 or more"))])
def test_word_weights_where_no_cross_attention_is_replaced(off, facts):
    case = counting()
    with refused(case.calls, "word_weights 'blue: 3'", *facts):
        inject(case, word_weights="blue: 3", **off)
    inject(case, word_weights="blue: 1", **off)


def test_rows_that_are_no_multiple():
    case, three = counting(batch=2, targets=("a blue cat on a mat", "a red dog on a mat")), torch.randn(3, 4, 8, 8)
    for edit in (inject, window):
        with refused(case.calls, "3 rows", "2 pictures", "Repeat Latent Batch"):
            case.sample(edit(case, case.model), latent=three)
    one = counting(targets=("a blue cat on a mat", "a red dog on a mat"))
    with refused(one.calls, "2 target prompts", "3 rows", "Repeat Latent Batch"):
        one.sample(inject(one), latent=three)
    with refused(one.calls, "2 masks", "3 rows", "multiple of 2"):
        one.sample(blend(one, mask=WINDOW.expand(2, -1, -1)), latent=three)


def test_broken_latents():
    case = counting()
    broken = case.latent.clone()
    broken[0, 0, 0, 0] = torch.nan
    with refused(case.calls, "1 of 256 values", "NaN", "fp32"):
        PalimpsestDDIMInvert.execute(case.model, case.source, {"samples": broken}, 3, "ddim_uniform")
    with refused(case.calls, f"sigma {case.sigmas[0]:.4g}", "1 of 256 values", "fp32"):
        Inversion(case.sigmas, (broken, *case.inversion.latents[1:]), case.source, case.inversion.fingerprint, provenance={})
    for edit in (inject, window):
        with refused(case.calls, "1 of 256 values", "NaN", "Replay's LATENT"):
            case.sample(edit(case, case.model), latent=broken)


@pytest.mark.parametrize("act, facts", [
    (lambda c: inject(c, cross_end=0.0, self_end=0.0), ("0.0 to 0.0", "end above its start")),
    (lambda c: inject(c, cross_start=1.0, cross_end=0.8, self_start=0.5, self_end=0.5),
     ("1.0 to 0.8", "0.5 to 0.5", "end above")),
    (lambda c: inject(c, cross_resolution=0.0, self_resolution=0.0),
     ("up to 0.0 of", "from 0.0 to 0.4 up to 0.0", "0.5 or more")),
    (lambda c: inject(c, cross_end=0.0, self_resolution=0.25),
     ("from 0.0 to 0.0 up to 1.0", "from 0.0 to 0.4 up to 0.25", "0.5 or more")),
    (lambda c: blend(c), ("neither MASK nor ATTENTION", "connect one")),
    (lambda c: blend(c, source_words="cat"), ("words but no ATTENTION", "Attention Store")),
    (lambda c: blend(c, mask=WINDOW, target_words="cat"), ("words but no ATTENTION", "Attention Store")),
    (lambda c: blend(c, mask=WINDOW, attention=maps()), ("ATTENTION but no source_words or target_words", "name the words")),
    (lambda c: blend(c, mask=WINDOW, start=1.0), ("starts at 1.0", "ends at 1")),
    (lambda c: PalimpsestAttentionMask.execute(maps(), " ", 0.3, 0, 0.0), ("no word", "a, red, cat, on, a, mat")),
])
def test_a_node_that_would_do_nothing(act, facts):
    case = counting()
    with refused(case.calls, *facts):
        act(case)


def test_context_windows_beside_an_editor():
    case = counting()
    windows = ContextWindowsManualNode.execute(inject(case), 16, 4, "standard_static", 1, False, "pyramid", 0, False, "", False, "", True)
    with refused(case.calls, "Context windows", "editors on this MODEL (1)", "remove the Context Windows node"):
        case.sample(windows.result[0])


def test_an_editor_that_meets_none_of_the_steps(caplog):
    """A warning: the other steps may be another sampler's."""
    case = plain()
    late, early = case.sigmas[-3:], case.sigmas[:3]
    there = case.model.model.process_latent_out(case.inversion.at(float(late[0])))
    case.sample(inject(case, cross_end=0.3, self_end=0.3), latent=there, sigmas=late)
    case.sample(blend(case, start=0.9, mask=WINDOW), sigmas=early)
    for name in ("Attention Inject", "Latent Blend"):
        assert len(re.findall(f"{name} acts on none of the 2 steps", caplog.text)) == 1
    case.sample(blend(case, inject(case), mask=WINDOW))
    assert caplog.text.count("acts on none") == 2


@pytest.mark.parametrize("edited", [inject, window, lambda case, model: replay(case, model)[0]])
def test_an_edited_model_where_the_source_is_read(edited):
    case = counting()
    model = edited(case, case.model)
    with refused(case.calls, "DDIM Invert", "1 edit", "before the first editor"):
        PalimpsestDDIMInvert.execute(model, case.source, {"samples": case.latent}, 3, "ddim_uniform")
    with refused(case.calls, "Attention Store", "1 edit", "before the first editor"):
        store(case, model)


@pytest.mark.parametrize("edit", [inject, window])
def test_what_an_inversion_learned_and_nobody_applies(edit):
    case = counting()
    case.inversion = dataclasses.replace(case.inversion, method="Null-Text", theta={
        "null embeddings": Theta(torch.zeros(len(case.sigmas) - 1, 1, 77, 64), "step", "prediction")})
    with refused(case.calls, "Null-Text", "null embeddings", "Replay Inversion"):
        case.sample(edit(case, case.model))


def test_an_inversion_without_a_trajectory():
    case = counting()
    bare = dataclasses.replace(case.inversion, latents=None)
    for act in (lambda: blend(case, inversion=bare, mask=WINDOW), lambda: case.sample(inject(case, inversion=bare)),
                lambda: store(case, inversion=bare), lambda: replay(case, inversion=bare)):
        with refused(case.calls, "DDIM INVERSION", "trajectory", "DDIM Invert"):
            act()


def test_a_noise_mask_on_the_latent():
    case = counting()
    m, sampler, sigmas, latent = replay(case)
    with refused(case.calls, "noise_mask", "adds no noise", "Latent Blend (Inversion)"):
        SamplerCustom.execute(m, False, 0, 1.0, case.target, case.null, sampler, sigmas,
                              {**latent, "noise_mask": torch.ones(1, 64, 64)})


def test_a_sampler_of_another_class():
    class Exotic(comfy.samplers.Sampler):
        pass

    case = counting()
    with refused(case.calls, "Exotic", "KSAMPLER", "KSamplerSelect"):
        replay(case, sampler=Exotic())


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 333, 999, 1000])
def test_every_count_of_steps_makes_a_schedule(steps):
    check_schedule(schedule(plain().model, "ddim_uniform", steps))


@pytest.mark.parametrize("changed", [
    dict(cross_start=0.0, cross_end=1.0, self_start=0.0, self_end=1.0, cross_resolution=1.0, self_resolution=1.0),
    dict(cross_start=0.99, cross_end=1.0, self_start=1.0, self_end=0.0), dict(cross_end=0.0, self_resolution=1.0),
    dict(word_weights="blue: -2, cat: 10, default: 0", word_ends="mat: 0, default: 1")])
def test_attention_inject_at_the_ends_of_its_widgets(changed):
    case = plain()
    assert case.sample(inject(case, **changed)).isfinite().all()


@pytest.mark.parametrize("size", [8, 16])
def test_attention_mask_at_the_ends_of_its_widgets(size):
    """The widest blur and growth, on the smallest picture and with none."""
    attention = maps(size=size)
    for image in (None, torch.zeros(1, 8 * size, 8 * size, 3)):
        for threshold, grow, blur in ((0.0, 64, 16.0), (0.99, 0, 0.1), (0.9, 1, 16.0)):
            mask = PalimpsestAttentionMask.execute(attention, "cat", threshold, grow, blur, image).result[0]
            side = size if image is None else 8 * size
            assert mask.shape == (1, side, side) and mask.isfinite().all() and 0 <= mask.min() and 0 < mask.max() <= 1 + 1e-5


def test_words_lie_where_the_latent_shows_them_on_a_picture_that_vae_encode_crops():
    attention, picture = maps(size=8), torch.rand(1, 71, 69, 3, generator=torch.Generator().manual_seed(0))
    seen = picture[:, 3:67, 2:66]
    whole, part = (PalimpsestAttentionMask.execute(attention, "cat", 0.9, 0, 0.5, image).result[0] for image in (picture, seen))
    assert whole.shape == picture.shape[:3] and torch.equal(whole[:, 3:67, 2:66], part) and part.min() < part.max()
    whole, part = (PalimpsestAttentionHeatmap.execute(attention, image, "cat").result[0] for image in (picture, seen))
    assert torch.equal(whole, part)
    with pytest.raises(ValueError, match="71x90 and the latent 8x8 cells"):
        PalimpsestAttentionMask.execute(attention, "cat", 0.9, 0, 0.5, torch.zeros(1, 90, 71, 3))


@pytest.mark.parametrize("start", [0.0, 0.99])
def test_latent_blend_at_the_ends_of_its_widgets(start):
    case, attention = plain(), maps()
    for threshold in (0.0, 0.99):
        model = blend(case, start=start, source_words="cat", target_words="blue", threshold=threshold, attention=attention)
        assert case.sample(model).isfinite().all()
