"""Loads the miniature into the host's own classes."""
from __future__ import annotations

from functools import partial
from pathlib import Path

import comfy.clip_model
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import torch
from safetensors.torch import load_file

from .networks import CLIP, HEADS, SCALE, UNET, WORDS, Autoencoder, flux_settings
from .scenes import SIZE

WEIGHTS, FLOW = (Path(__file__).with_name(f"{name}.safetensors") for name in ("miniature", "flow"))
PATCHER = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
CLIP_NAMES = {"token.": "embeddings.token_embedding.", "pos.": "embeddings.position_embedding.",
              "layers.": "encoder.layers.", "final.": "final_layer_norm."}


def load_miniature(weights: Path = WEIGHTS) -> tuple:
    """The miniature as the host's (MODEL, CLIP, VAE). The host chooses devices and precisions.

    Each call builds new objects, so that workflows do not share a model.
    """
    state = load_file(weights)
    return _model(weights), _clip(_part(state, "text."), state["vocab"]), _vae(_part(state, "ae."))


def load_flow_miniature(weights: Path = FLOW) -> tuple:
    """The flow model with the miniature's text encoder and autoencoder, as `load_miniature` gives them. Its CLIP reads
    `WORDS` tokens at a time."""
    state = load_file(WEIGHTS)
    clip = _clip(_part(state, "text."), state["vocab"], WORDS)
    return _flow_model(weights), clip, _vae(_part(state, "ae."))


def _part(state: dict, prefix: str) -> dict:
    return {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}


class Latents(comfy.latent_formats.LatentFormat):
    """Latents of any number of channels. preview (z + 1, 3): the colours of each channel, and the grey."""
    scale_factor = SCALE

    def __init__(self, preview: torch.Tensor):
        self.latent_channels = len(preview) - 1
        self.latent_rgb_factors, self.latent_rgb_factors_bias = preview[:-1].tolist(), preview[-1].tolist()


class _Config(comfy.supported_models.SD15):
    def inpaint_model(self):
        """No. The host takes an SD1.x model with more than 4 channels for one."""
        return False


def _model(weights: Path, disable_dynamic: bool = False):
    whole = load_file(weights)
    state = _part(whole, "unet.")
    config = _Config({**UNET, "use_checkpoint": False, "adm_in_channels": None, "use_temporal_attention": False,
                      "use_temporal_resblock": False})
    channels = state["input_blocks.0.0.weight"].shape[1]
    config.unet_config.update(HEADS, in_channels=channels, out_channels=channels)
    config.side = SIZE
    if "preview" in whole:
        config.latent_format = Latents(whole["preview"])
    return _patcher(config, state, _model, weights, disable_dynamic)


class _FlowConfig(comfy.supported_models.Flux):
    latent_format = comfy.latent_formats.SD15
    sampling_settings = {"shift": 0.0}


def _flow_model(weights: Path, disable_dynamic: bool = False):
    settings, state = flux_settings(), load_file(weights)
    if "txt_ids_dims" not in settings:  # ComfyUI 0.3.64 has another name for the norms' weights
        state = {name.replace("_norm.weight", "_norm.scale"): value for name, value in state.items()}
    config = _FlowConfig({"image_model": "flux", **settings})
    config.side = SIZE
    return _patcher(config, state, _flow_model, weights, disable_dynamic)


def _patcher(config, state: dict, again, weights: Path, disable_dynamic: bool):
    """A MODEL of the host's class. again: the function that the host calls to load it for another device."""
    management = comfy.model_management
    device, count = management.get_torch_device(), sum(v.numel() for v in state.values())
    dtype = management.unet_dtype(model_params=count, supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model({}, "", device=management.unet_inital_load_device(count, dtype))
    model.diffusion_model.load_state_dict(state)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else PATCHER
    patcher = kind(model.eval(), load_device=device, offload_device=management.unet_offload_device())
    patcher.cached_patcher_init = (again, (weights,))    # lets the host rebuild the model for another device
    return patcher


class _ClipL(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, length=CLIP["max_position_embeddings"]):
        super().__init__(device=device, dtype=dtype, max_length=length, return_projected_pooled=False,
                         textmodel_json_config={**CLIP, "max_position_embeddings": length},
                         model_options=model_options or {})


class _Clip(comfy.sd1_clip.SD1ClipModel):
    vocab: frozenset[int]

    def __init__(self, device="cpu", dtype=None, model_options=None, **length):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {},
                         clip_model=partial(_ClipL, **length))


def _clip(state: dict, vocab: torch.Tensor, length: int = CLIP["max_position_embeddings"]):
    """length: the tokens of a chunk."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, partial(_Clip, length=length))
    clip = comfy.sd.CLIP(target, tokenizer_data={"clip_l_max_length": length})
    rows = state["token.weight"].float()
    table = rows.mean(0).repeat(49408, 1)    # words that no caption uses get the mean
    table[vocab] = rows
    full = {new + k[len(old):]: v for old, new in CLIP_NAMES.items() for k, v in state.items() if k.startswith(old)}
    full["embeddings.token_embedding.weight"] = table
    full["embeddings.position_embedding.weight"] = full["embeddings.position_embedding.weight"][:length]
    clip.cond_stage_model.clip_l.transformer.text_model.load_state_dict(full)
    clip.cond_stage_model.vocab = frozenset(vocab.tolist())
    return clip


def unknown(clip, ids) -> list[bool]:
    """Which of some token ids are one and the same to a CLIP: the miniature's lacks most. Embeddings' are negative."""
    text_model = clip.cond_stage_model
    return [isinstance(text_model, _Clip) and i >= 0 and i not in text_model.vocab for i in ids]


def _vae(state: dict):
    """The host's VAE, set up as for its tiny autoencoder, but with our network in it."""
    channels = state["mean"].shape[1]
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict(), dtype=torch.float32)
    net = Autoencoder(comfy.ops.manual_cast, z=channels)
    net.load_state_dict(state)
    vae.first_stage_model, offload = net.eval().requires_grad_(False), vae.patcher.offload_device
    getattr(comfy.model_management, "archive_model_dtypes", lambda net: None)(net)    # ComfyUI 0.3.64 does not have it
    vae.patcher = PATCHER(net, load_device=vae.device, offload_device=offload)
    size = comfy.model_management.dtype_size
    vae.memory_used_encode = lambda shape, dtype: 300 * shape[2] * shape[3] * size(dtype)
    vae.memory_used_decode = lambda shape, dtype: 300 * 64 * shape[2] * shape[3] * size(dtype)
    vae.size = comfy.model_management.module_size(net)
    return vae
