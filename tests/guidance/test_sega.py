"""SEGA against diffusers' pipeline, against the paper's equations, and on the real host."""
from collections import Counter

import comfy.hooks
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import BasicGuider
from comfy_extras.nodes_hooks import SetClipHooks
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from diffusers import DDIMScheduler, SemanticStableDiffusionPipeline
from palimpsest.bench import twin
from palimpsest.editing.editor import editor_of, editors
from palimpsest.guidance.sega import SEGA, largest, read_regions
from palimpsest.host.sampling import Solver
from palimpsest.nodes.attention.prompt_mixing import PalimpsestPromptMixing
from palimpsest.nodes.guidance.sega import PalimpsestSEGAGuidance, PalimpsestSEGARegions

import nodes as host
import tiny
from flows import FRAMES, starts, velocity
from recording import Flow
from runs import Case, invert, kept, relative

STEPS = 5


@kept
def case(family="sd15", targets=("a blue cat on a mat",), **kwargs):
    return Case(family, targets=targets, steps=STEPS, **kwargs)


@kept
def concept(text, family="sd15"):
    with torch.inference_mode():
        return tiny.encode(case(family).clip, text)


def sega(model, prompt, direction="add", scale=5.0, warmup=0.2, cooldown=1.0, threshold=0.9, weight=1.0, momentum=0.1,
         beta=0.4):
    return PalimpsestSEGAGuidance.execute(model, prompt, direction, scale, warmup, cooldown, threshold, weight,
                                          momentum,
                                          beta).result[0]


def diffusers_latents(c, model, z, concepts, momentum, beta, cfg, steps, prediction):
    """The result of diffusers' pipeline from z and dicts of the node's arguments, each with one concept prompt."""
    texts = {"": c.null, "target": c.target, **{k["text"]: concept(k["text"]) for k in concepts}}
    prompts = twin.Prompts({text: conditioning[0][0] for text, conditioning in texts.items()})
    pipeline = SemanticStableDiffusionPipeline(
        vae=None, text_encoder=prompts, tokenizer=prompts, unet=twin.unet(model), safety_checker=None,
        feature_extractor=None,
        scheduler=DDIMScheduler(**twin.SCHEDULE, clip_sample=False, set_alpha_to_one=True, prediction_type=prediction),
        requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def each(name, default):
        return [k.get(name, default) for k in concepts]

    return pipeline(
        "target", 64, 64, steps, cfg, latents=z, output_type="latent", editing_prompt=each("text", None),
        reverse_editing_direction=[d == "remove" for d in each("direction", "add")],
        edit_guidance_scale=each("scale", 5.0),
        edit_warmup_steps=[round(w * steps) for w in each("warmup", 0.2)], edit_threshold=each("threshold", 0.9),
        edit_cooldown_steps=[round(w * steps) for w in each("cooldown", 1.0)], edit_weights=each("weight", 1.0),
        edit_momentum_scale=momentum, edit_mom_beta=beta).images


HAT, MOON, FUR = ({"text": text} for text in ("a hat", "the full moon at night", "fur"))
CONCEPTS = {
    "the paper's settings": ([HAT], 0.1, 0.4),
    "added and removed, of unequal warm-ups": ([HAT,
                                                {**MOON, "direction": "remove", "warmup": 0.5, "threshold": 0.8}],
                                               0.3, 0.6),
    "three with weights and cool-downs": ([{**HAT, "weight": 0.4, "cooldown": 0.6},
                                           {**MOON, "weight": 1.5, "scale": 8.0},
                                           {**FUR, "direction": "remove", "cooldown": 0.8}], 0.3, 0.6),
    "all cooled down": ([{**HAT, "cooldown": 0.5}], 0.6, 0.5),
    "no momentum, no warm-up": ([{**HAT, "warmup": 0.0}, {**FUR, "warmup": 0.0}], 0.0, 0.0)}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", CONCEPTS)
@torch.inference_mode()
def test_equals_diffusers_pipeline(name, prediction):
    c, (concepts, momentum, beta) = case(), CONCEPTS[name]
    model = tiny.sd15(output=0.6)
    if prediction == "v_prediction":
        model, = ModelSamplingDiscrete().patch(model, prediction, zsnr=False)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", 10)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    edited = model
    for k in concepts:
        edited = sega(edited, concept(k["text"]), momentum=momentum, beta=beta,
                      **{n: v for n, v in k.items() if n != "text"})
    start = model.model.process_latent_out(z * (1 + sigmas[0] ** 2).sqrt())
    ours, plain = (model.model.process_latent_in(c.sample(m, cfg=7.5, latent=start, sigmas=sigmas))
                   for m in (edited, model))
    theirs = diffusers_latents(c, model, z, concepts, momentum, beta, 7.5, 10, prediction)
    assert relative(plain, theirs) > 0.02  # the guidance matters
    assert relative(ours, theirs) < 1e-3, relative(ours, theirs)


def test_a_region_is_the_largest_share_of_each_channel():
    psi = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    mask = largest(psi, 0.9)
    assert torch.equal(mask.sum((2, 3)), torch.full((2, 3), 10.0))
    assert (psi.abs()[mask.bool()].view(2, 3, 10).amin(2) > (psi.abs() * (1 - mask)).amax((2, 3))).all()
    assert largest(psi, 0.0).all() and largest(psi[:, :, None], 0.9).shape == (2, 3, 1, 10, 10)


def watched(model):
    """(a clone of the MODEL, [rows of every forward])."""
    rows, m = [], model.clone()
    m.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count",
                           lambda executor, x, *args, **kwargs: rows.append(len(x)) or executor(x, *args, **kwargs))
    return m, rows


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("cfg, others", [(7.5, 2), (1.0, 2)])
def test_n_concepts_cost_n_rows_of_the_hosts_one_forward(n, cfg, others):
    """At CFG 1 the prediction without a concept is one more row."""
    c = case()
    model, rows = watched(c.model)
    for text in ("a hat", "a bow", "a collar")[:n]:
        model = sega(model, concept(text))
    c.sample(model, cfg=cfg)
    assert rows == [others + n] * STEPS
    model, rows = watched(sega(c.model, concept("a hat"), warmup=0.5, cooldown=0.9, momentum=0.0))
    c.sample(model, cfg=cfg)
    assert Counter(rows) == {3: 2, others if cfg > 1 else 1: 3}


