"""Attend-and-Excite and pix2pix-zero against diffusers' pipelines, their gradients against differences of their losses, and on
the host."""
from dataclasses import replace

import comfy.model_management as management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from diffusers import DDIMScheduler
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite.pipeline_stable_diffusion_attend_and_excite import (
    StableDiffusionAttendAndExcitePipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_variants.pipeline_stable_diffusion_pix2pix_zero import (
    StableDiffusionPix2PixZeroPipeline,
)
from palimpsest.bench import twin
from palimpsest.editing.attention_loss import loss_gradient
from palimpsest.editing.editor import editors
from palimpsest.editing.run import attach
from palimpsest.guidance.attend_excite import neglect, text_positions
from palimpsest.host.keys import running
from palimpsest.host.sampling import Solver
from palimpsest.nodes.guidance.attend_excite import PalimpsestAttendExcite
from palimpsest.nodes.guidance.magic_remover import PalimpsestMagicRemover
from palimpsest.nodes.guidance.pix2pix_zero import PalimpsestCrossAttentionGuidance, PalimpsestEditDirection

import tiny
from runs import Case, kept, relative

STEPS, CFG = 10, 7.5
CATS, DOGS = "a cat on a mat\na sleeping cat", "a dog on a mat\nmy dog\na dog, asleep"


@kept
def case(**kwargs):
    return Case(**{"steps": STEPS, **kwargs})


def excite(model, words="cat, mat", scale=20.0, end=0.5, thresholds="0: 0.05, 0.2: 0.5, 0.4: 0.8", refinements=20):
    return PalimpsestAttendExcite.execute(model, words, scale, end, thresholds, refinements, 0.25).result[0]


def pull(model, inversion, amount=0.1, start=0.0, end=1.0):
    return PalimpsestCrossAttentionGuidance.execute(model, inversion, amount, start, end).result[0]


@kept
def noise():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))


@kept
def model():
    return tiny.sd15(output=0.6)


def pipeline(kind, prompts, **parts):
    made = kind(vae=None, text_encoder=prompts, tokenizer=prompts, unet=twin.unet(model()), safety_checker=None, feature_extractor=None,
                scheduler=DDIMScheduler(**twin.SCHEDULE, clip_sample=False, set_alpha_to_one=True), requires_safety_checker=False,
                **parts)
    made.set_progress_bar_config(disable=True)
    return made


def host_run(edited, positive, **kwargs):
    """The last latent of a run from `noise`, in sampler space."""
    c, sigmas = case(), case().sigmas
    start = model().model.process_latent_out(noise() * (1 + sigmas[0] ** 2).sqrt())
    return model().model.process_latent_in(c.sample(edited, positive, CFG, latent=start, sigmas=sigmas, **kwargs))


@pytest.mark.parametrize("levels, scale", [((), 60.0), ((0.05, 0.5, 0.8), 20.0), ((0.014, 0.015, 0.8), 100.0)])
@torch.inference_mode()
def test_attend_excite_equals_diffusers_pipeline(levels, scale):
    c, tokens = case(), case().edit.pairs[0].target
    prompts = twin.Prompts({"": c.null[0][0], "target": c.target[0][0]})
    named = [p for word in ("cat", "mat") for p in tokens.find(word).positions]
    with torch.inference_mode(False):
        theirs = pipeline(StableDiffusionAttendAndExcitePipeline, prompts)(
            "target", named, 64, 64, STEPS, CFG, latents=noise().clone(), output_type="latent", max_iter_to_alter=5, scale_factor=scale,
            thresholds=dict(zip((0, 2, 4), levels)), attn_res=(4, 4)).images
    text = ", ".join(f"{share}: {level}" for share, level in zip((0, 0.2, 0.4), levels))
    ours = host_run(excite(model(), scale=scale, thresholds=text), c.target)
    plain = host_run(model(), c.target)
    assert relative(plain, theirs) > 0.02
    assert relative(ours, theirs) < 1e-3, relative(ours, theirs)


