"""What mutual self-attention, plug-and-play, free-prompt and prompt mixing share: the source as target, null
rows, inputs and refusals."""
import pytest
import torch
from comfy.hooks import HookGroup, set_hooks_for_conditioning
from palimpsest.editing.layers import self_attention_layers
from palimpsest.nodes.attention.feature_share import PalimpsestFeatureShare

import joint
import tiny
from explicit import relative
from families import FAMILIES
from feature_edits import case, free_prompt, mixing, mutual, plug_and_play, store, whole
from runs import Case, prompts

IDENTITIES = {"mutual": mutual, "plug and play": lambda c: plug_and_play(c, 1.0, 1.0),
              "free prompt": lambda c: free_prompt(c, end=1.0),
              "mixing": lambda c: mixing(c, end=1.0, preserve_end=1.0, mask=whole(c, 0.5), inversion=c.inversion)}


@pytest.mark.parametrize("editor, family", [(e, f) for e in IDENTITIES for f in FAMILIES])
def test_source_as_target_changes_no_prediction(editor, family):
    """At the source's latents, with CFG: the source's features are equal to the target's."""
    c = case(family)
    edited, plain = (c.predictions(m, c.source, 7.5) for m in (IDENTITIES[editor](c), c.model))
    for a, b in zip(edited, plain, strict=True):
        assert relative(a, b) < 1e-5


NULL = {"mutual": lambda c, null: mutual(c, null_too=null),
        "plug and play": lambda c, null: plug_and_play(c, 1.0, 1.0, null_too=null)}


@pytest.mark.parametrize("editor, family", [(e, f) for e in NULL for f in FAMILIES])
def test_the_null_prompts_rows_are_given_what_the_source_shows_under_that_prompt_where_wanted(editor, family):
    """CFG 0 shows only the null rows. At the source's latents they equal the source's null rows whatever the prompts
    say. Elsewhere they differ."""
    c = case(family)
    model = NULL[editor](c, True)
    for a, b in zip(*(c.predictions(m, c.target, 0.0) for m in (model, c.model)), strict=True):
        assert relative(a, b) < 1e-5
    both, one, plain = (c.sample(m, cfg=0.0, latent=c.apart) for m in (model, NULL[editor](c, False), c.model))
    assert relative(both, plain) > 1e-4 and relative(one, plain) < 1e-5
    both, one, plain = (c.predictions(m, c.target, 1.0) for m in (model, NULL[editor](c, False), c.model))
    for a, b, c_ in zip(both, one, plain, strict=True):
        assert relative(a, b) < 1e-5 < 1e-4 < relative(a, c_)


def half(c, side="left"):
    m = torch.zeros(1, 64, 64)
    m[:, :, :32] = 1
    return m if side == "left" else 1 - m


def variants(c):
    """{node: [its base settings, and one run per widget or input]}."""
    attention = store(c)
    masks = {"source_mask": half(c), "target_mask": half(c, "right")}
    words = {"source_words": "cat", "target_words": "cat", "attention": attention, "threshold": 0.6}
    keep = {"inversion": c.inversion, "mask": half(c)}
    by_word = {"inversion": c.inversion, "attention": attention, "preserve": "mat", "threshold": 0.4}
    green = prompts(c.clip, "a red cat on a mat", "a green dog on a mat")[1]
    return {
        "mutual": [mutual(c), mutual(c, start=0.5), mutual(c, end=0.5), mutual(c, layers="u2"),
                   mutual(c, null_too=True),
                   mutual(c, **masks),
                   mutual(c, **{**masks, "source_mask": half(c, "right")}),
                   mutual(c, **{**masks, "target_mask": whole(c)}),
                   mutual(c, **words), mutual(c, **{**words, "threshold": 0.3}),
                   mutual(c, **{**words, "source_words": "mat"}),
                   mutual(c, **{**words, "target_words": "mat"}), mutual(c, **{**words, "refine": False}),
                   mutual(c, source_mask=half(c), target_words="cat")],
        "plug and play": [plug_and_play(c), plug_and_play(c, feature_end=0.0), plug_and_play(c, attention_end=0.0),
                          plug_and_play(c, attention_end=1.0), plug_and_play(c, feature_layers="u2"),
                          plug_and_play(c, layers="u3"), plug_and_play(c, 0.0, null_too=True),
                          plug_and_play(c, attention_end=0.0, null_too=True)],
        "free prompt": [free_prompt(c), free_prompt(c, start=0.5), free_prompt(c, end=0.5),
                        free_prompt(c, layers="d, u")],
        "mixing": [mixing(c), mixing(c, mix=green), mixing(c, start=0.5), mixing(c, end=0.5), mixing(c, **keep),
                   mixing(c, preserve_end=0.5, **keep), mixing(c, layers="u3", **keep),
                   mixing(c, **{**keep, "mask": half(c, "right")}), mixing(c, **by_word),
                   mixing(c, **{**by_word, "threshold": 0.7}), mixing(c, object="cat", **by_word),
                   mixing(c, **{**by_word, "preserve": "cat"}), mixing(c, **{**by_word, "refine": False})]}


