"""SINE against the paper's formula with two networks of diffusers, and its hook on the real host."""
import comfy.hooks
import comfy.model_management as management
import comfy.sd
import pytest
import torch
from palimpsest.bench import twin
from palimpsest.editing.editor import editors
from palimpsest.host.hooks import with_weights_on
from palimpsest.nodes.guidance.sine import PalimpsestSINEGuidance

import tiny
from runs import Case, cancelled_in, kept, relative

STEPS, CFG = 5, 4.0


@kept
def case(family="sd15", **kwargs):
    return Case(family, steps=STEPS, **kwargs)


def learned(model, size=0.2):
    """The weights of a LoRA on every cross-attention's values."""
    generator, found = torch.Generator().manual_seed(6), {}
    for name, weight in model.model.state_dict().items():
        if name.endswith("attn2.to_v.weight"):
            for part, shape in (("up", (len(weight), 2)), ("down", (2, weight.shape[1]))):
                found[name.replace("weight", f"lora_{part}.weight")] = size * torch.randn(shape, generator=generator)
    return found


def sine(c, share=0.4, start=0.0, end=0.6, expert=None):
    expert = expert or with_weights_on(c.source, learned(c.model), 1.0)
    return PalimpsestSINEGuidance.execute(c.model, expert, share, start, end).result[0]


def paper(c, share, last):
    """The x of the formula at the end, with two networks. last: the timestep after which the expert is silent."""
    networks = [twin.unet(c.model) for _ in range(2)]
    weights, tuned = learned(c.model), dict(networks[1].named_parameters())
    names = comfy.utils.unet_to_diffusers(c.model.model.model_config.unet_config)
    with torch.no_grad():
        for theirs, ours in names.items():
            parts = [weights.get(f"diffusion_model.{ours}".replace("weight", f"lora_{part}.weight"))
                     for part in ("up", "down")]
            if parts[0] is not None:
                tuned[theirs] += parts[0] @ parts[1]
    sigmas, x = c.sigmas.clone(), c.inversion.latents[0].clone()
    timesteps = c.model.get_model_object("model_sampling").timestep(sigmas[:-1]).clone()
    target, source, null = (prompt[0][0].clone() for prompt in (c.target, c.source, c.null))
    with torch.no_grad():
        for i, t in enumerate(timesteps):
            z = twin.z_of(x, sigmas[i])

            def eps(network, context, z=z, t=t):
                return network(z, t, encoder_hidden_states=context).sample

            text, free = eps(networks[0], target), eps(networks[0], null)
            if t >= last:
                text = (1 - share) * text + share * eps(networks[1], source)
            x = x + (sigmas[i + 1] - sigmas[i]) * (free + CFG * (text - free))
    return x


@pytest.mark.parametrize("share, end", [(0.4, 0.6), (0.7, 1.0)])
def test_a_run_is_the_papers_with_two_networks(share, end):
    c = case()
    found = c.model.model.process_latent_in(c.sample(sine(c, share, end=end), cfg=CFG))
    wanted = paper(c, share, 1000 * (1 - end))
    assert relative(found, wanted) < 1e-5
    assert relative(paper(c, 0.0, 0), wanted) > 1e-3


@pytest.mark.parametrize("family", tiny.UNETS)
def test_the_expert_is_the_tuned_model_to_the_last_bit(family):
    c = case(family)
    tuned, _ = comfy.sd.load_lora_for_models(c.model, None, learned(c.model), 1.0, 0.0)
    wanted = c.sample(tuned, c.source, cfg=1.0)
    assert torch.equal(c.sample(sine(c, 1.0, end=1.0), cfg=1.0), wanted)
    assert relative(c.sample(cfg=1.0, positive=c.source), wanted) > 1e-3


def stopping(*_):
    """As the host's progress bar does after each step."""
    management.throw_exception_if_processing_interrupted()


def test_no_share_is_plain_sampling_and_nothing_stays():
    c = case()
    plain, weights = c.sample(), {k: v.clone() for k, v in c.model.model.state_dict().items()}
    assert torch.equal(c.sample(sine(c, 0.0)), plain)
    edited = sine(c)
    found = c.sample(edited)
    assert torch.equal(c.sample(edited), found) and not torch.equal(found, plain)
    assert cancelled_in(2, c.model, lambda: c.sample(edited, callback=stopping)) == 2
    assert torch.equal(c.sample(), plain) and editors(c.model) == () and not c.model.hook_patches
    assert all(torch.equal(v, weights[k]) for k, v in c.model.model.state_dict().items())


def test_the_expert_stands_beside_hooks_of_the_sampled_prompts():
    """Both prompts under one LoRA: the target's hook is registered as before, the expert's beside it."""
    c, hooks = case(), comfy.hooks.create_hook_lora(learned(case().model), 1.0, 0.0)
    target = comfy.hooks.set_hooks_for_conditioning(c.target, hooks)
    both = c.sample(sine(c), target)
    assert relative(both, c.sample(sine(c))) > 1e-3 and relative(both, c.sample(positive=target)) > 1e-3
    same = c.sample(sine(c, 0.5, end=1.0, expert=comfy.hooks.set_hooks_for_conditioning(c.target, hooks)), target)
    assert relative(same, c.sample(positive=target)) < 1e-5


def test_what_cannot_work_is_said():
    c = case()
    with pytest.raises(ValueError, match="plain prompt.*Concept on One Prompt"):
        sine(c, expert=c.source)
    with pytest.raises(ValueError, match="None of the weights"):
        strange = {name.replace("attn2", "attn9"): w for name, w in learned(c.model).items()}
        c.sample(sine(c, expert=with_weights_on(c.source, strange, 1.0)))
    with pytest.raises(ValueError, match="carries SINE already"):
        PalimpsestSINEGuidance.execute(sine(c), with_weights_on(c.source, learned(c.model), 1.0), 0.7, 0.0, 0.6)
    with pytest.raises(ValueError, match="would change nothing"):
        sine(c, start=0.6)
