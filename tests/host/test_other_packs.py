"""Every editor with other packs' patches and with a ControlNet."""
from collections import Counter, defaultdict
from functools import cache

import comfy.cldm.cldm
import comfy.controlnet
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from palimpsest.host.keys import RUN
from palimpsest.host.unet import host_attention, resolutions
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.p2p import PalimpsestAttentionInject
from palimpsest.nodes.blending.noise_mask import PalimpsestNoiseMask
from palimpsest.nodes.guidance.ledits import PalimpsestLEDITS
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance
from palimpsest.nodes.inversion.negative_prompt import PalimpsestNegativePromptInvert
from palimpsest.nodes.inversion.replay import PalimpsestReplay

import nodes as host
import tiny
from control_nets import control_net, hint, plainly
from editors import EDITORS, GUIDED, NULL_TOO, READS, each_with
from recording import Flow
from runs import Case, relative
from watching import acts, assert_close, case, differ, each_family, limit, near, of, predictions, watch, watched


def lora(model):
    """A LoRA of rank 2 on every attention key."""
    generator, patched = torch.Generator().manual_seed(8), model.clone()
    weights = {}
    for name, p in model.model.named_parameters():
        if name.endswith("to_k.weight"):
            up, down = (torch.randn(size, generator=generator) for size in ((p.shape[0], 2), (2, p.shape[1])))
            weights[name] = ("diff", (up @ down * p.shape[1] ** -0.5,))
    assert len(patched.add_patches(weights)) == len(weights) > 4
    return patched


def pag(model):
    return PerturbedAttentionGuidance.execute(model, 3.0).result[0]


def everywhere_perturbed(model):
    """PAG of sd-perturbed-attention, which can act at any layers, here at all."""
    def after_cfg(args):
        options = args["model_options"].copy()
        for position in resolutions(args["model"].diffusion_model):
            options = set_model_options_patch_replace(options, lambda q, k, v, o: v, "attn1", *position)
        pag, = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + 3 * (args["cond_denoised"] - pag)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(after_cfg)
    return model


@pytest.mark.parametrize("editor", ["mutual", "mutual by words", "cross image", "free prompt", "composite"])
def test_where_self_attention_is_perturbed_every_token_keeps_its_own_value(editor):
    """PAG does not act on the source. The perturbed prediction, the last of a step, equals the unedited one."""
    c, perturbed = case("sd15"), defaultdict(list)
    for model in (EDITORS[editor](c), c.model):
        for k in of(predictions(c, everywhere_perturbed(model)), "positive"):
            perturbed[k.sigma, model is c.model].append(k.x0)
    for sigma in c.sigmas[:-1].tolist():
        if acts(editor, c, sigma):
            (first, *_, last), (unedited, wanted) = perturbed[sigma, False], perturbed[sigma, True]
            assert_close(last, wanted)
            assert differ(first, last) and differ(unedited, wanted)


def free_u(model):
    return FreeU.execute(model, 1.1, 1.2, 0.9, 0.2).result[0]


def hyper_tile(model):
    return HyperTile.execute(model, 32, 1, 1, False)[0]


@cache
def with_other(other, family, size):
    """The end of a run with another pack's patch alone."""
    c = case(family, size=size)
    return c.sample(other(c.model))


@each_with("other", [pag, free_u, hyper_tile, lora], 0, some=2)
def test_another_packs_patch_acts_before_and_after_the_editor_alike(editor, family, other):
    """With tiles of 4 × 4 cells where HyperTile cuts, also on grids where self-attention is edited."""
    size = 16 if other is hyper_tile else 8
    c = case(family, size=size)
    before, after = EDITORS[editor](c, other(c.model)), other(EDITORS[editor](c))
    found, chunks = watch(c, before)
    assert torch.equal(found, watch(c, after)[0])
    assert differ(found, watched(editor, family, size)[0]) and differ(found, with_other(other, family, size))
    read = Counter(k.sigma for k in of(chunks, "reference"))
    assert all(n == (2 if editor in NULL_TOO else 1) for n in read.values()) and bool(read) == (editor in READS)


