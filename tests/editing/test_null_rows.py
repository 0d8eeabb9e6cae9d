"""What the null prompt's rows read of the source: whole runs against the authors' code and an explicit batch of four
rows, and which prompts read where."""
import dataclasses
import json
import math
from pathlib import Path

import comfy.model_management as management
import pytest
import torch
from palimpsest.attention.plug_and_play import second_block
from palimpsest.editing.replay import Replayed
from palimpsest.editing.run import attach
from palimpsest.host.unet import host_attention, resolutions
from palimpsest.inversion.trajectory import Theta
from palimpsest.nodes.attention.masactrl import PalimpsestMutualSelfAttention
from palimpsest.nodes.attention.plug_and_play import PalimpsestPlugAndPlay
from palimpsest.nodes.attention.style_aligned import PalimpsestStyleAligned

import tiny
from runs import Case, invert, kept, relative
from watching import of, watch

AUTHORS = json.loads((Path(__file__).parents[1] / "data" / "null_rows.json").read_text())
STEPS, CFG, LN2 = 7, 7.5, math.log(2)  # ddim_uniform makes 8 steps of 7


def noise(seed, *shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


class Captioned(Case):
    """The inputs of the authors' code: a picture that is not square, its caption, and a start that is not its noise."""

    def __init__(self):
        self.model = tiny.sd15(output=0.6)
        self.null, self.source, self.target = ([[noise(seed, 8, tiny.DIM), {}]] for seed in (11, 12, 13))
        out = self.model.model.process_latent_out
        self.inversion, _, self.sigmas = invert(self.model, self.source, out(noise(14, 4, 8, 12)), STEPS)
        first = self.inversion.latents[0]
        self.noise = out(first + 0.3 * first.std() * noise(15, 4, 8, 12))

    def ended(self, model, **kwargs):
        """The end of the run in sampler space."""
        return self.model.model.process_latent_in(self.sample(model, cfg=CFG, **kwargs))


@kept
def captioned():
    return Captioned()


def mutual(c, null_too=True, model=None):
    """From the second step on."""
    return PalimpsestMutualSelfAttention.execute(model or c.model, c.inversion, 0.1, 1.0, "u", "", "", 0.1,
                                                 null_too).result[0]


def style(c, shift, **norms):
    return PalimpsestStyleAligned.execute(c.model, 0.0, 1.0, shift, 1.0, True, "", True, c.inversion, **norms).result[0]


RUNS = {"plain": lambda c: c.model, "masactrl": mutual,
        "style_aligned": lambda c: style(c, LN2, share_norms=False), "style_aligned_norms": lambda c: style(c, LN2),
        "style_aligned_norms_batch": lambda c: style(c, 0.0)}


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run_ends_where_the_authors_code_does(name):
    c = captioned()
    assert relative(c.ended(RUNS[name](c)).double().flatten()[::7], torch.tensor(AUTHORS[name]).double()) < 1e-5


def four_rows(c, x, sigma, feature_end, attention_end):
    """Plug-and-Play's prediction at CFG from one plain batch: source and target under the null prompt, then
    under their own prompts."""
    unet, sampling = c.model.model.diffusion_model, c.model.get_model_object("model_sampling")
    number, = second_block(unet)
    branch = unet.output_blocks[number][0].out_layers[-1]

    def from_source(rows):
        return rows[[0, 0, 2, 2]]

    def maps(q, k, v, options):
        return host_attention(from_source(q), from_source(k), v, options)

    up = [p for p in resolutions(unet) if p[0] == "output"][1:]
    replace = {"attn1": {p: maps for p in up}} if sigma >= sampling.percent_to_sigma(attention_end) else {}
    hook = branch.register_forward_hook(lambda module, inputs, h: from_source(h))
    if sigma < sampling.percent_to_sigma(feature_end):
        hook.remove()
    try:
        both = torch.cat([c.inversion.at(sigma).to(x), x] * 2)
        text = torch.cat([c.null[0][0], c.null[0][0], c.source[0][0], c.target[0][0]]).to(x)
        _, null, _, target = c.model.model.apply_model(both, x.new_full((4,), sigma), c_crossattn=text,
                                                       transformer_options={"patches_replace": replace}).chunk(4)
    finally:
        hook.remove()
    return null + CFG * (target - null)


@torch.inference_mode()
def test_plug_and_play_ends_where_an_explicit_batch_does():
    c, ends = captioned(), (0.8, 0.5)
    edited = c.ended(PalimpsestPlugAndPlay.execute(c.model, c.inversion, *ends, "", "", True).result[0])
    management.load_models_gpu([c.model])
    x = c.model.model.process_latent_in(c.noise).to(c.model.load_device)
    for sigma, clean in zip(c.sigmas[:-1].tolist(), c.sigmas[1:].tolist()):
        x = x + (clean - sigma) * (x - four_rows(c, x, sigma, *ends)) / sigma
    assert relative(edited, x.to(edited)) < 1e-5 < 1e-2 < relative(c.ended(c.model), x.to(edited))


@pytest.mark.parametrize("null_too, cfg, rows", [(True, CFG, 2), (False, CFG, 1), (True, 1.0, 1)])
def test_the_null_prompt_is_read_only_where_its_rows_are_edited(null_too, cfg, rows):
    c = captioned()
    read = of(watch(c, mutual(c, null_too), cfg=cfg)[1], "reference")
    assert [len(k.x0) * k.together for k in read] == [rows] * 7 * rows


def one_step(c, model, **kwargs):
    """The null prompt's prediction at a start that is not the source's."""
    return c.sample(model, cfg=0.0, sigmas=c.sigmas[[1, -1]], **kwargs)


def test_each_negative_of_several_reads_the_source_under_itself():
    """Two combined prompts predict the mean of both. Rows with different negatives each predict
    what they predict alone."""
    c = captioned()
    first, second = c.null[0], c.target[0]
    alone = [one_step(c, mutual(c), negative=[entry]) for entry in (first, second)]
    assert relative(*alone) > 1e-3
    assert relative(one_step(c, mutual(c), negative=[first, second]), sum(alone) / 2) < 1e-5
    rows = one_step(c, mutual(c), negative=[[torch.cat([first[0], second[0]]), {}]], latent=c.noise.repeat(2, 1, 1, 1))
    for row, found in zip(rows, alone):
        assert relative(row, found[0]) < 1e-5


def test_rows_of_a_learned_null_prompt_read_the_source_under_it():
    """At the source's latents those rows equal the source's own at every step, and nothing changes."""
    c = captioned()
    steps = len(c.sigmas) - 1
    learned = torch.cat([noise(20 + i, 8, tiny.DIM) for i in range(steps)])[:, None]
    inversion = dataclasses.replace(c.inversion, theta={"uncond": Theta(learned, "step", "prediction")})
    plain = attach(c.model, Replayed(inversion))
    edited = PalimpsestMutualSelfAttention.execute(plain, inversion, 0.0, 1.0, "u", "", "", 0.1, True).result[0]
    for a, b in zip(*(c.predictions(m, c.source, CFG) for m in (edited, plain)), strict=True):
        assert relative(a, b) < 1e-5