def test_another_packs_call_of_the_model_costs_no_more_rows():
    c = case()
    model, rows = watched(PerturbedAttentionGuidance.execute(sega(c.model, concept("a hat")), 3.0).result[0])
    c.sample(model)
    assert Counter(rows) == {3: STEPS, 1: STEPS}


def test_concepts_chain_in_any_order_and_are_not_alone():
    c = case()
    hat, fur = concept("a hat"), concept("fur")
    both, swapped = sega(sega(c.model, hat), fur, "remove"), sega(sega(c.model, fur, "remove"), hat)
    assert len(editors(both)) == len(editors(swapped)) == 1 and editors(c.model) == ()
    found = c.sample(both)
    assert relative(c.sample(swapped), found) < 1e-5
    assert min(relative(c.sample(m), found) for m in (sega(c.model, hat), sega(c.model, fur, "remove"), c.model)) > 1e-3


def lora(model):
    """The weights of a LoRA on every cross-attention's values."""
    generator, found = torch.Generator().manual_seed(6), {}
    for name, weight in model.model.state_dict().items():
        if name.endswith("attn2.to_v.weight"):
            for part, shape in (("up", (len(weight), 2)), ("down", (2, weight.shape[1]))):
                found[name.replace("weight", f"lora_{part}.weight")] = 0.2 * torch.randn(shape, generator=generator)
    return found


def test_hooks_of_the_sampled_prompts_act_on_a_concept_too():
    """A LoRA on the MODEL acts on every prompt."""
    c, hat, weights = case(), concept("a hat"), lora(case().model)
    loaded, _ = comfy.sd.load_lora_for_models(c.model, None, weights, 1.0, 0.0)
    wanted = c.sample(sega(loaded, hat))
    hooks = comfy.hooks.create_hook_lora(weights, 1.0, 0.0)
    target, null, hooked = (comfy.hooks.set_hooks_for_conditioning(p, hooks) for p in (c.target, c.null, hat))
    assert relative(c.sample(sega(c.model, hooked), target, negative=null), wanted) < 1e-5
    assert relative(c.sample(sega(c.model, hat), target, negative=null), wanted) > 1e-3