@pytest.mark.parametrize("prompts", ["plain", "target long"])
@each_family
def test_tiles_are_the_same_however_the_host_batches(family, prompts, split):
    """HyperTile gives q more rows than k and v have, so rows are found in each tensor separately."""
    c = case(family, prompts, size=16)
    model, starts = hyper_tile(EDITORS["swap"](c)), near(c, 2)
    together = c.sample(model, latent=starts)
    split(c)
    assert_close(c.sample(model, latent=starts), together)


def everywhere(c):
    """Attention Inject at every grid, also at the latent's own, where the host's nodes cut and merge tokens."""
    return PalimpsestAttentionInject.execute(c.model, c.inversion, c.edit, 0.0, 0.8, 0.0, 0.5, 1.0, 1.0, "",
                                             "").result[0]


def test_tiles_cut_at_random_are_refused():
    """HyperTile draws tiles anew at every call, so the source's tiles are not the target's."""
    c = case("sd15", size=16)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"tiles of \d+ tokens, the target's of \d+.*swap_size"):
        c.sample(HyperTile.execute(everywhere(c), 32, 3, 0, False)[0])


def test_tiles_of_an_area_are_refused():
    """The source is read whole, so its tiles are not the area's."""
    c = case("sd15", size=16)
    area = host.ConditioningSetArea().append(c.target, 64, 64, 0, 0, 1.0)[0]
    with pytest.raises(ValueError, match=r"tiles of \d+ tokens, the target has an area of 8 x 8 of its 16 x 16"):
        c.sample(hyper_tile(everywhere(c)), area)


def test_merged_tokens_are_refused():
    """Token Merging joins the source's tokens by their likeness in the source, but would split them
    by the target's likeness."""
    c = case("sd15", size=16)
    with pytest.raises(ValueError, match=r"\d+ queries for \d+ grids of 16 x 16 tokens.*Token Merging"):
        c.sample(TomePatchModel.execute(everywhere(c), 0.5).result[0])


@pytest.mark.parametrize("editor", ["swap", "excite", "pull", "guide", "remove", "ledits", "noise map"])
def test_easy_cache_skips_steps_of_the_target_alone(editor):
    """Before or after editors that read the source, look at words or move the latent by a gradient."""
    c, put = Case("sd15", steps=8), {**EDITORS, **GUIDED}[editor]

    def cached(model):
        return EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).result[0]

    for edited in (put(c, cached(c.model)), cached(put(c))):
        found = c.sample(edited)
        assert found.isfinite().all() and relative(found, c.sample(put(c))) > 1e-3


def test_a_cache_of_another_pack_that_skips_the_sources_forward_is_refused():
    """As TeaCache does, by rules of its own."""
    def skip(executor, x, *args, **kwargs):
        return torch.zeros_like(x) if args[4][RUN].reference.reading else executor(x, *args, **kwargs)

    c = case("sd15")
    model = EDITORS["swap"](c)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache", skip)
    with pytest.raises(ValueError, match="another node skipped the forward.*remove that node"):
        c.sample(model)


def stronger(q, k, v, options):
    return 1.5 * host_attention(q, k, v, options)


@cache
def patched_alone(family, slot, *depth):
    """The end of a run with another pack's attention alone."""
    c = case(family)
    model = c.model.clone()
    model.set_model_patch_replace(stronger, slot, "middle", 0, *depth)
    return c.sample(model)


