"""Mutual self-attention, plug-and-play, free-prompt and prompt mixing: against plain explicit softmax maps, and on the host."""
from collections import defaultdict
from dataclasses import dataclass, fields

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from palimpsest.attention.free_prompt import SelfAttentionMaps
from palimpsest.attention.masactrl import MutualSelfAttention, object_mask
from palimpsest.attention.plug_and_play import after_first, second_block
from palimpsest.attention.prompt_mixing import MixedValues, PreservedShapes
from palimpsest.editing.editor import editors
from palimpsest.editing.layers import coarse, decoder, listed, parse_layers, places
from palimpsest.editing.run import attach
from palimpsest.editing.sites import Rows, Site, Source, mask_at
from palimpsest.host.sampling import schedule
from palimpsest.host.unet import host_attention, positions
from palimpsest.nodes.attention.free_prompt import PalimpsestFreePromptEdit
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing
from palimpsest.nodes.attention.store import PalimpsestAttentionStore
from palimpsest.nodes.inversion.fixed_point import PalimpsestFixedPointInvert

import tiny
from explicit import HEADS, SIDE, Call, Run, apply_maps, attention, features, only, relative, softmax_maps
from runs import Case, kept, prompts

FAMILIES = list(tiny.UNETS)
each_family = pytest.mark.parametrize("family", FAMILIES)


@kept
def case(family="sd15", **kwargs):
    return Case(family, steps=3, **kwargs)


def attend(editor, rows, target, source):
    site = Site("self", ("output", 0, 0), (SIDE, SIDE), 0.5, HEADS)
    return editor.attend(Rows(Call(Run()), {}, rows), site, *target, Source(*source), attention)


def mask(*cells, size=2 * SIDE):
    """[1, size, size], 1 on some windows (top, bottom, left, right)."""
    m = torch.zeros(1, size, size)
    for top, bottom, left, right in cells:
        m[:, top:bottom, left:right] = 1
    return m


def network(channels, depth, middle, out):
    with torch.device("meta"):
        return UNetModel(image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[2] * len(channels),
                         channel_mult=channels, transformer_depth=depth, transformer_depth_middle=middle,
                         transformer_depth_output=out, context_dim=32, use_spatial_transformer=True, num_heads=2, legacy=False,
                         operations=comfy.ops.disable_weight_init)


def sd15():
    return network([1, 2, 4, 4], [1, 1, 1, 1, 1, 1, 0, 0], 1, [1] * 9 + [0] * 3)


def sdxl():
    return network([1, 2, 4], [0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10])


def test_layers_are_counted_in_the_order_in_which_the_network_runs_them():
    assert listed(sd15()) == "d0-1 (1), d2-3 (1/2), d4-5 (1/4), m0 (1/8), u0-2 (1/4), u3-5 (1/2), u6-8 (1)"
    assert listed(sdxl()) == "d0-1.0-1 (1/2), d2-3.0-9 (1/4), m0.0-9 (1/4), u0-2.0-9 (1/4), u3-5.0-1 (1/2)"
    order = [("d", i) for i in range(6)] + [("m", 0)] + [("u", i) for i in range(9)]
    assert [(p.section, p.block) for p in places(sd15())] == order


def test_a_list_of_layers_names_sections_transformers_and_layers():
    unet = sdxl()
    assert parse_layers("d2.2-9, m0\nU0.4", unet) == {
        *(("input", 7, i) for i in range(2, 10)), *(("middle", 0, i) for i in range(10)), ("output", 0, 4)}
    assert parse_layers("u", unet) == {p.position for p in places(unet) if p.section == "u"}
    assert parse_layers("u3-5.1", unet) == {("output", i, 1) for i in (3, 4, 5)}
    assert parse_layers("", unet) == frozenset()


@pytest.mark.parametrize("text", ["d9", "d1-9", "m0.10", "d0.1-7", "u0.10", "u5-3"])
def test_a_layer_that_the_model_lacks_is_an_error_that_lists_what_it_has(text):
    with pytest.raises(ValueError, match=r"does not have: it has d0-1\.0-1 \(1/2\), d2-3\.0-9.*u3-5\.0-1"):
        parse_layers(f"m0, {text}", sdxl())


