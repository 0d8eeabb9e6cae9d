"""Prompts as the host's guiders encode them, and guiders that predict with prompts of their own."""
import comfy.samplers
import torch.nn.functional as F
from comfy.sampler_helpers import convert_cond
from comfy.samplers import CFGGuider, encode_model_conds
from torch import Tensor

from .options import with_transformer
from .progress import raise_if_cancelled

__all__ = ["CFGGuider", "Guider", "PairGuider", "PromptGuider", "calc_cond_batch", "convert_cond", "encode_model_conds",
           "encoded", "predictions", "prompted", "prompt_asked", "with_embedding"]
ASKED = "palimpsest.prompt"


def encoded(guider, conditioning, noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None = None) -> list:
    """The cond list of a CONDITIONING, encoded as the host encodes the guider's."""
    conds = {"positive": convert_cond(conditioning)}
    return comfy.samplers.process_conds(guider.inner_model, noise, conds, guider.model_patcher.load_device,
                                        latent_image, denoise_mask)["positive"]


def calc_cond_batch(model, conds: list, x: Tensor, timestep: Tensor, model_options: dict) -> list[Tensor]:
    """The host's function of this name, also where another pack has replaced it."""
    return comfy.samplers.calc_cond_batch(model, conds, x, timestep, model_options)


def predictions(guider, conds: list, x: Tensor, sigma: float, model_options: dict) -> list[Tensor]:
    """The x0 of x at σ under each of the cond lists, from the guider's loaded model."""
    return calc_cond_batch(guider.inner_model, conds, x, x.new_full((len(x),), sigma), model_options)


def with_embedding(entry: dict, embedding: Tensor) -> dict:
    """A processed cond entry with another cross-attention embedding [B, tokens, C]."""
    held = entry["model_conds"]["c_crossattn"]
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": type(held)(padded(embedding, held.cond))}}


def padded(embedding: Tensor, like: Tensor) -> Tensor:
    """An embedding [B, tokens, C] as long as another in which the host put zeros before the text, as on Flux.2."""
    lacking = like.shape[1] - embedding.shape[1]
    return F.pad(embedding, (0, 0, lacking, 0)) if lacking > 0 and not like[:, 0].any() else embedding


class Guider(CFGGuider):
    """Predicts with its own prompts, {name: CONDITIONING}. A subclass combines them in `predict_noise`."""

    def __init__(self, model, prompts: dict, cfg=1.0):
        super().__init__(model)
        self.inner_set_conds(prompts)
        self.set_cfg(cfg)


class PairGuider(Guider):
    """Predicts with a prompt guided away from the "negative" one, as the host's own guider predicts with those two."""

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
                     **kwargs):
        # lists that the host readies together exchange areas, and all take the ControlNet of the one called positive
        clean = self.inner_model.process_latent_in(latent_image)
        self.pairs = {name: comfy.samplers.process_conds(
            self.inner_model, noise, {"positive": prompt, "negative": self.conds["negative"]}, device, clean,
            denoise_mask, seed, **kwargs) for name, prompt in self.conds.items() if name != "negative"}
        return super().inner_sample(noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar,
                                    seed, **kwargs)

    def predict_noise(self, x, timestep, model_options, seed=None):
        pair = self.pairs[prompt_asked(model_options)[0]]
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, pair["negative"], pair["positive"],
                                                self.cfg, model_options=model_options, seed=seed)


class PromptGuider(Guider):
    """Predicts x0 with the prompt that `prompted` asks for."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        model_options = model_options or {}
        name, embedding = prompt_asked(model_options)
        conds = self.conds[name]
        if embedding is not None:
            conds = [with_embedding(entry, embedding) for entry in conds]
        return calc_cond_batch(self.inner_model, [conds], x, timestep, model_options)[0]


def prompted(model, extra_args: dict, name: str, x: Tensor, sigma: Tensor, embedding: Tensor | None = None) -> Tensor:
    """x0 [B,C,…] of x at σ [B] under one prompt of the guider that runs this solver.

    An embedding [B, tokens, C] stands in for the prompt's own. The run ends here where the user cancelled it."""
    raise_if_cancelled()
    options = with_transformer(extra_args["model_options"], **{ASKED: (name, embedding)})
    return model(x, sigma, **{**extra_args, "model_options": options})


def prompt_asked(model_options: dict) -> tuple:
    """(name, embedding or None) that `prompted` asks of a guider."""
    return model_options["transformer_options"][ASKED]