@each_with("place", [("attn1",), ("attn2", 0), ("attn2",), ("attn1", 0)], 1, some=2)
def test_another_packs_attention_is_called_wherever_the_hosts_would_be(editor, family, place):
    """Under the host's two kinds of key, before or after the editor, for target, null prompt and source."""
    c, seen, (slot, *depth) = case(family), defaultdict(set), place

    def patch(q, k, v, options):
        for uuid in options["uuids"]:
            seen[uuid].add(float(options["sigmas"][0]))
        return stronger(q, k, v, options)

    def patched(model, function=patch):
        model = model.clone()
        model.set_model_patch_replace(function, slot, "middle", 0, *depth)
        return model

    before, after = EDITORS[editor](c, patched(c.model)), patched(EDITORS[editor](c))
    found, chunks = watch(c, before)
    wanted = [sorted({k.sigma for k in of(chunks, role)}) for role in {k.role for k in chunks}]
    assert sorted(map(sorted, seen.values())) == sorted(wanted)
    assert torch.equal(found, watch(c, after)[0])
    edited, _ = watched(editor, family)
    assert differ(found, edited) and differ(found, patched_alone(family, slot, *depth))
    assert torch.equal(watch(c, patched(EDITORS[editor](c), host_attention))[0], edited)


def test_of_two_patches_at_one_place_the_hosts_choice_is_called():
    """The key with a depth overrides the key without one."""
    c, called = case("sdxl"), []

    def patch(name):
        def function(q, k, v, options):
            called.append((name, options["block_index"]))
            return host_attention(q, k, v, options)
        return function

    model = EDITORS["swap"](c)
    model.set_model_attn1_replace(patch("all"), "middle", 0)
    model.set_model_attn1_replace(patch("first"), "middle", 0, 0)
    c.sample(model)
    assert set(called) == {("first", 0), ("all", 1)}


def advanced(case, positive=None):
    """As with Apply ControlNet (Advanced), on the target only and for a part of the schedule."""
    return host.ControlNetApplyAdvanced().apply_controlnet(
        positive or case.target, case.null, control_net(case.family), hint(case), 0.7, 0.2, 0.6)[0], case.null


def on_both(case, negative):
    """From Apply ControlNet (Advanced), on both prompts."""
    return host.ControlNetApplyAdvanced().apply_controlnet(case.target, negative, control_net(case.family),
                                                           hint(case), 0.7, 0.2, 0.6)


def of_two(case, negative):
    """Two ControlNets on targets that are combined. The host makes a null prompt under each."""
    return host.ConditioningCombine().combine(plainly(case)[0], plainly(case, strength=-0.4)[0])[0], negative


def for_a_while(case, negative):
    """A null prompt of two entries. Only the second has the ControlNet."""
    ranged = host.ConditioningSetTimestepRange()
    positive, controlled = host.ControlNetApplyAdvanced().apply_controlnet(
        case.target, negative, control_net(case.family), hint(case), 0.7, 0.0, 1.0)
    return positive, [*ranged.set_range(negative, 0.0, 0.5)[0], *ranged.set_range(controlled, 0.5, 1.0)[0]]


@cache
def controlled(family, apply):
    """The end of a run with a ControlNet alone."""
    c = case(family)
    positive, negative = apply(c)
    return c.sample(positive=positive, negative=negative)


@each_with("apply", [advanced, plainly], 2, some=1)
def test_a_control_net_on_the_target_never_meets_the_source(editor, family, apply, split):
    """Remove reads the source under the null prompt too, and meets the one that the host puts on both prompts."""
    c = case(family)
    model, (positive, negative) = EDITORS[editor](c), apply(c)
    found, chunks = watch(c, model, positive=positive, negative=negative)
    free, unguided = watched(editor, family)
    percents = (0.2, 0.6) if apply is advanced else (0.0, 1.0)
    wanted = {k.role for k in chunks if k.role != "reference" and (k.role == "positive" or apply is plainly)}
    # their own rows are compared with the target's, or mixed with it
    if editor in ("noise mask", "sine", "reward", "uni edit"):
        wanted |= {k.role for k in chunks if k.role.startswith("added")}
    for k in chunks:
        assert k.controlled == (k.role in wanted and limit(c, percents[0]) >= k.sigma >= limit(c, percents[1]))
    assert {k.controlled for k in of(chunks, "positive")} == ({True} if apply is plainly else {True, False})
    for a, b in zip(of(chunks, "reference"), of(unguided, "reference"), strict=True):
        assert torch.equal(a.x0, b.x0)
    assert differ(found, free) and differ(found, controlled(family, apply))
    split(c)
    assert_close(c.sample(model, positive, negative=negative), found)


