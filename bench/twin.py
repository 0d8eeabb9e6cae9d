"""diffusers' side of a comparison: its U-Net or Flux with a host model's weights, prompts from a table, schedulers."""
from types import SimpleNamespace

import comfy.utils
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "timestep_spacing": "leading"}  # the host's ddim_uniform, on eps and v models


def unet(model, size=8) -> UNet2DConditionModel:
    """diffusers' network with the weights of a host model of SD1.x's kind. size: the latents' side, for pipelines."""
    config = model.model.model_config.unet_config
    blocks, widths = config["num_res_blocks"][0], [config["model_channels"] * m for m in config["channel_mult"]]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config["transformer_depth"][::blocks]]
    heads = [width // config["num_head_channels"] if config["num_heads"] == -1 else config["num_heads"]
             for width in widths]
    made = UNet2DConditionModel(
        sample_size=size, block_out_channels=widths, layers_per_block=blocks, cross_attention_dim=config["context_dim"],
        attention_head_dim=heads, down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)]).eval()
    weights = model.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(config)
    made.load_state_dict({theirs: weights[ours].clone() for theirs, ours in names.items() if ours in weights})
    return made


def flux(model) -> FluxTransformer2DModel:
    """diffusers' Flux with the weights of a host model, whose mlp_ratio is 4."""
    config, weights = model.model.model_config.unet_config, model.model.diffusion_model.state_dict()
    made = FluxTransformer2DModel(
        in_channels=4 * config["in_channels"], num_layers=config["depth"], num_attention_heads=config["num_heads"],
        num_single_layers=config["depth_single_blocks"], attention_head_dim=sum(config["axes_dim"]),
        joint_attention_dim=config["context_in_dim"], pooled_projection_dim=config["vec_in_dim"],
        guidance_embeds=config["guidance_embed"], axes_dims_rope=config["axes_dim"]).eval()
    found = {}
    for theirs, ours in comfy.utils.flux_to_diffusers(config).items():
        ours, cut, change = (*ours, None, None)[:3] if isinstance(ours, tuple) else (ours, None, None)
        if theirs in made.state_dict():
            value = weights.get(ours, weights.get(ours.replace("_norm.weight", "_norm.scale")))
            value = value if cut is None else value.narrow(*cut)
            found[theirs] = (change(value) if change else value).clone()
    made.load_state_dict(found)
    return made


class Prompts(torch.nn.Module):
    """A pipeline's tokenizer and text encoder in one, which look up a text.

    table: text -> embeddings [1, tokens, width].
    lengths: text -> number of its tokens from BOS to EOS.
    """
    model_max_length = 77
    dtype, device, config, added_tokens_encoder = torch.float32, torch.device("cpu"), SimpleNamespace(), {}

    def __init__(self, table, lengths=None):
        super().__init__()
        self.texts, self.embeddings, self.lengths = list(table), list(table.values()), lengths or {}

    def tokenize(self, text):
        return []

    def forward(self, asked, **kwargs):
        if torch.is_tensor(asked):
            return (torch.cat([self.embeddings[i] for i in asked[:, 0].tolist()]),)
        texts = [asked] if isinstance(asked, str) else asked
        rows = torch.tensor([self.texts.index(text) for text in texts])
        return SimpleNamespace(input_ids=rows[:, None].expand(-1, self.embeddings[0].shape[1]),
                               length=torch.tensor([self.lengths.get(text, 2) for text in texts]))


def z_of(x, sigma):
    """The DDIM latent z of a latent x of the host's samplers."""
    return x / (1 + sigma ** 2) ** 0.5
