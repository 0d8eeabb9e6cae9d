"""pix2pix-zero's guidance and edit directions against diffusers' pipeline."""
from dataclasses import replace

import comfy.model_management as management
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
    StableDiffusionPix2PixZeroPipeline,
)
from palimpsest.bench import twin
from palimpsest.editing.editor import editors
from palimpsest.editing.run import attach
from palimpsest.nodes.guidance.pix2pix_zero import PalimpsestEditDirection

import tiny
from moving_latents import CATS, CFG, DOGS, STEPS, case, host_run, model, noise, pipeline, pull
from runs import relative


class Tied(torch.optim.SGD):
    """Moves every row of its tensor as it moves the last one, so the null prompt's row moves
    with the edited prompt's."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for x in group["params"]:
                x.data.copy_(x.data[-1:].expand_as(x))


@pytest.mark.parametrize("amount, tied", [(0.1, True), (20.0, True), (20.0, False)])
@torch.inference_mode()
def test_cross_attention_guidance_equals_diffusers_pipeline(amount, tied, monkeypatch):
    """diffusers' step starts from the null prompt's row, moved by its own maps. Ours equals its run
    with both rows moved alike."""
    c = case()
    directed = PalimpsestEditDirection.execute(c.clip, CATS, DOGS, c.source, 1.0).result[0]
    prompts = twin.Prompts({"": c.null[0][0], "source": c.source[0][0]})
    sentences = ([tiny.encode(c.clip, t)[0][0] for t in text.split("\n")] for text in (CATS, DOGS))
    if tied:
        monkeypatch.setattr(torch.optim, "SGD", Tied)
    with torch.inference_mode(False):
        sentences = [torch.cat(rows).clone() for rows in sentences]
        parts = {"inverse_scheduler": None, "caption_generator": None, "caption_processor": None}
        theirs = pipeline(StableDiffusionPix2PixZeroPipeline, prompts, **parts)(
            "source", source_embeds=sentences[0], target_embeds=sentences[1], num_inference_steps=STEPS,
            guidance_scale=CFG,
            latents=noise().clone(), output_type="latent", cross_attention_guidance_amount=amount).images
    path = []
    end = host_run(model(), c.source, callback=lambda i, x0, x, total: path.append(x.clone()))
    known = replace(c.inversion, latents=(*path, end))
    ours, plain = host_run(pull(model(), known, amount), directed), host_run(model(), directed)
    assert relative(plain, theirs) > 0.02 * (amount > 1)
    assert (relative(ours, theirs) < 1e-3) == tied, relative(ours, theirs)


def test_the_source_is_not_pulled_and_a_target_is():
    """At the source's own latents and with its own prompt, the predictions are not edited."""
    c = case()
    for edited, plain in zip(c.predictions(pull(c.model, c.inversion), c.source), c.predictions(c.model, c.source)):
        assert relative(edited, plain) < 1e-5
    assert relative(c.sample(pull(c.model, c.inversion, 5.0)), c.sample()) > 1e-2


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_an_edit_direction_is_the_difference_of_means(family):
    c = case(family=family, steps=4)
    with torch.inference_mode():
        edited, = PalimpsestEditDirection.execute(c.clip, CATS, DOGS, c.source, 0.5).result
        here, there = ([tiny.encode(c.clip, t)[0] for t in text.split("\n")] for text in (CATS, DOGS))
        back, = PalimpsestEditDirection.execute(c.clip, CATS, DOGS, edited, -0.5).result

    def mean(rows):
        return sum(cross for cross, _ in rows) / len(rows), sum(extra["pooled_output"] for _, extra in rows) / len(rows)

    (a, pooled_a), (b, pooled_b) = mean(here), mean(there)
    (cross, extra), (before, extra_before) = edited[0], c.source[0]
    assert relative(cross - before, 0.5 * (b - a)) < 1e-5 and relative(back[0][0], before) < 1e-6
    assert extra["palimpsest_tokens"] is extra_before["palimpsest_tokens"] and "palimpsest_tokens" in extra
    assert relative(extra["pooled_output"] - extra_before["pooled_output"], 0.5 * (pooled_b - pooled_a)) < 1e-5


def test_editors_share_one_reading_of_the_source():
    c = case(steps=4)
    both = attach(pull(c.model, c.inversion), editors(pull(c.model, c.inversion, 5.0))[0])
    assert relative(c.sample(both), c.sample(pull(c.model, c.inversion))) > 1e-4
    assert not getattr(management, "in_training", False)