def sega(case, negative):
    return PalimpsestSEGAGuidance.execute(case.model, negative, "add", 5.0, 0.0, 1.0, 0.9, 1.0, 0.1, 0.4).result[0]


def ledits(case, negative):
    return PalimpsestLEDITS.execute(case.model, case.clip, "a hat", "add", 5.0, 0.0, 1.0, 0.7).result[0]


@pytest.mark.parametrize("apply", [plainly, on_both, of_two, for_a_while])
@pytest.mark.parametrize("guidance, family", [(sega, "sd15"), (ledits, "sdxl")])
def test_a_control_net_is_no_part_of_a_concept(guidance, family, apply):
    """The negative itself as the concept changes nothing, whichever ControlNets the negative has."""
    c = case(family)
    negative = tiny.encode(c.clip, "a hat")
    positive, negative = apply(c, negative=negative)
    plain = c.sample(positive=positive, negative=negative)
    assert relative(c.sample(guidance(c, tiny.encode(c.clip, "a hat")), positive, negative=negative), plain) < 1.2e-5
    assert differ(plain, c.sample(negative=tiny.encode(c.clip, "a hat")))


@pytest.mark.parametrize("apply", [plainly, advanced])
@pytest.mark.parametrize("against", ["source", "null"])
def test_a_control_net_is_no_part_of_what_the_noise_mask_compares(against, apply):
    """The target is the other prompt under a ControlNet, so it differs nowhere, and the source comes back."""
    c = case("sd15")
    model = PalimpsestNoiseMask.execute(c.model, c.inversion, against, 0.0, 1.0, 0.5).result[0]
    positive, negative = apply(c, c.source if against == "source" else c.null)
    found, chunks = watch(c, model, positive=positive, negative=negative)
    assert_close(found, c.latent)
    # the host's own null prompt is compared if it is controlled alike
    needed = against == "source" or apply is advanced
    assert len(of(chunks, "added 2")) == needed * len(of(chunks, "positive"))


@torch.inference_mode()
def test_the_noise_mask_compares_with_the_learned_null_prompt_in_either_order():
    """Only the target has a ControlNet, so the null prompt is predicted once more under it."""
    c = case("sd15")
    learned = PalimpsestNegativePromptInvert.execute(c.model, c.source, {"samples": c.latent}, 6, "ddim_uniform",
                                                     0.0).result[0]
    steps = (lambda model: PalimpsestReplay.execute(model, learned, 0.0).result[0],
             lambda model: PalimpsestNoiseMask.execute(model, learned, "null", 0.0, 1.0, 0.5).result[0])
    positive, negative = advanced(c)
    found = [c.sample(second(first(c.model)), positive, negative=negative) for first, second in (steps, steps[::-1])]
    assert torch.equal(*found)


def test_a_compiled_transformer_has_no_editor_of_attention():
    """Blends stay, and U-Nets, which tell a block by the host's own slots."""
    c, model = Flow("flux"), tiny.flux()
    model.model_options[TORCH_COMPILE_KWARGS] = {}  # as TorchCompileModel leaves it
    edited = PalimpsestMutualSelfAttention.execute(model, c.inversion, 0.0, 1.0, "", "", "", 0.1, True).result[0]
    with pytest.raises(ValueError, match=r"The Flux of this MODEL is compiled.*editors on it \(1\).*remove Torch"):
        c.sample(edited)
    c.sample(PalimpsestNoiseMask.execute(model, c.inversion, "source", 0.2, 1.0, 0.5).result[0])
    c = case("sd15")
    unet = c.model.clone()
    unet.model_options[TORCH_COMPILE_KWARGS] = {}
    c.sample(PalimpsestMutualSelfAttention.execute(unet, c.inversion, 0.0, 1.0, "", "", "", 0.1, True).result[0])