def test_hooks_of_weights_act_on_a_concept_alone():
    """Of a CONDITIONING, and of a CLIP that gives them to everything that it encodes. The weights come back."""
    c, hooks = case(), comfy.hooks.create_hook_lora(lora(case().model), 1.0, 0.0)
    plain, hooked = concept("a hat"), comfy.hooks.set_hooks_for_conditioning(concept("a hat"), hooks)
    clip, = SetClipHooks().apply_hooks(c.clip, False, True, hooks)
    before = c.sample()
    found = c.sample(sega(c.model, hooked))
    assert torch.equal(c.sample(sega(c.model, tiny.encode(clip, "a hat"))), found)
    assert relative(c.sample(sega(c.model, plain)), found) > 1e-3
    assert torch.equal(c.sample(), before) and not c.model.hook_patches


def test_hooks_that_the_host_would_pass_over_are_refused():
    c, hooks = case(), comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.TransformerOptionsHook({}, comfy.hooks.EnumHookScope.HookedOnly))
    hat = comfy.hooks.set_hooks_for_conditioning(concept("a hat"), hooks)
    model, rows = watched(c.model)
    with pytest.raises(ValueError, match=r"own prompt carries hooks \(TransformerOptionsHook\).*take them off"):
        c.sample(sega(model, hat), c.source)
    assert not rows
    with pytest.raises(ValueError, match="Prompt Mixing's mix carries 'hooks'.*Cond Set Props"):
        PalimpsestPromptMixing.execute(model, hat, 0.0, 1.0, "", "", 0.3, 0.8, "")
    with pytest.raises(ValueError, match="Prompt Mixing's mix carries 'area'.*Set.Area"):
        PalimpsestPromptMixing.execute(model, host.ConditioningSetArea().append(c.target, 32, 32, 0, 0, 1.0)[0], 0.0,
                                       1.0, "", "", 0.3, 0.8, "")


def test_the_null_prompt_as_concept_changes_nothing():
    c = case()
    assert relative(c.sample(sega(c.model, c.null)), c.sample()) < 1e-5


def test_removing_is_adding_the_opposite():
    """One model evaluation after the warm-up: x0 moves by -σ·γ."""
    c = case()
    plain, added, removed = (c.predictions(m, c.target)[-1] for m in (
        c.model, *(sega(c.model, concept("a hat"), d, momentum=0.0) for d in ("add", "remove"))))
    assert relative(added - plain, plain - removed) < 1e-4 and relative(added, plain) > 1e-5


def test_while_some_warm_up_a_concepts_weight_is_its_own():
    """diffusers divides the weight by the sum of the weights of the concepts that are past their warm-up."""
    c = case()

    def moved(weight, later):
        model = sega(c.model, concept("a hat"), weight=weight, warmup=0.0)
        model = sega(model, concept("fur"), warmup=0.9) if later else model
        return c.predictions(model, c.target)[0] - c.predictions(c.model, c.target)[0]

    assert relative(moved(0.3, True), 0.3 * moved(1.0, False)) < 1e-4


def test_a_level_asked_twice_is_one_step_of_the_momentum():
    c = case()
    model = sega(c.model, concept("a hat"), warmup=0.0, momentum=0.9, beta=0.0)

    def walk(repeats):
        def solver(denoise, x, sigmas, extra_args, callback, disable):
            for sigma in sigmas[:-1]:
                for _ in range(repeats):
                    x0 = denoise(x, sigma.expand(len(x)), **extra_args)
            return x0
        return solver

    once, twice = (c.sample(model, sampler=Solver(walk(n))) for n in (1, 2))
    assert torch.equal(once, twice)
    calm = sega(c.model, concept("a hat"), warmup=0.0, momentum=0.0)
    assert relative(c.sample(calm, sampler=Solver(walk(1))), once) > 1e-4


@pytest.mark.parametrize("family", [*tiny.UNETS, *tiny.FLOWS])
def test_every_family_is_guided_without_an_inversion(family):
    make = {**tiny.UNETS, **tiny.FLOWS}[family]
    model, latent = make(), tiny.latent(make())
    c = case()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    with torch.inference_mode():
        edited = sega(model, tiny.cond(seed=5))
        ours, plain = (c.sample(m, tiny.cond(), 4.0, latent=latent, sigmas=sigmas, negative=tiny.cond(seed=2))
                       for m in (edited, model))
    assert ours.isfinite().all() and relative(ours, plain) > 1e-3


