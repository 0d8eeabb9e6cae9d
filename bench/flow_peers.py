"""Diffusers' Flux pipelines, and FlowEdit's code on one, beside ours on equal weights. bench/speed.py times them."""
from types import SimpleNamespace

import diffusers
import node_helpers
import torch

from ..editing import replay as replaying
from ..nodes.guidance.rf_inversion import PalimpsestRFInversionGuide
from ..showcase.rows import output
from . import twin
from .cost import Bench
from .peers import community

PIXELS = 8  # of a latent's cell
GUIDANCE = 3.5  # Flux's own, the host's where a prompt says none
FLOWEDIT = 1.5, 5.5  # FlowEdit's guidance of source and target
ETA, DRAWN = 0.9, 0.5  # of RF-Inversion, and the share of the steps that it draws


class FlowPeers(Bench):
    """A Flux with its inversion on equal steps of σ, and diffusers' pipelines of the same weights."""

    def __init__(self, model, clip, size, steps, folder=None, **of):
        super().__init__(model, clip, size, steps, cfg=1.0, **of)
        self.size, self.folder, self.sigmas = size, folder, torch.linspace(1, 0, steps + 1)
        self.inversion = self.inverted("RF-Inversion", sigmas=self.sigmas, gamma=0.0)
        with torch.inference_mode(False):
            (embedding, extra), = self.target
            self.prompt = {"prompt_embeds": embedding.clone(), "pooled_prompt_embeds": extra["pooled_output"].clone()}
            self.path = [self.packed(x.clone()) for x in self.inversion.path]

    def packed(self, x):
        return diffusers.FluxPipeline._pack_latents(x, *x.shape)

    def pipeline(self, kind):
        with torch.inference_mode(False):
            network = twin.flux(self.model).requires_grad_(False)
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        made = kind(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), transformer=network, **parts)
        made.set_progress_bar_config(disable=True)
        return made

    def call(self, pipeline, **settings):
        """The last latent of a pipeline's run."""
        side = self.size * PIXELS
        found = pipeline(**self.prompt, height=side, width=side, num_inference_steps=self.steps,
                         guidance_scale=GUIDANCE, output_type="latent", **settings).images
        return pipeline._unpack_latents(found, side, side, PIXELS)

    def replayed(self, model):
        """The last latent of our run along the inversion."""
        model, *start = replaying.replay(model, self.inversion)
        return self.model.model.process_latent_in(self.run(model, start=start))


def plain(b):
    theirs = b.pipeline(diffusers.FluxPipeline)
    return lambda: b.replayed(b.model), lambda: b.call(theirs, latents=b.path[0])


def rf_inversion(b):
    theirs = b.pipeline(community(b.folder, "pipeline_flux_rf_inversion").RFInversionFluxPipeline)
    last = int(DRAWN * b.steps)
    between = float(b.sigmas[last - 1:last + 1].mean())
    percent = b.model.get_model_object("model_sampling").percent_to_sigma
    end = next(p / 1000 for p in range(1000) if percent(p / 1000) < between)
    guided = output(PalimpsestRFInversionGuide, model=b.model, inversion=b.inversion, eta=ETA, start=0.0, end=end)
    ids = theirs._prepare_latent_image_ids(1, b.size // 2, b.size // 2, "cpu", torch.float32)
    return lambda: b.replayed(guided), lambda: b.call(
        theirs, inverted_latents=b.path[0], image_latents=b.path[-1], latent_image_ids=ids, start_timestep=0.0,
        stop_timestep=DRAWN, eta=ETA)


def flow_edit(b):
    """The authors' loop on diffusers' pipeline, its noise that of our levels."""
    module, theirs = community(b.folder, "FlowEdit_utils"), b.pipeline(diffusers.FluxPipeline)
    guided = {text: node_helpers.conditioning_set_values(prompt, {"guidance": guidance})
              for text, prompt, guidance in zip(b.texts, (b.source, b.target), FLOWEDIT)}
    source, target = guided.values()

    def ours():
        inversion = b.inverted("FlowEdit", source=source, sigmas=b.sigmas)
        model, *start = replaying.replay(b.model, inversion)
        return b.model.model.process_latent_in(b.run(model, positive=target, start=start))

    path = b.inverted("FlowEdit", source=source, sigmas=b.sigmas).path
    ids = theirs._prepare_latent_image_ids(1, b.size // 2, b.size // 2, "cpu", torch.float32)
    with torch.inference_mode(False):
        noise = [b.packed((z - (1 - s) * path[-1]) / s) for z, s in zip(path, b.sigmas[:-1])]
        prompts = {text: (c[0][0].clone(), c[0][1]["pooled_output"].clone(), torch.zeros(c[0][0].shape[1], 3))
                   for text, c in guided.items()}
        clean = path[-1].clone()
    theirs.encode_prompt = lambda prompt, **_: prompts[prompt]
    theirs.prepare_latents = lambda latents, **_: (latents, ids)  # its own are of an older pipeline
    theirs._unpack_latents = lambda packed, *_: diffusers.FluxPipeline._unpack_latents(
        packed, b.size * PIXELS, b.size * PIXELS, PIXELS)

    def loop():
        drawn = iter(noise)
        module.torch = SimpleNamespace(**{**vars(torch), "randn_like": lambda like: next(drawn)})
        return module.FlowEditFLUX(theirs, theirs.scheduler, clean, *b.texts, "", b.steps, 1, *FLOWEDIT, 0, b.steps)

    return ours, loop


FLOW = {"Flux, plain sampling": plain, "Flux, RF-Inversion Guide": rf_inversion,
        "Flux, FlowEdit (authors' code)": flow_edit}
