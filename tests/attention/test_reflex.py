"""ReFlex against whole runs of the authors' code, explicit softmaxes and Flux's own blocks, and the level it reads."""
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.attention.alignment import PromptEdit, align
from palimpsest.attention.reflex import AdaptedAttention, own_layers
from palimpsest.editing.inverting import invert
from palimpsest.editing.layers import self_attention_layers
from palimpsest.editing.replay import replay
from palimpsest.editing.sites import Rows, Source
from palimpsest.host.branches import branches
from palimpsest.host.sampling import Solver, sample
from palimpsest.nodes.attention.reflex import PalimpsestMidStepFeatures
from palimpsest.showcase.rows import output

import joint
import joint_words
import tiny
from explicit import Call, Run, apply_maps, attention, features, softmax_maps
from joint_words import OVERRIDE, SOURCE, keys_of, of_picture, picture, recorded, shaped
from node_execution import executor  # noqa: F401
from runs import Case, kept, relative
from style_edits import SITE

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "reflex.json").read_text())
ROUNDED = 6e-6  # processors round up to 5e-6 apart
FLUX, TARGET = ("flux", "chroma", *["hunyuan video", "hunyuan image", "flux2"] * joint.TODAY), "a red big dog sits"
ALL = {"feature_end": 1.0, "self_end": 1.0, "cross_end": 1.0, "middle": 0.0}
MAPS = {**ALL, "feature_end": 0.0, "top_k": 6, "text_scale": 3.0}

mid_step = partial(output, PalimpsestMidStepFeatures)


def everywhere(model):
    return ", ".join(sorted({p.section for p in self_attention_layers(model.model.diffusion_model)}))


def prompt(text, guidance):
    (embedding, extra), = joint.worded("flux", text, columns=512)
    return [[embedding, {**extra, "guidance": guidance}]]


def tokens_of(conditioning):
    return conditioning[0][1]["palimpsest_tokens"][0]


@kept
def begun(steps=28, shape=(8, 8), seed=3):
    """A MODEL and the INVERSION of its picture under an empty prompt, as the authors' numbers were made."""
    model = tiny.flux(mlp_ratio=4.0, depth_single_blocks=3)
    latent = torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(seed))
    sigma_of = model.get_model_object("model_sampling").percent_to_sigma
    sigmas = torch.tensor([*(float(sigma_of(i / steps)) for i in range(steps)), 0.0])
    return model, invert("DDIM", model, prompt("", 0.0), {"samples": latent}, sigmas=sigmas).inversion


LAYERS = {"words": {"feature_layers": "d1, s0", "layers": "s1-2"},
          "no source prompt": {"feature_layers": "d0", "layers": "d1, s0-1"}}


def authors_run(picture, source, target, **settings):
    model, inversion = begun(*picture)
    inversion, target = replace(inversion, conditioning=prompt(source, 3.5)), prompt(target, 3.5)
    edit = {"prompt_edit": PromptEdit((align(inversion.tokens[0], tokens_of(target)),))} if source else {}
    edited = mid_step(model=model, inversion=inversion, top_k=6, **settings, **edit)
    _, solver, sigmas, latent = replay(edited, inversion)
    found = SamplerCustom.execute(edited, False, 0, 1.0, target, target, solver, sigmas, latent).result[0]["samples"]
    return model.model.process_latent_in(found)[0, 0]


@pytest.mark.parametrize("name, source, ends", [
    ("words", "a red cat sits", {}), ("no source prompt", "", {"feature_end": 0.23, "self_end": 0.41})])
