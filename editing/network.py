"""The MODEL as methods that learn along a trajectory ask it (inversion/pivotal_tuning.py says what each call gives)."""
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..host.batch import repeat_to_batch_size
from ..host.guiders import prompted
from ..host.network import resolutions, with_added, with_widths_measured
from ..inversion.trajectory import Inversion, Theta
from .attention_loss import with_maps_recorded
from .layers import parse_layers, self_attention_layers
from .word_maps import nearest_resolution


class Network:
    """Answers between `begin`, which the run's solver calls, and the end of that run."""

    def __init__(self, model, inversion: Inversion, prompts: Mapping[str, list]):
        self.model, self.inversion, self.prompts = model, inversion, prompts

    def begin(self, denoise: Callable[..., Tensor], extra_args: dict, path: list[Tensor]):
        """denoise(x, sigma, **extra_args) gives x0; the network's tensors lie where the path's do."""
        self.denoise, self.extra_args, self.path = denoise, extra_args, path

    def guided(self, x, sigma):
        return self.denoise(x, sigma, **self.extra_args)

    def x0(self, prompt, x, sigma, embedding=None, options=None):
        extra_args = self.extra_args if options is None else {**self.extra_args, "model_options": options}
        return prompted(self.denoise, extra_args, prompt, x, sigma, embedding)

    def embedding(self, prompt):
        embedding = self.prompts[prompt][0][0]
        return repeat_to_batch_size(embedding, self.inversion.batch).clone().to(self.path[0])

    def pooled(self, prompt):
        pooled = self.prompts[prompt][0][1].get("pooled_output")
        return {} if pooled is None else {"pooled": Theta(pooled.float().cpu()[None].clone(), "run", "prediction")}

    def cross_attention(self, resolution):
        nearest = nearest_resolution(self.model, resolution)
        return [address for address, r in resolutions(self.model.model.diffusion_model).items()
                if r == nearest and address[0] != "middle"]

    def with_values(self, addresses, x, sigma, scale, shift):
        maps = []
        options = with_maps_recorded(self.extra_args["model_options"], addresses, maps)
        options = options if shift is None else with_added(options, shift, scale=scale)
        return self.x0("source", x, sigma, options=options), maps

    def self_attention(self, layers, default):
        unet = self.model.model.diffusion_model
        return parse_layers(layers, unet) or default(self_attention_layers(unet))

    @torch.no_grad()
    def widths(self, x, sigma):
        found = {}
        self.x0("source", x, sigma, options=with_widths_measured(self.extra_args["model_options"], found))
        return found

    def with_contents(self, x, sigma, contents):
        return self.x0("source", x, sigma, options=with_added(self.extra_args["model_options"], contents=contents))