class Tied(torch.optim.SGD):
    """Moves every row of its tensor as the last one is moved: the null prompt's row with the edited prompt's."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for x in group["params"]:
                x.data.copy_(x.data[-1:].expand_as(x))


@pytest.mark.parametrize("amount, tied", [(0.1, True), (20.0, True), (20.0, False)])
@torch.inference_mode()
def test_cross_attention_guidance_equals_diffusers_pipeline(amount, tied, monkeypatch):
    """Whose step leaves from the row of the null prompt, moved by that row's own maps; ours is its run with both rows moved
    alike."""
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
            "source", source_embeds=sentences[0], target_embeds=sentences[1], num_inference_steps=STEPS, guidance_scale=CFG,
            latents=noise().clone(), output_type="latent", cross_attention_guidance_amount=amount).images
    path = []
    end = host_run(model(), c.source, callback=lambda i, x0, x, total: path.append(x.clone()))
    known = replace(c.inversion, latents=(*path, end))
    ours, plain = host_run(pull(model(), known, amount), directed), host_run(model(), directed)
    assert relative(plain, theirs) > 0.02 * (amount > 1)
    assert (relative(ours, theirs) < 1e-3) == tied, relative(ours, theirs)


EDITORS = {"excite": lambda c: excite(c.model), "pull": lambda c: pull(c.model, c.inversion)}


@pytest.mark.parametrize("family", tiny.UNETS)
@pytest.mark.parametrize("kind", EDITORS)
def test_gradients_are_the_differences_of_the_losses(kind, family):
    """Along the gradient itself, and in z of the papers: c²·∂L/∂x."""
    c, found = case(family=family, steps=4), []
    edited = EDITORS[kind](c)
    editor, = editors(edited)

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        run, sigma = running(extra_args["model_options"]), float(sigmas[1])
        x = c.inversion.at(sigma).to(x) + 0.3 * sigma * noise()

        def at(x):
            if kind == "excite":
                return editor._slope(run, x, sigma)
            run.read(x, sigma)
            return loss_gradient(run, x, sigma, lambda site: True, *editor._distance())

        loss, gradient = at(x)
        gradient = gradient / (1 + sigma ** 2)
        step = 1e-2 * sigma * gradient / gradient.norm()
        found.append((loss, (at(x + step)[0] - at(x - step)[0]) / 2, (gradient * step).sum()))
        return x

    c.sample(edited, sampler=Solver(solver))
    (loss, difference, predicted), = found
    assert float(loss) > 0 and float(difference) == pytest.approx(float(predicted), rel=2e-2)


def test_the_source_is_not_pulled_and_a_target_is():
    """At the source's own latents, with its own prompt: the unedited predictions."""
    c = case()
    for edited, plain in zip(c.predictions(pull(c.model, c.inversion), c.source), c.predictions(c.model, c.source)):
        assert relative(edited, plain) < 1e-5
    assert relative(c.sample(pull(c.model, c.inversion, 5.0)), c.sample()) > 1e-2


def test_what_is_neglected_is_the_word_with_the_lowest_peak():
    """Two words of three tokens of text, in a map of BOS, text and a last column."""
    maps = torch.zeros(4, 4, 5)
    maps[1, 1, 1], maps[2, 2, 3] = 1.0, 0.02
    kernel = torch.tensor([-1.0, 0, 1]).square().neg().exp()
    peak, corner = (kernel[1] / kernel.sum()) ** 2, (kernel[0] / kernel.sum()) ** 2
    text = torch.full((4, 4), 1 / 3)
    text[1, 1], text[2, 2] = 0.0, torch.tensor([0, 0, 2.0]).softmax(0)[2]
    around = torch.outer(kernel, kernel) / kernel.sum() ** 2
    smooth = torch.nn.functional.conv2d(torch.nn.functional.pad(text[None, None], (1, 1, 1, 1), mode="reflect"), around[None, None])
    assert float(neglect(maps, [1, 2, 3], [3])) == pytest.approx(1 - float(smooth.max()), abs=1e-6)
    assert float(neglect(maps, [1, 2, 3], [1, 3])) == pytest.approx(1 - float(smooth.max()), abs=1e-6)
    there = peak + corner * torch.tensor([0, 0, 2.0]).softmax(0)[0] + (1 - peak - corner) / 3
    assert float(neglect(maps, [1, 2, 3], [1])) == pytest.approx(1 - float(there), abs=1e-6)
    assert text_positions((9, 1, 2, 0, 9, 3, 0, 0)) == [1, 2, 5, 6]


