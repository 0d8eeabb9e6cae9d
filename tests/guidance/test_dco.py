"""Reward guidance: three predictions, of which one is of the MODEL under a LoRA that hangs on its prompt alone."""
import pytest
import torch
from comfy_extras.nodes_hooks import ConditioningSetProperties, CreateHookLora
from palimpsest.concept.lora import LoRA
from palimpsest.editing.learning import applied, learn_concept
from palimpsest.nodes.concept.learn import PalimpsestConceptHook
from palimpsest.nodes.guidance.dco import PalimpsestRewardGuidance

import tiny
from cases import case_of
from concepts import images
from runs import kept, relative

TEXT = "a blue cat on a mat"


@kept
def learned():
    c = case_of()
    with torch.inference_mode():
        return learn_concept(c.model, c.clip, images(c.model), [LoRA(1e-1, text_encoder=True)], steps=3)


def expert(c, strength=1.0):
    _, clip = applied(c.model, c.clip, learned())
    return PalimpsestConceptHook.execute(tiny.encode(clip, TEXT), learned(), strength).result[0]


def test_it_is_the_programs_line_on_three_models_predictions():
    """ε_φ(∅), ε_φ(c) and ε_θ(c*) of the MODEL and of one that is tuned for good. x0 is linear in each."""
    c = case_of()
    tuned, clip = applied(c.model, c.clip, learned())
    null, target = (c.predictions(c.model, prompt) for prompt in (c.null, c.target))
    ours = c.predictions(tuned, tiny.encode(clip, TEXT))
    found = c.predictions(PalimpsestRewardGuidance.execute(c.model, expert(c), 3.0, 0.0, 1.0).result[0], c.target, 7.5)
    assert relative(ours[0], target[0]) > 1e-3
    for at, x0 in enumerate(found):
        noise_pred_uncond, noise_pred_text, noise_pred_lora_text = null[at], target[at], ours[at]
        noise_pred = 7.5 * (noise_pred_text - noise_pred_uncond) + noise_pred_uncond
        noise_pred += 3.0 * (noise_pred_lora_text - noise_pred_text)
        assert relative(x0, noise_pred) < 1e-5


def test_the_expert_is_the_tuned_model_to_the_last_bit():
    """At CFG 1 and scale 1 the target's prediction cancels, and nothing of the LoRA stays in the MODEL."""
    c = case_of()
    tuned, clip = applied(c.model, c.clip, learned())
    before = c.sample()
    found = []

    def seen(args):
        found.append(args["conds_out"][0].clone())
        return args["conds_out"]

    hooked = c.model.clone()
    hooked.set_model_sampler_pre_cfg_function(seen)
    c.sample(hooked, expert(c), cfg=1.0)
    own, found = found, []
    straight = tuned.clone()
    straight.set_model_sampler_pre_cfg_function(seen)
    c.sample(straight, tiny.encode(clip, TEXT), cfg=1.0)
    assert len(own) == len(found) > 2 and all(torch.equal(a, b) for a, b in zip(own, found))
    assert torch.equal(c.sample(), before) and not c.model.hook_patches


def test_a_lora_file_hangs_on_the_expert_too(tmp_path, monkeypatch):
    from palimpsest.host.concept_files import lora_file

    import nodes
    c = case_of()
    path = tmp_path / "thing.safetensors"
    path.write_bytes(lora_file(learned().weights, {}))
    monkeypatch.setattr(nodes.folder_paths, "get_full_path", lambda kind, name: str(path))
    hooks, = CreateHookLora().create_hook("thing.safetensors", 1.0, 0.0)
    _, clip = applied(c.model, c.clip, learned())
    hung, = ConditioningSetProperties().set_properties(tiny.encode(clip, TEXT), 1.0, "default", hooks=hooks)
    results = [c.sample(PalimpsestRewardGuidance.execute(c.model, one, 2.0, 0.0, 0.5).result[0])
               for one in (hung, expert(c), expert(c, 0.5))]
    assert relative(results[0], results[1]) < 1e-5 < relative(results[2], results[1])


def test_an_expert_that_knows_no_more_is_refused():
    c = case_of()
    with pytest.raises(ValueError, match="connect Concept on One Prompt"):
        c.sample(PalimpsestRewardGuidance.execute(c.model, tiny.encode(c.clip, TEXT), 3.0, 0.0, 1.0).result[0],
                 tiny.encode(c.clip, TEXT))
    with pytest.raises(ValueError, match="would change nothing"):
        PalimpsestRewardGuidance.execute(c.model, expert(c), 3.0, 0.5, 0.5)


def test_a_scale_of_0_is_plain_sampling_and_asks_nothing():
    c = case_of()
    none = PalimpsestRewardGuidance.execute(c.model, expert(c), 0.0, 0.0, 1.0).result[0]
    rows, network = [], c.model.model.diffusion_model
    hook = network.register_forward_pre_hook(lambda network, inputs: rows.append(len(inputs[0])))
    try:
        assert torch.equal(c.sample(none, cfg=1.0), c.sample(cfg=1.0))
    finally:
        hook.remove()
    assert sum(rows) == 2 * (len(c.sigmas) - 1)