@torch.inference_mode()
def test_regions_show_where_each_concept_acts():
    """A region's mean is the share of the latent that the threshold keeps. A concept that never acts has none."""
    c = case(size=16)
    model = sega(sega(c.model, concept("a hat")), concept("fur"), threshold=0.5)
    mask = PalimpsestSEGARegions.execute(model, c.inversion, c.null, torch.rand(1, 128, 128, 3)).result[0]
    assert mask.shape == (2, 128, 128)
    assert [float(m.mean()) for m in mask] == pytest.approx([0.1, 0.5], abs=0.01)
    cropped = PalimpsestSEGARegions.execute(model, c.inversion, c.null, torch.rand(1, 133, 130, 3)).result[0]
    assert cropped.shape == (2, 133, 130) and torch.equal(cropped[:, 2:130, 1:129], mask)  # cropped as VAE Encode crops
    with pytest.raises(ValueError, match="this MODEL has none: connect SEGA Guidance"):
        PalimpsestSEGARegions.execute(c.model, c.inversion, c.null, torch.rand(1, 128, 128, 3))


def test_what_cannot_work_is_said_before_the_first_model_call():
    c, hat = case(), concept("a hat")
    with pytest.raises(ValueError, match="0.1 with beta 0.4, this one 0.3 with 0.6"):
        sega(sega(c.model, hat), concept("fur"), momentum=0.3, beta=0.6)
    with pytest.raises(ValueError, match="until 0.6 and cools down from 0.5"):
        sega(c.model, hat, warmup=0.6, cooldown=0.5)
    for nothing in ({"scale": 0.0}, {"weight": 0.0}):
        with pytest.raises(ValueError, match="at scale 0 would change nothing"):
            sega(c.model, hat, **nothing)
    with pytest.raises(ValueError, match="concept carries 'area'.*Set.Area"):
        sega(c.model, host.ConditioningSetArea().append(hat, 32, 32, 0, 0, 1.0)[0])
    model, rows = watched(sega(c.model, hat))
    with pytest.raises(ValueError, match=r"no negative \(it has positive\)"):
        c.sample(guider=BasicGuider.execute(model, c.target).result[0])
    assert not rows


@pytest.mark.parametrize("name", ["flux", "sd3"])
@torch.inference_mode()
def test_a_run_on_a_flow_model_is_the_papers_equations_with_velocities(name):
    """Two concepts of unequal warm-ups, one of them removed, with momentum, on the network itself."""
    c, cfg, momentum, beta = Flow(name), 4.0, 0.3, 0.6
    concepts = [(tiny.cond(seed=5), 5.0, 0.2, 0.9), (tiny.cond(seed=6), -5.0, 0.5, 0.8)]
    model = c.model
    for prompt, scale, warmup, threshold in concepts:
        model = sega(model, prompt, "add" if scale > 0 else "remove", 5.0, warmup, threshold=threshold,
                     momentum=momentum, beta=beta)
    x, nu, v = c.inversion.path[0], 0.0, [velocity(c.model, p) for p in (c.target, c.null, *(p for p, *_ in concepts))]
    for n, s in zip(c.sigmas, c.sigmas[1:]):
        target, null, *others = (ask(x, n) for ask in v)
        terms = []
        for other, (_, scale, _, threshold) in zip(others, concepts):
            psi = other - null
            kept = psi.abs() >= psi.abs().flatten(2).quantile(threshold, 2)[..., None, None]
            terms.append(scale * psi * kept)
        gamma = sum(terms) + momentum * nu
        nu = beta * nu + (1 - beta) * gamma
        warm = [float(n) <= starts(c.model, warmup) for _, _, warmup, _ in concepts]
        guided = gamma if all(warm) else sum(t for t, w in zip(terms, warm) if w)
        x = x + (s - n) * (null + cfg * (target - null) + guided)
    found, plain = (c.model.model.process_latent_in(c.sample(m, cfg=cfg)) for m in (model, c.model))
    assert relative(found, x) < 1e-5, relative(found, x)
    assert relative(plain, x) > 0.01


@torch.inference_mode()
def test_regions_of_a_video_are_its_frames_together():
    c = Flow("qwen")
    inversion = invert(c.model, c.source, torch.cat([tiny.latent(c.model, seed=s) for s in range(FRAMES)], 2), 3)[0]
    model = sega(c.model, c.target, threshold=0.75)
    regions = read_regions(model, editor_of(model, SEGA), inversion, c.null)
    assert regions.shape == (1, 1, 8, 8) and float(regions.mean()) == pytest.approx(0.25, abs=0.02)
