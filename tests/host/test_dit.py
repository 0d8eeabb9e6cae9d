"""Joint attention of words and picture: edits against an explicit softmax with slices written by hand."""
import math
from dataclasses import dataclass

import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.editing.inverting import invert
from palimpsest.editing.layers import SelfAttentionEdit, decoder, listed, parse_layers, self_attention_layers
from palimpsest.editing.replay import replay
from palimpsest.editing.run import attach
from palimpsest.editing.sites import AttentionEdit
from palimpsest.guidance.magic_remover import MagicRemover
from palimpsest.host.network import resolutions
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.attention.cross_image import PalimpsestCrossImageAttention
from palimpsest.nodes.attention.feature_share import PalimpsestFeatureShare
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned
from palimpsest.nodes.blending.local_blend import PalimpsestLatentBlend

import joint
import tiny
from joint import JOINT
from node_execution import executor  # noqa: F401
from runs import kept, relative

OVERRIDE, SOURCE, TARGET = "optimized_attention_override", joint.cond(5), joint.cond(8, seed=4)
SIZES = [(8, 8), (7, 10)]  # an odd side is padded to whole patches


@kept
def made(family):
    return JOINT[family]()


def flux():
    return made("flux")


def picture(size=(8, 8), batch=1, family="flux"):
    return {"samples": joint.latent(family, made(family), batch, size)}


@kept
def inverted(size=(8, 8), batch=1, family="flux"):
    return invert("DDIM", made(family), SOURCE, picture(size, batch, family),
                  sigmas=torch.tensor([0.8, 0.0])).inversion


def everywhere(model):
    """All layers."""
    return ", ".join({p.section for p in self_attention_layers(model.model.diffusion_model)})


def masactrl(model, inversion, **given):
    return PalimpsestMutualSelfAttention.execute(model, inversion, 0.0, 1.0, everywhere(model), "", "", 0.1, True,
                                                 **given).result[0]


def free_prompt(model, inversion):
    return PalimpsestFreePromptEdit.execute(model, inversion, 0.0, 1.0, everywhere(model)).result[0]


def sampled(model, inversion, prompt=TARGET, cfg=1.0, negative=TARGET):
    _, solver, sigmas, latent = replay(model, inversion)
    return SamplerCustom.execute(model, False, 0, cfg, prompt, negative, solver, sigmas, latent).result[0]["samples"]


def under(function, family, inversion, prompt):
    """One step under an attention function of our own."""
    model = made(family).clone()
    model.model_options["transformer_options"][OVERRIDE] = function
    latent = model.model.process_latent_out(inversion.path[0])
    return sample(model, prompt, latent, inversion.sigmas, Solver())


def softmax(q, k, v, changed=lambda maps: maps):
    out = changed((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)) @ v
    return out.transpose(1, 2).flatten(2)