def test_a_refinement_stops_where_every_word_is_attended_to(monkeypatch):
    """Row by row: of two the one that is there is moved no further."""
    from palimpsest.guidance import attend_excite
    c, looked = case(), []
    edited = excite(c.model, thresholds="0: 0.5", end=0.1, scale=1.0)

    def walk(loss):
        def look(self, run, x, sigma):
            looked.append(x.clone())
            return torch.tensor(loss[len(looked) - 1]), torch.ones_like(x)
        return look

    monkeypatch.setattr(attend_excite.AttendExcite, "_slope", walk([[0.9, 0.4], [0.8, 0.9], [0.4, 0.9], [0.4, 0.9]]))
    c.sample(edited, latent=c.noise.repeat(2, 1, 1, 1), sigmas=c.sigmas)
    moves = [(b - a).flatten(1).mean(1).tolist() for a, b in zip(looked, looked[1:])]
    assert len(looked) == 4 and [[round(m, 3) for m in row] for row in moves] == [[-1.0, 0.0]] * 3


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


def test_a_remover_takes_a_gradient_only_where_it_would_move():
    """Twice a step until half of the schedule and once after; never at scale 0, without words or for a prompt without them."""
    c = case(steps=4)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :32] = 1

    def gradients(words, scale, prompt):
        taken, model = [], PalimpsestMagicRemover.execute(c.model, c.inversion, words, 0.3, scale, 0.0, 1.0, mask=mask).result[0]
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", lambda executor, x, *args, **kwargs: (
            taken.append(1) if x.requires_grad else None) or executor(x, *args, **kwargs))
        c.sample(model, prompt)
        return len(taken)

    half = c.model.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert gradients("cat", 1.0, c.source) == sum(2 if sigma >= half else 1 for sigma in c.sigmas[:-1].tolist()) > 4
    sky = case(steps=4, targets=("the sky",)).target
    for words, scale, prompt in (("cat", 0.0, c.source), ("", 1.0, c.source), ("cat", 1.0, sky),
                                 ("cat", 1.0, tiny.encode(c.clip, "the sky"))):
        assert gradients(words, scale, prompt) == 0, (words, scale)


def test_editors_share_one_reading_of_the_source():
    c = case(steps=4)
    both = attach(pull(c.model, c.inversion), editors(pull(c.model, c.inversion, 5.0))[0])
    assert relative(c.sample(both), c.sample(pull(c.model, c.inversion))) > 1e-4
    assert not getattr(management, "in_training", False)


def test_what_cannot_work_is_said_before_the_first_model_call():
    c = case()
    with pytest.raises(ValueError, match="none is named"):
        excite(c.model, words=" ")
    with pytest.raises(ValueError, match="ends at 0"):
        excite(c.model, end=0.0)
    for wrong in ("0: 1.5", "early: 0.5", "2: 0.1"):
        with pytest.raises(ValueError, match="shares of the schedule with levels"):
            excite(c.model, thresholds=wrong)
    with pytest.raises(ValueError, match='"hat" names no word'):
        c.sample(excite(c.model, "hat"))
    with pytest.raises(ValueError, match="carries no words"):
        c.sample(excite(c.model), tiny.encode(c.clip, "a cat on a mat"))
    with pytest.raises(ValueError, match="starts at 0.5 and ends at 0.5"):
        pull(c.model, c.inversion, start=0.5, end=0.5)
    with pytest.raises(ValueError, match="this MODEL is Flux"):
        excite(tiny.flux())
    with pytest.raises(ValueError, match="0 source sentences and 2 target sentences"):
        PalimpsestEditDirection.execute(c.clip, "", CATS, c.source, 1.0)
    with pytest.raises(ValueError, match="would change nothing"):
        PalimpsestEditDirection.execute(c.clip, CATS, DOGS, c.source, 0.0)
    with pytest.raises(ValueError, match=r"is \[8, 64\] \(tokens, width\)"):
        PalimpsestEditDirection.execute(c.clip, CATS, DOGS, tiny.cond(), 1.0)
