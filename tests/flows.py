"""The host's flow networks, asked without the host's sampling: x_t = (1 - σ)·x0 + σ·noise, v = noise - x0."""
import torch

from joint import TODAY

FRAMES = 3 if TODAY else 1  # an older host's Qwen-Image knows pictures alone


def velocity(model, prompt, **options):
    """v(x, σ) of a small Flux, SD3 or Qwen-Image under a CONDITIONING and the host's transformer_options."""
    (text, extra), = prompt  # of one row
    sampling, network = model.get_model_object("model_sampling"), model.model.diffusion_model
    more = {"guidance": torch.tensor([3.5])} if hasattr(network, "guidance_in") else {}

    def v(x, sigma):
        rows = {"context": text.expand(len(x), -1, -1), "y": extra["pooled_output"].expand(len(x), -1)}
        return network(x, sampling.timestep(sigma.expand(len(x))), **rows, **more, transformer_options=options)
    return v


def starts(model, percent):
    """The σ of a share of the schedule."""
    return float(model.get_model_object("model_sampling").percent_to_sigma(percent))