def test_a_whole_run_gives_the_authors_numbers(name, source, ends):
    """28 steps with their constants, which are the defaults, but for the layers of a small network and k."""
    found = authors_run((), source, "a red dog sits", **LAYERS[name], **ends)[2:4, 2:6].flatten()
    torch.testing.assert_close(found, torch.tensor(AUTHORS[name]), rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("name, source, ends", [
    ("words", "a small red cat sits", (2.5, 3.5, 5.5)), ("no source prompt", "", (3.5, 6.5, 0))])
def test_a_wide_picture_in_other_steps_gives_the_authors_numbers(name, source, ends):
    """On 3 x 5 tokens, with words gone and words new. Each end lies between two steps."""
    settings = {key: end / 17 for key, end in zip(("feature_end", "self_end", "cross_end"), ends)}
    found = authors_run((17, (6, 10), 5), source, "a red dog sits still", middle=8 / 17, **LAYERS[name], **settings)
    torch.testing.assert_close(found[2:4, 3:7].flatten(), torch.tensor(AUTHORS[f"{name}, wide"]), rtol=0, atol=ROUNDED)


def test_its_layers_are_the_authors_on_flux_and_as_large_a_part_elsewhere():
    network = tiny.flux(depth=19, depth_single_blocks=38).model.diffusion_model
    found, maps = own_layers(network)
    assert found == {*(("double", i, 0) for i in range(13, 19)), ("single", 0, 0)}
    assert maps == {("single", i, 0) for i in range(1, 26)}
    for model in (begun()[0], *(Case(family).model for family in tiny.UNETS)):
        found, maps = own_layers(model.model.diffusion_model)
        assert found and maps and not found & maps


def adapted(own, theirs, top):
    """A*_II, from maps [..., picture's] of the target and the source, entry by entry."""
    made = theirs.clone()
    for mine, row in zip(own.flatten(0, -2), made.flatten(0, -2)):
        inside = row.argsort(descending=True)[:top - 1]
        row[inside] = row[inside].sum() * mine[inside] / mine[inside].sum()
    return made


def plainly(family, target, known, pair, top, scale):
    """One step in which the picture's rows have the maps that ReFlex gives them, by hand."""
    model, inversion, calls = joint_words.made(family).clone(), joint_words.inverted(family), iter(range(99))
    mine_tokens, total = tokens_of(target), known[0][0].shape[2]
    longer = len(mine_tokens.ids) - sum(len(t.ids) for t in inversion.tokens)

    def edit(func, q, k, v, heads, *args, **kwargs):
        split = shaped(q, k, v, heads, **kwargs)
        lengths = total, total + longer * (2 if family == "hidream" else 1)
        if split[0].shape[2] != split[1].shape[2] or split[0].shape[2] not in lengths:
            return func(q, k, v, heads, *args, **kwargs)
        q_s, k_s, _ = known[next(calls)]
        own, theirs = (of_picture(family, x.shape[2]) for x in (split[0], q_s))
        maps, maps_s = ((x @ y.transpose(-1, -2) * x.shape[-1] ** -0.5).softmax(-1)
                        for x, y in ((split[0], split[1]), (q_s, k_s)))
        edited = maps.clone()
        edited[:, :, own, own] = adapted(maps[:, :, own, own], maps_s[:, :, theirs, theirs], top)
        for j in range(len(mine_tokens.ids)):
            for n, key in enumerate(keys_of(family, mine_tokens, j)):
                edited[:, :, own, key] *= scale
                if pair and pair.kept[j]:
                    edited[:, :, own, key] = sum(
                        pair.mapper[i, j] * maps_s[:, :, theirs, keys_of(family, pair.source, i)[n]]
                        for i in pair.mapper[:, j].nonzero()[:, 0].tolist())
        return (edited @ split[2]).transpose(1, 2).flatten(2)

    model.model_options["transformer_options"][OVERRIDE] = edit
    found = sample(model, target, model.model.process_latent_out(inversion.path[0]), inversion.sigmas, Solver())
    assert next(calls) == len(known)
    return found


@pytest.mark.parametrize("worded", [True, False])
@pytest.mark.parametrize("family", [f for f in joint_words.WORDS if f not in ("wan", "sd35 medium")])
def test_the_pictures_rows_have_the_adapted_maps(family, worded):
    source, target = joint.worded(family, SOURCE), joint.worded(family, TARGET, seed=2)
    pair = align(*map(tokens_of, (source, target)), "refine") if worded else None
    edit = {"prompt_edit": PromptEdit((align(*map(tokens_of, (source, target))),))} if worded else {}
    model, inversion = joint_words.made(family), joint_words.inverted(family)
    with torch.inference_mode():
        put = mid_step(model=model, inversion=inversion, layers=everywhere(model), **MAPS, **edit)
        found, plain = (joint_words.sampled(m, inversion, target) for m in (put, model))
        wanted = plainly(family, target, recorded(family, source), pair, 6, 3.0)
    assert relative(found, wanted) < 2e-5 < 1e-4 < relative(found, plain)


@pytest.mark.parametrize("whole", [True, False])
def test_self_attention_of_a_unet_is_the_adapted_map(whole):
    (q, k, v), (q_s, k_s, _) = features(2, 0), features(2, 1)
    run = Run()
    run.within = lambda sigma, start, end: end == 1.0 or whole
    editor = AdaptedAttention(None, (), frozenset({SITE.address}), frozenset(), 1.0, 0.0, 5, 4.0)
    rows = Rows(Call(run), {"palimpsest_prompt": None}, 2)
    found = editor.attend(rows, SITE, q, k, v, Source(q=q_s, k=k_s), attention)
    theirs = softmax_maps(q_s, k_s)
    wanted = theirs if whole else adapted(softmax_maps(q, k), theirs, 5)
    assert (found - apply_maps(wanted, v)).abs().max() < 1e-6


@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 2.0), (torch.float16, 100.0)])
def test_half_precision_finds_the_same_largest_entries(dtype, size):
    """Where bf16 has no scores between those of the entries, and where fp16's are infinite."""
    run = Run()
    run.within = lambda sigma, start, end: end == 1.0
    q, k, v, q_s, k_s = (*features(1, 0, 256), *features(1, 1, 256)[:2])
    q, k, q_s, k_s = (size * x for x in (q, k, q_s, k_s))
    given = [x.to(dtype) for x in (q, k, v, q_s, k_s if size == 2 else q_s)]
    editor = AdaptedAttention(None, (), frozenset({SITE.address}), frozenset(), 1.0, 0.0, 20, 4.0)

    def attend(q, k, v, q_s, k_s):
        return editor.attend(Rows(Call(run), {"palimpsest_prompt": None}, 1), replace(SITE, grid=(16, 16)), q, k, v,
                             Source(q=q_s, k=k_s), lambda q, k, v: attention(*(x.double() for x in (q, k, v))).to(v))

    assert relative(attend(*given).double(), attend(*(x.double() for x in given))) < 5e-3