@pytest.mark.parametrize("text", ["x0", "d.1", "d0.", "4", "d0;m0", "middle"])
def test_what_is_no_layer_at_all_is_an_error(text):
    with pytest.raises(ValueError, match="names no layer"):
        parse_layers(text, sd15())


def test_defaults_are_the_papers_layers():
    """MasaCtrl: from layer 10 of SD's 16, 64 of SDXL's 70; PnP: the fourth block's features, attention of blocks 4 to 11."""
    for unet, layers, start in ((sd15(), "u3-8", 10), (sdxl(), "u3-5", 64)):
        mine = decoder(unet, 0.5)
        assert mine == parse_layers(layers, unet) == {p.position for p in places(unet)[start:]}
    assert second_block(sd15()) == {4} and {p[1] for p in after_first(sd15())} == set(range(4, 12))
    assert after_first(sdxl()) == parse_layers("u1-5", sdxl()) and second_block(sdxl()) == {1}
    assert coarse(sd15(), 0.5) == parse_layers("d2-5, m0, u0-5", sd15())
    assert coarse(sdxl(), 0.5) == parse_layers("d, m, u", sdxl())


def test_free_prompt_edit_is_the_sources_maps_on_the_targets_values():
    target, source = features(2, 0), features(2, 1)
    got = attend(SelfAttentionMaps(None, frozenset(), 0, 1), 2, target, source)
    torch.testing.assert_close(got, apply_maps(softmax_maps(*source[:2]), target[2]), rtol=1e-12, atol=1e-12)


def test_mutual_self_attention_looks_up_the_source():
    target, source = features(2, 0), features(2, 1)
    got = attend(MutualSelfAttention(None, frozenset(), 0, 1), 2, target, source)
    torch.testing.assert_close(got, apply_maps(softmax_maps(target[0], source[1]), source[2]), rtol=1e-12, atol=1e-12)


def test_masked_mutual_self_attention_is_the_papers_equation_with_masked_maps():
    """Two pictures with masks of their own, of unequal counts of keys, for four rows; a soft target mask."""
    target, source = features(4, 0), features(4, 1)
    places_ = torch.cat([mask((0, 4, 0, 6)), mask((2, 8, 2, 4))])
    wanted = torch.cat([mask((0, 8, 4, 8)), 0.25 * mask((0, 8, 0, 8))])
    inside = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    inside[0, :2, :3] = inside[1, 1:, 1:2] = True
    inside, m = inside.flatten(1).repeat(2, 1), torch.zeros(2, SIDE, SIDE).double()
    m[0, :, 2:], m[1] = 1, 0.25
    m = m.flatten(1).repeat(2, 1)[..., None]
    f_o, f_b = (apply_maps(softmax_maps(target[0], source[1], only(keys[:, None, None])), source[2]) for keys in (inside, ~inside))
    got = attend(MutualSelfAttention(None, frozenset(), 0, 1, (), places_, wanted), 4, target, source)
    torch.testing.assert_close(got, f_o * m + f_b * (1 - m), rtol=1e-10, atol=1e-10)


def test_a_side_without_keys_looks_up_them_all():
    target, source = features(1, 0), features(1, 1)
    wanted = mask((0, 8, 0, 4))
    for empty in (mask(), mask((0, 8, 0, 8))):
        got = attend(MutualSelfAttention(None, frozenset(), 0, 1, (), empty, wanted), 1, target, source)
        torch.testing.assert_close(got, attention(target[0], source[1], source[2]))


def test_a_mask_is_seen_in_the_entrys_own_window():
    """A mean over the latent cells of each token, in an area of the latent where the entry has one."""
    m = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    whole_, window = (Site("self", ("middle", 0, 0), grid, 0.5, HEADS) for grid in ((4, 4), (2, 3)))
    means = m.unflatten(2, (4, 2)).unflatten(1, (4, 2)).mean((2, 4))
    torch.testing.assert_close(mask_at(m, Rows(Call(Run((2,))), {}, 2), whole_), means.flatten(1))
    area = Rows(Call(Run((2,))), {"area": (4, 6, 2, 0)}, 2)  # height, width, y, x
    torch.testing.assert_close(mask_at(m, area, window), means[:, 1:3, :3].flatten(1))


