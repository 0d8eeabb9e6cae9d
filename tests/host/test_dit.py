"""Joint attention of words and picture: edits against an explicit softmax with slices written by hand."""
from dataclasses import dataclass, replace

import pytest
import torch
from comfy.ldm.flux.model import Flux
from palimpsest.editing.inverting import invert
from palimpsest.editing.layers import SelfAttentionEdit, decoder, listed, parse_layers
from palimpsest.editing.run import attach
from palimpsest.editing.sites import AttentionEdit
from palimpsest.host.network import resolutions
from palimpsest.nodes.attention.feature_share import PalimpsestFeatureShare
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend

import joint
import tiny
from joint import JOINT
from joint_by_hand import (
    OVERRIDE,
    SOURCE,
    TARGET,
    by_hand,
    cells,
    everywhere,
    flux,
    free_prompt,
    inverted,
    made,
    masactrl,
    picture,
    sampled,
)
from node_execution import executor  # noqa: F401
from runs import relative

SIZES = [(8, 8), (7, 10)]  # an odd side is padded to whole patches
EDITS = {"masactrl": (masactrl, lambda q, k, v, q_s, k_s, v_s: (q, k_s, v_s)),
         "free prompt": (free_prompt, lambda q, k, v, q_s, k_s, v_s: (q_s, k_s, v))}