def added(family, model, run):
    """What each block adds last to the picture's tokens of each forward: [{number among all: tensor}] of run()."""
    network, seen, before = model.model.diffusion_model, [], {}
    cells = picture(family)[0]
    blocks = [*network.double_blocks, *network.single_blocks]

    def enter(i, module, inputs):
        before[i] = inputs[0][:, -cells:].clone()

    def leave(i, module, inputs, out):
        if i == 0:
            seen.append({})
        out = out[0] if isinstance(out, tuple) else out
        seen[-1][i] = out[:, -cells:] - before[i]

    hooks = []
    for i, block in enumerate(blocks):
        inner = getattr(block, "img_norm2", block)
        hooks += [inner.register_forward_pre_hook(partial(enter, i)), block.register_forward_hook(partial(leave, i))]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("family", FLUX)
def test_blocks_add_what_they_add_in_the_source(family):
    """In one double and one single block, and what other blocks add is their own."""
    model, inversion = joint_words.made(family), joint_words.inverted(family)
    target = joint.worded(family, TARGET, seed=2)
    put = mid_step(model=model, inversion=inversion, feature_layers="d1, s0", **{**ALL, "self_end": 0.0})
    chosen = sorted(at for at in branches(model.model.diffusion_model))
    assert chosen == sorted(p.address for p in self_attention_layers(model.model.diffusion_model))
    with torch.inference_mode():
        plain, = added(family, model, lambda: joint_words.sampled(model, inversion, target))
        alone, = added(family, model, lambda: joint_words.sampled(model, inversion, joint.worded(family, SOURCE)))
        # registered first, these hooks see what the network itself adds; what it is given next shows the edit
        source, own = added(family, model, lambda: joint_words.sampled(put, inversion, target))
    for i in plain:
        assert relative(source[i], alone[i]) < 1e-5
        assert (relative(own[i], plain[i]) < 1e-5) == (i < 2)
        assert relative(plain[i], alone[i]) > 1e-4


@pytest.mark.parametrize("family, references", [
    *((family, []) for family in FLUX), *[("flux", [torch.ones(1, 16, 6, 8)])] * joint.TODAY])