@pytest.mark.parametrize("node", ["mutual", "plug and play", "free prompt", "mixing"])
def test_every_input_acts(node):
    """No two settings give the same picture, and none gives the plain one. The start is not the source's, where the
    null rows would be the source's own."""
    c = case()
    with torch.inference_mode():
        found = [c.sample(model, latent=c.apart) for model in (c.model, *variants(c)[node])]
    for i, a in enumerate(found):
        for j, b in enumerate(found[:i]):
            assert relative(a, b) > 1e-5, (i, j)


WRONG = {
    "start 0.9 to end 0.2": (lambda c: mutual(c, 0.9, 0.2), "0.9 to 0.2.*paper: 0.08"),
    "words without attention": (lambda c: mutual(c, source_words="cat"), "words of the source but no ATTENTION"),
    "attention without words": (lambda c: mutual(c, attention=store(c)), "ATTENTION but no words of the source"),
    "one mask": (lambda c: mutual(c, source_mask=half(c)), "in the source, but not in the target.*target_mask"),
    "mask and words": (lambda c: mutual(c, source_words="cat", attention=store(c), source_mask=half(c)),
                       "both source_mask.*one of them"),
    "unknown word": (lambda c: mutual(c, source_words="dog", target_words="cat", attention=store(c)),
                     "names no word.*red, cat"),
    "empty mask": (lambda c: mutual(c, source_mask=0 * half(c), target_mask=half(c)),
                   "no object of the source in 1 of 1 masks"),
    "all is the object": (lambda c: mixing(c, preserve="mat", object="mat", attention=store(c), inversion=c.inversion),
                          "no shape to preserve in 1 of 1"),
    "nothing of PnP": (lambda c: plug_and_play(c, 0.0, 0.0), "both 0.*0.8 and 0.5"),
    "features of down": (lambda c: plug_and_play(c, feature_layers="d0"), "'d0'.*up section"),
    "features of a layer": (lambda c: plug_and_play(c, feature_layers="u0.0"), "'u0.0'.*whole blocks"),
    "no such layer": (lambda c: free_prompt(c, layers="u7"), r"u7.*it has d0 \(1\)"),
    "FPE that ends first": (lambda c: free_prompt(c, 0.8, 0.8), "0.8 to 0.8.*0 and 0.8"),
    "mixing that ends first": (lambda c: mixing(c, start=0.5, end=0.4), "0.5 to 0.4.*0.14 and 0.34"),
    "two mixed prompts": (lambda c: mixing(c, mix=[*c.source, *c.source]), "2 entries.*Combine"),
    "a LoRA on the mixed prompt": (lambda c: mixing(c, mix=set_hooks_for_conditioning(c.source, HookGroup())),
                                   "mix carries 'hooks'.*remove"),
    "inversion with nothing to preserve": (lambda c: mixing(c, inversion=c.inversion),
                                           "INVERSION or object.*no words or MASK"),
    "mask without inversion": (lambda c: mixing(c, mask=half(c)), "no INVERSION"),
    "words to preserve without attention": (lambda c: mixing(c, preserve="mat", inversion=c.inversion),
                                            "words of the source but no ATTENTION"),
    "object and nothing preserved": (lambda c: mixing(c, object="cat", attention=store(c), inversion=c.inversion),
                                     "INVERSION or object.*no words or MASK"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_work_is_refused_by_the_node(mistake):
    make, message = WRONG[mistake]
    with torch.inference_mode(), pytest.raises(ValueError, match=message):
        make(case())


def test_what_cannot_work_is_refused_before_the_first_call():
    c = case()
    wide = [[torch.cat([c.source[0][0]] * 2, -1), c.source[0][1]]]
    three = whole(c).repeat(3, 1, 1)
    for model, positive, message in (
            (mixing(c), tiny.encode(c.clip, "a cat"), "Prompt Edit did not make"),
            (mixing(c, mix=wide), c.target, "128 wide.*64"),
            (mixing(c, mix=prompts(c.clip, "a", "b", "c", "d")[1]), c.target, "3 mixed prompts.*1 rows"),
            (mixing(c, inversion=c.inversion, mask=three), c.target, "3 masks.*1 rows"),
            (mutual(c, source_mask=three, target_mask=three), c.target, "3 masks.*1 rows")):
        with pytest.raises(ValueError, match=message):
            c.sample(model, positive)


@pytest.mark.parametrize("words", [9, 40])
@pytest.mark.parametrize("family", ["flux", "qwen", "sd3", "lumina2", "zimage"])
def test_the_sources_keys_stand_where_the_targets_do_whatever_the_prompts_lengths(family, words):
    """In the first block the picture's keys know nothing of the prompt, so that the source's are the target's own at
    the source's latent."""
    c = Case(family, size=16, steps=2)  # 64 tokens: Z-Image fills up to 32
    (text, extra), = joint.worded(family, "a blue cat on a mat", seed=4, columns=words)
    first = self_attention_layers(c.model.model.diffusion_model)[0].section[0]
    shared = PalimpsestFeatureShare.execute(c.model, c.inversion, "Stable Flow", "k", f"{first}0", 0.0, 1.0, "picture",
                                            "same", True).result[0]
    target = [[text, {**extra, "pooled_output": c.source[0][1].get("pooled_output")}]]
    found, plain = (c.predictions(model, target, 1.0) for model in (shared, c.model))
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, plain, strict=True))