def test_the_object_is_where_its_words_are_over_the_threshold_of_their_range():
    maps = torch.tensor([[[[0.2, 0.25], [0.3, 0.7]], [[0.1, 0.1], [0.14, 0.6]]]])
    assert torch.equal(object_mask(maps, (2, 2), 0.1), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    assert torch.equal(object_mask(maps, (4, 4), 0.2)[0], mask((2, 4, 2, 4), size=4)[0])
    assert object_mask(torch.ones(1, 1, 2, 2), (2, 2), 0.1).isfinite().all()


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("soft", [1.0, 0.5])
def test_preserved_shapes_take_the_sources_rows_and_columns(soft, varied):
    """Those of the preserved places, and none of the object's whose shape varies, where they overlap."""
    target, source = features(2, 0), features(2, 1)
    o, b = torch.zeros(2, SIDE, SIDE).double()
    o[:2, 1:3], b[1:, 2:] = soft, soft * varied
    o, b = o.flatten(), b.flatten()
    m = (1 - (1 - o)[:, None] * (1 - o)[None]) * (1 - b)[:, None] * (1 - b)[None]
    maps = m * softmax_maps(*source[:2]) + (1 - m) * softmax_maps(*target[:2])
    editor = PreservedShapes(None, frozenset(), 0, 1, preserved=soft * mask((0, 4, 2, 6)),
                             varied=soft * mask((2, 8, 4, 8)) if varied else None)
    torch.testing.assert_close(attend(editor, 2, target, source), apply_maps(maps, target[2]), rtol=1e-6, atol=1e-6)


@dataclass(frozen=True, eq=False)
class ExplicitShapes(PreservedShapes):
    """The edited maps, made as the paper writes them."""

    def attend(self, rows, site, q, k, v, source, attention):
        q, k, q_s, k_s, v = (x.unflatten(-1, (site.heads, -1)).transpose(1, 2) for x in (q, k, source.q, source.k, v))
        theirs, own = ((a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5).softmax(-1) for a, b in ((q_s, k_s), (q, k)))
        o, b = (mask_at(m, rows, site)[0] for m in (self.preserved, self.varied))
        m = (1 - (1 - o)[:, None] * (1 - o)) * (1 - b)[:, None] * (1 - b)
        return ((m * theirs + (1 - m) * own) @ v).transpose(1, 2).flatten(2)


@each_family
def test_a_run_that_preserves_shapes_is_that_of_explicit_maps(family):
    """By the node, with the object found by its word within what is preserved."""
    c = case(family)
    preserved = {"preserve_end": 1.0, "mask": whole(c), "inversion": c.inversion}
    model = mixing(c, object="cat", threshold=0.9, attention=store(c), **preserved)
    shapes = editors(model)[-1]
    assert 0 < shapes.varied.mean() < 1
    explicit = attach(model, ExplicitShapes(**{f.name: getattr(shapes, f.name) for f in fields(shapes)}), replacing=shapes)
    found = c.sample(model)
    assert relative(found, c.sample(explicit)) < 2e-5
    assert relative(found, c.sample(mixing(c, **preserved))) > 1e-3


def mutual(c, start=0.0, end=1.0, layers="", source_words="", target_words="", threshold=0.1, null_too=False, **masks):
    return PalimpsestMutualSelfAttention.execute(c.model, c.inversion, start, end, layers, source_words, target_words,
                                                 threshold, null_too, **masks).result[0]


def plug_and_play(c, feature_end=0.8, attention_end=0.5, feature_layers="", layers="", null_too=False):
    return PalimpsestPlugAndPlay.execute(c.model, c.inversion, feature_end, attention_end, feature_layers, layers,
                                         null_too).result[0]


def free_prompt(c, start=0.0, end=0.8, layers=""):
    return PalimpsestFreePromptEdit.execute(c.model, c.inversion, start, end, layers).result[0]


def mixing(c, mix=None, start=0.0, end=0.8, preserve="", object="", threshold=0.3, preserve_end=0.8, layers="", **sources):
    return PalimpsestPromptMixing.execute(c.model, mix or c.source, start, end, preserve, object, threshold, preserve_end, layers,
                                          **sources).result[0]


def whole(c, value=1.0):
    return torch.full((1, 64, 64), value)


IDENTITIES = {"mutual": mutual, "plug and play": lambda c: plug_and_play(c, 1.0, 1.0),
              "free prompt": lambda c: free_prompt(c, end=1.0),
              "mixing": lambda c: mixing(c, end=1.0, preserve_end=1.0, mask=whole(c, 0.5), inversion=c.inversion)}


@pytest.mark.parametrize("editor, family", [(e, f) for e in IDENTITIES for f in FAMILIES])
def test_source_as_target_changes_no_prediction(editor, family):
    """At the source's latents, with CFG: the source's features are the target's own."""
    c = case(family)
    edited, plain = (c.predictions(m, c.source, 7.5) for m in (IDENTITIES[editor](c), c.model))
    for a, b in zip(edited, plain, strict=True):
        assert relative(a, b) < 1e-5


NULL = {"mutual": lambda c, null: mutual(c, null_too=null),
        "plug and play": lambda c, null: plug_and_play(c, 1.0, 1.0, null_too=null)}


@pytest.mark.parametrize("editor, family", [(e, f) for e in NULL for f in FAMILIES])
def test_the_null_prompts_rows_are_given_what_the_source_shows_under_that_prompt_where_wanted(editor, family):
    """CFG 0 shows the null rows alone. At the source's latents those are the source's own, whatever the prompts say; elsewhere
    they are not."""
    c = case(family)
    model = NULL[editor](c, True)
    for a, b in zip(*(c.predictions(m, c.target, 0.0) for m in (model, c.model)), strict=True):
        assert relative(a, b) < 1e-5
    both, one, plain = (c.sample(m, cfg=0.0, latent=c.apart) for m in (model, NULL[editor](c, False), c.model))
    assert relative(both, plain) > 1e-4 and relative(one, plain) < 1e-5
    both, one, plain = (c.predictions(m, c.target, 1.0) for m in (model, NULL[editor](c, False), c.model))
    for a, b, c_ in zip(both, one, plain, strict=True):
        assert relative(a, b) < 1e-5 < 1e-4 < relative(a, c_)


def residuals(c, model, **kwargs):
    """[(inputs, output)] of the residual block whose features are put in place, at each of a run's forwards, and the block."""
    unet, seen = c.model.model.diffusion_model, []
    number, = second_block(unet)
    block = unet.output_blocks[number][0]
    hook = block.register_forward_hook(lambda module, inputs, out: seen.append((inputs, out)))
    try:
        c.sample(model, **kwargs)
    finally:
        hook.remove()
    return seen, block


@each_family
def test_residual_features_are_those_before_the_skip_is_added(family):
    """A block's output is the target's own skip and what the source's block adds to its own; other rows are left alone."""
    c = case(family)
    ((source, its_out), *steps), block = residuals(c, plug_and_play(c, 0.8, 0.0))
    assert [len(its_out), *(len(out) for _, out in steps)] == [2, 2, 2, 2]  # the source at two steps; the others at three
    with torch.inference_mode():
        added = its_out - block.skip_connection(source[0])
        for i, (inputs, out) in enumerate(steps):
            own, skip = block(*inputs), block.skip_connection(inputs[0])
            changed = [relative(a, b) > 1e-3 for a, b in zip(out, own)]
            assert sum(changed) == (i < 2)
            for row in (r for r in range(2) if changed[r]):
                assert relative(out[row], skip[row] + added[i]) < 1e-5


def test_an_area_is_given_the_same_window_of_the_residual_features():
    c = case(size=16)
    cross, extras = c.target[0]
    area = [[cross, {**extras, "area": (12, 10, 4, 2), "strength": 1.0}]]  # height, width, y, x; the block's grid is half of it
    (whole_, window, *_), block = residuals(c, plug_and_play(c, 0.8, 0.0), positive=area, cfg=1.0)
    assert [out.shape[-2:] for _, out in (whole_, window)] == [(8, 8), (6, 5)]
    with torch.inference_mode():
        added, found = (out - block.skip_connection(inputs[0]) for inputs, out in (whole_, window))
    assert relative(found[0], added[0, :, 2:8, 1:6]) < 1e-5


@each_family
def test_values_of_the_mixed_prompt_meet_the_keys_of_the_pictures(family):
    """At every cross-attention, in the target's rows alone and in the middle of the schedule alone."""
    c, seen = case(family), defaultdict(list)
    unet = c.model.model.diffusion_model

    def note(q, k, v, options):
        section, number = options["block"]
        transformer = next(m for m in (unet.middle_block if section == "middle" else getattr(unet, f"{section}_blocks")[number])
                           if hasattr(m, "transformer_blocks"))
        seen[float(options["sigmas"][0])].append((transformer.transformer_blocks[options["block_index"]].attn2, k, v))
        return host_attention(q, k, v, options)

    model = mixing(c, start=0.5)  # of three steps, the second
    for position in positions(unet):
        model.set_model_patch_replace(note, "attn2", *position)
    c.sample(model, cfg=1.0)
    assert len(seen) == 3
    with torch.inference_mode():
        for step, found in enumerate(seen.values()):
            assert len(found) == len(positions(unet))
            for attn, k, v in found:
                assert relative(k, attn.to_k(c.target[0][0])) < 1e-5
                assert relative(v, attn.to_v((c.source if step == 1 else c.target)[0][0])) < 1e-5


def test_a_mixed_prompt_of_another_length_fills_the_positions_that_it_has():
    """Of a prompt whose columns the host repeated, in every repetition."""
    v, other = torch.randn(2, 12, 3), torch.randn(1, 4, 3)
    mixed = MixedValues(other, 0, 1).mixed(v, 6)
    torch.testing.assert_close(mixed[:, :4], other.expand(2, -1, -1))
    torch.testing.assert_close(mixed[:, 6:10], other.expand(2, -1, -1))
    torch.testing.assert_close(mixed[:, 4:6], v[:, 4:6])
    longer = torch.randn(2, 9, 3)
    torch.testing.assert_close(MixedValues(longer, 0, 1).mixed(v, 6), longer[:, :6].repeat(1, 2, 1))


@dataclass(frozen=True, eq=False)
class Noted(MutualSelfAttention):
    notes: dict = None

    def attend(self, rows, site, q, k, v, source, attention):
        self.notes[rows.call.sigma, site.position] = k, v, source
        return super().attend(rows, site, q, k, v, source, attention)


def test_what_is_looked_up_are_the_features_of_the_inversion_itself():
    """TIC (arXiv:2312.14611): those that the network had while it inverted, however guidance makes a reconstruction drift."""
    c, inverted = case(), {}
    place = ("output", 3, 0)

    def note(q, k, v, options):
        inverted[float(options["sigmas"][0])] = k, v  # the last evaluation of a step is at the latent that it ends at
        return host_attention(q, k, v, options)

    model = c.model.clone()
    model.set_model_attn1_replace(note, *place)
    with torch.inference_mode():
        inversion, noise, sigmas = PalimpsestFixedPointInvert.execute(
            model, c.source, {"samples": c.latent}, 1, "normal", 20, 1e-6, "anderson",
            schedule(c.model, "ddim_uniform", 10)[2:]).result  # where the iteration arrives
    notes = {}
    edited = attach(c.model, Noted(inversion, frozenset([place]), 0.0, 1.0, notes=notes))
    c.sample(edited, latent=noise["samples"], sigmas=sigmas)
    assert len(notes) == len(inverted) == 8
    drift = []
    for (sigma, _), (k, v, source) in notes.items():
        mine = next(found for level, found in inverted.items() if abs(level / sigma - 1) < 1e-4)
        for theirs, looked_up, own in zip(mine, (source.k, source.v), (k, v)):
            assert relative(looked_up, theirs) < 1e-4
            drift.append(relative(own, theirs))
    assert max(drift) > 0.05


@kept
def store(c):
    with torch.inference_mode():
        return PalimpsestAttentionStore.execute(c.model, c.inversion, c.edit, 0.5).result[0]


def half(c, side="left"):
    m = torch.zeros(1, 64, 64)
    m[:, :, :32] = 1
    return m if side == "left" else 1 - m


def variants(c):
    """{node: [its base, and one run a widget or input]}."""
    attention = store(c)
    masks = {"source_mask": half(c), "target_mask": half(c, "right")}
    words = {"source_words": "cat", "target_words": "cat", "attention": attention, "threshold": 0.6}
    keep = {"inversion": c.inversion, "mask": half(c)}
    by_word = {"inversion": c.inversion, "attention": attention, "preserve": "mat", "threshold": 0.4}
    green = prompts(c.clip, "a red cat on a mat", "a green dog on a mat")[1]
    return {
        "mutual": [mutual(c), mutual(c, start=0.5), mutual(c, end=0.5), mutual(c, layers="u2"), mutual(c, null_too=True),
                   mutual(c, **masks),
                   mutual(c, **{**masks, "source_mask": half(c, "right")}), mutual(c, **{**masks, "target_mask": whole(c)}),
                   mutual(c, **words), mutual(c, **{**words, "threshold": 0.3}), mutual(c, **{**words, "source_words": "mat"}),
                   mutual(c, **{**words, "target_words": "mat"}), mutual(c, **{**words, "refine": False}),
                   mutual(c, source_mask=half(c), target_words="cat")],
        "plug and play": [plug_and_play(c), plug_and_play(c, feature_end=0.0), plug_and_play(c, attention_end=0.0),
                          plug_and_play(c, attention_end=1.0), plug_and_play(c, feature_layers="u2"),
                          plug_and_play(c, layers="u3"), plug_and_play(c, 0.0, null_too=True),
                          plug_and_play(c, attention_end=0.0, null_too=True)],
        "free prompt": [free_prompt(c), free_prompt(c, start=0.5), free_prompt(c, end=0.5), free_prompt(c, layers="d, u")],
        "mixing": [mixing(c), mixing(c, mix=green), mixing(c, start=0.5), mixing(c, end=0.5), mixing(c, **keep),
                   mixing(c, preserve_end=0.5, **keep), mixing(c, layers="u3", **keep),
                   mixing(c, **{**keep, "mask": half(c, "right")}), mixing(c, **by_word),
                   mixing(c, **{**by_word, "threshold": 0.7}), mixing(c, object="cat", **by_word),
                   mixing(c, **{**by_word, "preserve": "cat"}), mixing(c, **{**by_word, "refine": False})]}


@pytest.mark.parametrize("node", ["mutual", "plug and play", "free prompt", "mixing"])
def test_every_input_acts(node):
    """No two settings give one picture, and none gives the plain one. The start lies apart from the source's, where the null rows
    are the source's own."""
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
    "one mask": (lambda c: mutual(c, source_mask=half(c)), "in the source and not in the target.*target_mask"),
    "mask and words": (lambda c: mutual(c, source_words="cat", attention=store(c), source_mask=half(c)),
                       "both source_mask.*one of them"),
    "unknown word": (lambda c: mutual(c, source_words="dog", target_words="cat", attention=store(c)),
                     "names no word.*red, cat"),
    "empty mask": (lambda c: mutual(c, source_mask=0 * half(c), target_mask=half(c)), "no object of the source in 1 of 1 masks"),
    "all is the object": (lambda c: mixing(c, preserve="mat", object="mat", attention=store(c), inversion=c.inversion),
                          "no shape to preserve in 1 of 1"),
    "nothing of PnP": (lambda c: plug_and_play(c, 0.0, 0.0), "both 0.*0.8 and 0.5"),
    "features of down": (lambda c: plug_and_play(c, feature_layers="d0"), "'d0'.*up section"),
    "features of a layer": (lambda c: plug_and_play(c, feature_layers="u0.0"), "'u0.0'.*whole blocks"),
    "no such layer": (lambda c: free_prompt(c, layers="u7"), r"u7.*it has d0 \(1\)"),
    "FPE that ends first": (lambda c: free_prompt(c, 0.8, 0.8), "0.8 to 0.8.*0 and 0.8"),
    "mixing that ends first": (lambda c: mixing(c, start=0.5, end=0.4), "0.5 to 0.4.*0.14 and 0.34"),
    "two mixed prompts": (lambda c: mixing(c, mix=[*c.source, *c.source]), "2 entries.*Combine"),
    "inversion with nothing to preserve": (lambda c: mixing(c, inversion=c.inversion), "INVERSION or object.*no words or MASK"),
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