def test_what_they_add_goes_on_in_the_target(family, references):
    """A run whose branches are replaced by hand, by hooks that write the source's. A reference latent's tokens, which
    stand behind the picture's, keep what is added to them."""
    model, inversion = joint_words.made(family), joint_words.inverted(family)
    target, behind = joint.worded(family, TARGET, seed=2), 12 * len(references)
    target[0][1].update({"reference_latents": references} if references else {})
    own = slice(-picture(family)[0] - behind, -behind or None)
    put = mid_step(model=model, inversion=inversion, feature_layers="d1, s0", **{**ALL, "self_end": 0.0})
    with torch.inference_mode():
        alone, = added(family, model, lambda: joint_words.sampled(model, inversion, joint.worded(family, SOURCE)))
        found, plain = (joint_words.sampled(m, inversion, target) for m in (put, model))
        network, held, hooks = model.model.diffusion_model, {}, []

        def leave(i, block, inputs, out):
            whole = out[0] if isinstance(out, tuple) else out
            whole[:, own] = held.pop(i) + alone[i]

        for i, block in ((1, network.double_blocks[1]), (2, network.single_blocks[0])):
            inner = getattr(block, "img_norm2", block)
            hooks += [inner.register_forward_pre_hook(
                lambda module, inputs, i=i: held.update({i: inputs[0][:, own].clone()})),
                block.register_forward_hook(partial(leave, i))]
        try:
            wanted = joint_words.sampled(model, inversion, target)
        finally:
            for hook in hooks:
                hook.remove()
    assert relative(found, wanted) < 1e-5 < 1e-4 < relative(found, plain)


@pytest.mark.skipif(not joint.TODAY, reason="ComfyUI 0.3.64 has the order that this test pretends")
@pytest.mark.parametrize("settings", [{"self_end": 0.0}, {"feature_end": 0.0}])
def test_a_host_with_the_picture_before_the_words_is_refused(settings, monkeypatch):
    """By an edit of branches alone as by one of attention."""
    model, inversion = joint_words.made("hunyuan video"), joint_words.inverted("hunyuan video")
    put = mid_step(model=model, inversion=inversion, **{**ALL, **settings})
    monkeypatch.setattr(model.model.diffusion_model.double_blocks[0], "flipped_img_txt", True, raising=False)
    with pytest.raises(ValueError, match="picture before the words .* update ComfyUI to 0.30 or later"):
        joint_words.sampled(put, inversion, joint.worded("hunyuan video", TARGET))


def forwards(model, run):
    """[(rows, timestep, latent)] of the network's forwards in run()."""
    seen, network = [], model.model.diffusion_model
    hook = network.register_forward_pre_hook(lambda network, inputs: seen.append(
        (len(inputs[0]), float(inputs[1][0]), inputs[0][:1].clone())))
    try:
        run()
    finally:
        hook.remove()
    return seen


def test_the_source_is_read_once_in_the_middle_of_its_inversion():
    """For all steps before the middle, where no negative prompt is sampled; behind it at the target's own levels."""
    model, inversion = begun()
    inversion, target = replace(inversion, conditioning=prompt("a red cat sits", 3.5)), prompt("a red dog sits", 3.5)

    def sampled(put, cfg):
        _, solver, sigmas, latent = replay(put, inversion)
        return forwards(model, lambda: SamplerCustom.execute(put, False, 0, cfg, target, prompt("", 3.5), solver,
                                                             sigmas[:20], latent))

    levels = inversion.sigmas.tolist()
    found = sampled(mid_step(model=model, inversion=inversion, self_end=0.41), 1.0)
    assert [t for _, t, _ in found] == pytest.approx([levels[14], *levels[:19]])
    assert torch.equal(found[0][2], inversion.path[14])
    rows, *others = sampled(mid_step(model=model, inversion=inversion, self_end=0.6), 1.0)
    assert rows[0] == 3 and len(others) == 19  # steps 15 and 16 in the same forward
    # under the null prompt too, whose text Replay may change from step to step
    found = sampled(mid_step(model=model, inversion=inversion, self_end=0.41), 3.0)
    assert [rows for rows, t, _ in found if t == pytest.approx(levels[14])] == [2] * (12 + 1)


def test_levels_of_the_inversion_that_are_nearest_to_the_middle_are_read():
    model, _ = begun()
    sigma_of = model.get_model_object("model_sampling").percent_to_sigma
    for steps, level in ((torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0]), 0.7), (torch.tensor([0.8, 0.3, 0.0]), 0.8)):
        inversion = invert("DDIM", model, prompt("", 1.0), {"samples": tiny.latent(model)}, sigmas=steps).inversion
        put = mid_step(model=model, inversion=inversion, self_end=0.4)
        _, solver, sigmas, latent = replay(put, inversion)
        found = forwards(model, lambda: SamplerCustom.execute(put, False, 0, 1.0, prompt("", 1.0), prompt("", 1.0),
                                                              solver, sigmas, latent))
        assert found[0][1] == pytest.approx(level) and float(sigma_of(0.5)) == pytest.approx(0.7595, abs=1e-4)