# {family: (tokens, those before the picture's), of so many words and tokens of the picture}
PLACES = {"wan": lambda words, tokens: (tokens, 0), "ltx video": lambda words, tokens: (tokens, 0),
          "hidream": lambda words, tokens: (tokens + 3 * words, 0),
          "auraflow": lambda words, tokens: (8 + words + tokens, 8 + words),
          **({"zimage": lambda words, tokens: (32 + -(-tokens // 32) * 32, 32)} if joint.TODAY else {})}


def of_picture(family, words, tokens, found):
    """The picture's own of the tokens that some attention has, or None where it is none that is edited."""
    total, start = PLACES.get(family, lambda words, tokens: (words + tokens, words))(words, tokens)
    if found == tokens and family == "sd35 medium":
        return slice(0, tokens)
    return slice(start, start + tokens) if found == total else None


def by_hand(inversion, edit, prompt, tokens, family="flux", beside=0, words_too=False, changed=lambda maps: maps):
    """The run in which edit(q, k, v, source's q, k, v of the picture) gives what the picture's queries look up.
    beside: tokens of reference latents in the prompt. words_too: whether these and words look it up too. changed:
    what the probabilities become, those of the picture last."""
    known, calls = [], iter(range(99))

    def shaped(q, k, v, heads, skip_reshape=False, **_):
        """[rows, heads, tokens, width]"""
        return (q, k, v) if skip_reshape else [x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)
                                               for x in (q, k, v)]

    def record(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        own = of_picture(family, 5, tokens, split[0].shape[2])
        if own and split[1].shape[2] == split[0].shape[2]:
            known.append([x[:, :, own] for x in split])
        return func(q, k, v, heads, *args, **kwargs)

    def explicit(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        own = of_picture(family, 8, tokens, split[0].shape[2] - beside)
        if not own or split[1].shape[2] != split[0].shape[2]:
            return func(q, k, v, heads, *args, **kwargs)
        asked, keys, values = edit(*(x[:, :, own] for x in split), *known[next(calls)])
        rest = [torch.cat([x[:, :, :own.start], x[:, :, own.stop:]], 2) for x in split[1:]]
        out = softmax(*split)
        every = torch.cat([split[0][:, :, :own.start], asked, split[0][:, :, own.stop:]], 2)
        own = slice(None) if words_too else own
        out[:, own] = softmax(every[:, :, own], torch.cat([rest[0], keys], 2), torch.cat([rest[1], values], 2), changed)
        return out

    under(record, family, inversion, SOURCE)
    found = under(explicit, family, inversion, prompt)
    assert next(calls) == len(known) == len(resolutions(made(family).model.diffusion_model))
    return found


EDITS = {"masactrl": (masactrl, lambda q, k, v, q_s, k_s, v_s: (q, k_s, v_s)),
         "free prompt": (free_prompt, lambda q, k, v, q_s, k_s, v_s: (q_s, k_s, v))}


@pytest.mark.parametrize("editor, size", list(zip(EDITS, SIZES)))
@pytest.mark.parametrize("family", JOINT)
def test_an_edit_is_the_explicit_softmaxs(editor, family, size):
    """Of prompts of 5 and 8 tokens. The picture looks up its own words, and words look up what they did."""
    size = (6, 10) if size == (7, 10) and family == "hunyuan video" else size  # whose network takes no odd side
    inversion, (put, edit) = inverted(size, family=family), EDITS[editor]
    patch, frames = 1 if family in ("hunyuan image", "ltx video") else 2, 3 if family in joint.VIDEO else 1
    model, tokens = made(family), frames * -(-size[0] // patch) * -(-size[1] // patch)
    found = sampled(put(model, inversion), inversion)
    assert relative(found, by_hand(inversion, edit, TARGET, tokens, family)) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", JOINT)
def test_what_the_pictures_tokens_hold_is_looked_up_by_words_too(family):
    """Feature Share's, of prompts of 5 and 8 tokens."""
    inversion, model = inverted(family=family), made(family)
    tokens = math.prod(inversion.shape[1:]) // {"hunyuan image": 1, "ltx video": 1}.get(family, 4)
    found = sampled(PalimpsestFeatureShare.execute(model, inversion, "Stable Flow", "+q, k, v", everywhere(model), 0.0,
                                                   1.0, "picture", "same", True).result[0], inversion)
    wanted = by_hand(inversion, lambda q, k, v, q_s, k_s, v_s: (q + q_s, k_s, v_s), TARGET, tokens, family,
                     words_too=True)
    assert relative(found, wanted) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen", "wan"])
def test_an_appearance_is_looked_up_with_contrast(family):
    """In the picture's part of the softmax. Words keep theirs."""
    inversion, model = inverted(family=family), made(family)
    tokens = 48 if family == "wan" else 16

    def contrasted(maps):
        rest, mine = maps.split([maps.shape[-1] - tokens, tokens], -1)
        share = mine.sum(-1, keepdim=True)
        mine = (((mine / share - 1 / tokens) * 1.67 + 1 / tokens).clamp(0, 1)) * share
        return torch.cat([rest, mine], -1)

    def put(adain):
        return PalimpsestCrossImageAttention.execute(model, inversion, 0.0, 1.0, 1.0, adain, 1.0, 1.67,
                                                     everywhere(model)).result[0]

    found = sampled(put(1.0), inversion)
    wanted = by_hand(inversion, lambda q, k, v, q_s, k_s, v_s: (q, k_s, v_s), TARGET, tokens, family,
                     changed=contrasted)
    assert relative(found, wanted) < 1e-5
    assert relative(found, sampled(masactrl(model, inversion), inversion)) > 1e-5
    found, source = (model.model.process_latent_in(x).flatten(2) for x in (
        sampled(put(0.0), inversion), picture(family=family)["samples"]))
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(found, 2), statistic(source, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["flux", "sd35 medium"])
def test_what_lies_in_an_objects_place_is_not_looked_up(family):
    """MagicRemover's filling. Words are looked up as before."""
    inversion, model, place = inverted(family=family), made(family), torch.zeros(1, 8, 8)
    place[..., :4] = 1
    outside = torch.arange(16) % 4 > 1
    found = sampled(attach(model, MagicRemover(inversion, (), place, start=0.0)), inversion)
    wanted = by_hand(inversion, lambda q, k, v, q_s, k_s, v_s: (q, k_s[:, :, outside], v_s[:, :, outside]), TARGET, 16,
                     family)
    assert relative(found, wanted) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4


@pytest.mark.parametrize("family", ["sd3", "auraflow", "flux"])
def test_a_style_is_shared_beside_the_words(family):
    """Its tokens count twice, which is a shift of their scores by ln 2. Where places turn q and k, they are not
    normalised."""
    inversion, model, normalise = inverted(family=family), made(family), family != "flux"

    def style(normalise):
        return PalimpsestStyleAligned.execute(model, 0.0, 1.0, math.log(2), 1.0, normalise, "", True,
                                              inversion=inversion).result[0]

    def normalised(x, x_s):
        (mean, deviation), (mean_s, deviation_s) = ((y.mean(2, keepdim=True), (y.var(2, keepdim=True) + 1e-5).sqrt())
                                                    for y in (x, x_s))
        return (x - mean) / deviation * deviation_s + mean_s if normalise else x

    def edit(q, k, v, q_s, k_s, v_s):
        return normalised(q, q_s), torch.cat([normalised(k, k_s), k_s, k_s], 2), torch.cat([v, v_s, v_s], 2)

    found = sampled(style(normalise), inversion)
    assert relative(found, by_hand(inversion, edit, TARGET, 16, family)) < 1e-5
    assert relative(found, sampled(model, inversion)) > 1e-4
    if family == "flux":
        with pytest.raises(ValueError, match="Flux, each token's place has turned them: turn normalise off"):
            style(True)
        with pytest.raises(ValueError, match="across a batch edits .* U-Nets .* or connect the INVERSION"):
            PalimpsestStyleAligned.execute(model, 0.0, 1.0, 0.0, 1.0, False, "", True)


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


def test_masks_part_object_and_ground():
    inversion, left = inverted(), torch.zeros(1, 64, 64)
    left[..., :32] = 1
    found = sampled(masactrl(flux(), inversion, source_mask=left, target_mask=left), inversion)
    assert relative(found, sampled(masactrl(flux(), inversion), inversion)) > 1e-4


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