@pytest.mark.parametrize("editor, size", list(zip(EDITS, SIZES)))
@pytest.mark.parametrize("family", JOINT)
def test_an_edit_is_the_explicit_softmaxs(editor, family, size):
    """Of prompts of 5 and 8 tokens. The picture looks up its own words, and words look up what they did."""
    size = (6, 10) if size == (7, 10) and family == "hunyuan video" else size  # whose network takes no odd side
    inversion, (put, edit) = inverted(size, family=family), EDITS[editor]
    patch, frames = 1 if family in joint.CELLS else 2, 3 if family in joint.VIDEO else 1
    model, tokens = made(family), frames * -(-size[0] // patch) * -(-size[1] // patch)
    found = sampled(put(model, inversion), inversion)
    assert relative(found, by_hand(inversion, edit, TARGET, tokens, family)) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", JOINT)
def test_what_the_pictures_tokens_hold_is_looked_up_by_words_too(family):
    """Feature Share's, of prompts of 5 and 8 tokens."""
    inversion, model = inverted(family=family), made(family)
    tokens = cells(inversion, family)
    found = sampled(PalimpsestFeatureShare.execute(model, inversion, "Stable Flow", "+q, k, v", everywhere(model), 0.0,
                                                   1.0, "picture", "same", True).result[0], inversion)
    wanted = by_hand(inversion, lambda q, k, v, q_s, k_s, v_s: (q + q_s, k_s, v_s), TARGET, tokens, family,
                     words_too=True)
    assert relative(found, wanted) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", ["flux", "sd3", "wan"])
def test_what_is_kept_of_the_source_holds_no_more_than_itself(family):
    """A view of Flux's values would keep the queries and keys too, and in its single blocks four times as much."""
    inversion, held = inverted(family=family), []

    @dataclass(frozen=True, eq=False)
    class Weighed(SelfAttentionEdit):
        needs, name = "v", "Weighed"

        def attend(self, rows, site, q, k, v, source, attention):
            found = {id(kept): kept for kept in rows.call.run.reference.kept.values()}.values()
            held.extend((x.nbytes, x.untyped_storage().nbytes()) for kept in found for x in kept.features.values())
            return attention(q, k, v)

    layers = frozenset(resolutions(made(family).model.diffusion_model))
    sampled(attach(made(family), Weighed(inversion, layers, 0.0, 1.0)), inversion)
    assert held and all(alone == whole for alone, whole in held)


@pytest.mark.skipif(not joint.TODAY, reason="ComfyUI 0.3.64 does not count a reference latent's tokens")
@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_a_reference_latents_tokens_are_looked_up_as_before(family):
    """Those of Kontext and Qwen-Image-Edit, which stand after the picture's own."""
    inversion, model = inverted(family=family), masactrl(made(family), inverted(family=family))
    prompt = [[TARGET[0][0], {**TARGET[0][1], "reference_latents": [picture((6, 6), family=family)["samples"]]}]]
    found = sampled(model, inversion, prompt)
    assert relative(found, by_hand(inversion, EDITS["masactrl"][1], prompt, 16, family, beside=9)) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


def test_a_site_where_nothing_acts_is_the_hosts_to_the_bit():
    class Nothing(AttentionEdit):
        name = "nothing"

    inversion = inverted()
    assert torch.equal(sampled(attach(flux(), Nothing()), inversion), sampled(flux(), inversion))


@pytest.mark.parametrize("family", JOINT)
def test_the_sources_own_prompt_brings_the_picture_back_unedited(family):
    """Its keys and values are then the target's own. Plain sampling gives the same bytes as before the edit."""
    inversion, model = inverted(family=family), made(family)
    plain = sampled(model, inversion, SOURCE)
    assert relative(sampled(masactrl(model, inversion), inversion, SOURCE), plain) < 1e-6
    assert torch.equal(sampled(model, inversion, SOURCE), plain)
    assert not any(m._forward_pre_hooks for m in model.model.modules())


@pytest.mark.parametrize("family", JOINT)
def test_a_mask_keeps_the_source_outside_it(family):
    """In every frame, beside an edit of attention."""
    inversion, mask = inverted(family=family), torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    model = masactrl(made(family), inversion)
    found = sampled(PalimpsestLatentBlend.execute(model, inversion, 0.0, "", "", 0.3, mask=mask).result[0], inversion)
    source = picture(family=family)["samples"]
    assert relative(found[..., 4:], source[..., 4:]) < 1e-6 < relative(found[..., :4], source[..., :4])


@pytest.mark.parametrize("family", JOINT)
def test_an_inversion_of_another_family_is_refused(family):
    with pytest.raises(ValueError, match="INVERSION"):
        masactrl(made("chroma" if family == "flux" else "flux"), inverted(family=family))


@pytest.mark.parametrize("tokens", [8, 6])
def test_rows_with_guidance_are_runs_of_their_own(tokens):
    """Two pictures at CFG 3, with a negative as long as the prompt and with one that needs a forward of its own."""
    both, negative = inverted(batch=2), tiny.cond(tokens, seed=9)
    found = sampled(masactrl(flux(), both), both, cfg=3.0, negative=negative)
    for row in (0, 1):
        one = invert("DDIM", flux(), SOURCE, {"samples": picture(batch=2)["samples"][row:row + 1]},
                     sigmas=both.sigmas).inversion
        alone = sampled(masactrl(flux(), one), one, cfg=3.0, negative=negative)
        assert relative(found[row:row + 1], alone) < 1e-4
    assert relative(found, sampled(flux(), both, cfg=3.0, negative=negative)) > 1e-3


@pytest.mark.parametrize("family", ["flux", "zimage", "wan"])
def test_masks_part_object_and_ground_of_each_picture(family):
    """Two pictures with masks of their own, at CFG 3, are two runs."""
    both, model = inverted(batch=2, family=family), made(family)
    halves, negative = torch.zeros(2, 64, 64), joint.cond(8, seed=9)
    halves[0, :, :32] = halves[1, 32:] = 1
    together, plain = (sampled(masactrl(model, both, **masks), both, cfg=3.0, negative=negative) for masks in (
        {"source_mask": halves, "target_mask": halves}, {}))
    for row in (0, 1):
        one, mask = replace(both, latents=tuple(x[row:row + 1] for x in both.latents)), halves[row:row + 1]
        alone = sampled(masactrl(model, one, source_mask=mask, target_mask=mask), one, cfg=3.0, negative=negative)
        assert relative(together[row:row + 1], alone) < 1e-4 < 1e-3 < relative(plain[row:row + 1], alone)


def test_another_packs_override_stays_around_and_nothing_stays_on_the_model():
    seen, model, inversion = [], flux().clone(), inverted()

    def foreign(func, q, k, v, heads, **kwargs):
        seen.append(q.shape[2])
        return func(q, k, v, heads, **kwargs)

    model.model_options["transformer_options"][OVERRIDE] = foreign
    edited = masactrl(model, inversion)
    assert torch.equal(sampled(edited, inversion), sampled(masactrl(flux(), inversion), inversion))
    assert seen and edited.model_options["transformer_options"][OVERRIDE] is foreign


def test_layers_are_named_by_double_and_single_blocks():
    network = flux().model.diffusion_model
    assert listed(network) == "d0-1 (1/2), s0-1 (1/2)"
    assert parse_layers("D0, s0-1", network) == {("double", 0, 0), ("single", 0, 0), ("single", 1, 0)}
    assert decoder(network, 0.5) == {("single", 0, 0), ("single", 1, 0)}
    assert decoder(tiny.flux(depth_single_blocks=7).model.diffusion_model, 0.5) == {("single", i, 0) for i in (4, 5, 6)}
    assert listed(made("sd35 medium").model.diffusion_model) == "d0.0-1 (1/2), d1 (1/2)"
    with pytest.raises(ValueError, match="does not have: it has d0-1"):
        parse_layers("s2", network)


def test_a_class_that_is_not_known_is_named():
    """Also one that derives from a known class: its attention may be another."""
    class Other(Flux):
        pass

    model = tiny.flux()
    model.model.diffusion_model.__class__ = Other
    for node, *rest in ((PalimpsestMutualSelfAttention, "", "", 0.1, True), (PalimpsestFreePromptEdit,)):
        with pytest.raises(ValueError, match=r"of Flux, .* this MODEL is Flux \(Other\).* added in host/dit.py"):
            node.execute(model, inverted(), 0.0, 1.0, "", *rest)


def test_words_areas_and_residual_features_are_refused():
    inversion = inverted()
    with pytest.raises(ValueError, match="feature_end of 0.8 edits the attention of U-Nets .* set feature_end to 0"):
        PalimpsestPlugAndPlay.execute(flux(), inversion, 0.8, 0.5, "", "", True)
    with pytest.raises(ValueError, match=r"by words finds words in .* Wan, SD3, AuraFlow, this MODEL is LTXV .*masks"):
        PalimpsestMutualSelfAttention.execute(made("ltx video"), inverted(family="ltx video"), 0.0, 1.0, "", "", "cat",
                                              0.1, True)
    area = [[TARGET[0][0], {**TARGET[0][1], "area": (4, 8, 0, 0)}], *TARGET]
    with pytest.raises(ValueError, match="token's place in the whole: remove Conditioning"):
        sampled(masactrl(flux(), inversion), inversion, area)


def test_a_picture_beside_each_row_is_refused():
    inversion = inverted(family="hidream")
    beside = [[TARGET[0][0], {**TARGET[0][1], "concat_latent_image": picture(family="hidream")["samples"]}]]
    with pytest.raises(ValueError, match="picture of .8, 8. cells .HiDream-E1.*remove InstructPixToPix"):
        sampled(masactrl(made("hidream"), inversion), inversion, beside)


def test_a_mask_of_another_node_is_refused():
    inversion = inverted()
    model = masactrl(flux(), inversion)

    def mask(args):
        return {**args, "attn_mask": torch.zeros(24, 24)}

    model.set_model_patch_replace(lambda args, extra: extra["original_block"](mask(args)), "dit", "double_block", 0)
    with pytest.raises(ValueError, match="Attention has a mask .* remove that node"):
        sampled(model, inversion)