def test_the_sources_own_prompt_at_its_own_level_changes_nothing():
    """Its words all have partners. Read in the middle it does change."""
    model, inversion = joint_words.made("flux"), joint_words.inverted("flux")
    source = joint.worded("flux", SOURCE)
    edit = PromptEdit((align(tokens_of(source), tokens_of(source)),))
    put = mid_step(model=model, inversion=inversion, layers="d, s", feature_layers="d, s", prompt_edit=edit, **ALL)
    found, plain = (joint_words.sampled(m, inversion, source) for m in (put, model))
    assert relative(found, plain) < 1e-5


def test_null_rows_take_the_sources_picture_under_the_null_prompt_and_keep_their_words():
    """Where the null prompt is the source's own, its prediction stays what it is, and without null_too too."""
    model, inversion = joint_words.made("flux"), joint_words.inverted("flux")
    source, target = joint.worded("flux", SOURCE), joint.worded("flux", TARGET, seed=2)

    def sampled(null_too, negative, cfg):
        put = mid_step(model=model, inversion=inversion, layers="d, s", null_too=null_too, **MAPS)
        return SamplerCustom.execute(put, False, 0, cfg, target, negative, Solver(), inversion.sigmas, {
            "samples": model.model.process_latent_out(1.1 * inversion.path[0])}).result[0]["samples"]

    null = {too: sampled(too, source, 0.0) for too in (True, False)}
    plain = SamplerCustom.execute(model, False, 0, 1.0, source, source, Solver(), inversion.sigmas, {
        "samples": model.model.process_latent_out(1.1 * inversion.path[0])}).result[0]["samples"]
    assert relative(null[False], plain) < 1e-5 < 1e-4 < relative(null[True], plain)


def test_what_cannot_work_is_refused():
    model, inversion = begun()
    inversion = replace(inversion, conditioning=prompt("a red cat sits", 3.5))
    put = partial(mid_step, model=model, inversion=inversion)
    with pytest.raises(ValueError, match="ends at 0, 0 and 0.34 would change nothing .* raise self_end"):
        put(feature_end=0.0, self_end=0.0)
    with pytest.raises(ValueError, match='"m0" names a layer that this MODEL does not have'):
        put(layers="m0")
    case = Case("sd15")
    with pytest.raises(ValueError, match="2 of these blocks of UNetModel are not Flux's.* set feature_end to 0"):
        mid_step(model=case.model, inversion=case.inversion, feature_layers="d0-1")
    cat, dog, hen = (prompt(f"a red {name} sits", 3.5) for name in ("cat", "dog", "hen"))
    edit = PromptEdit((align(*map(tokens_of, (cat, dog))),))
    edited = put(prompt_edit=edit)
    with pytest.raises(ValueError, match="edits towards 'a red dog sits', .* connect Prompt Edit's target"):
        SamplerCustom.execute(edited, False, 0, 1.0, hen, hen, Solver(), inversion.sigmas, {
            "samples": model.model.process_latent_out(inversion.path[0])})
    (both, extra), = joint.worded("flux", "a red dog sits", "a red hen sits", columns=512)
    two = PromptEdit(tuple(align(tokens_of(cat), tokens_of(target)) for target in (dog, hen)))
    with pytest.raises(ValueError, match="has 2 target prompts, the latent being sampled 3 rows"):
        SamplerCustom.execute(put(prompt_edit=two), False, 0, 1.0, [[both, extra]], hen, Solver(), inversion.sigmas, {
            "samples": model.model.process_latent_out(torch.cat([inversion.path[0]] * 3))})
    with pytest.raises(ValueError, match="connect the same Prompt Edit to both"):
        put(prompt_edit=PromptEdit((align(*map(tokens_of, (dog, hen))),)))


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_negative_prompt_of_ranges_is_read_in_the_middle_too(family):
    """As ComfyUI's own workflows for SD3 have one. The middle's level is in no range but one."""
    case = Case(family, steps=6)
    edited = mid_step(model=case.model, inversion=case.inversion, **ALL | {"middle": 0.5}, null_too=True)
    (text, extra), = case.null
    half = [[text, {**extra, "start_percent": 0.0, "end_percent": 0.4}],
            [text.clone(), {**extra, "start_percent": 0.4, "end_percent": 1.0}]]
    whole, parts = (case.sample(edited, cfg=4.0, negative=negative) for negative in (case.null, half))
    assert relative(parts, whole) < 1e-6 < relative(case.sample(case.model, cfg=4.0), whole)
