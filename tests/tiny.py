"""Small random models of every family, made of the host's own classes.

They sample in milliseconds and test the wiring. Their last layer is scaled down, so that trajectories stay bounded. A
round trip on them says little about a trained model. Every model is made in inference mode, as a loader node makes it.
"""
import dataclasses
import inspect

import comfy.latent_formats
import comfy.ldm.flux.model
import comfy.ldm.lumina.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import torch

DIM, POOLED = 64, 32  # widths of the text embeddings and of the pooled text
LAST_LAYERS = ("out.2.", "final_layer.linear.", "diffusion_model.proj_out.")


def fill(module, seed=0, output=1.0):
    """The host's layers skip initialisation. Fills every parameter and scales the last layer by `output`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim >= 2:
                normal(p, p[0].numel() ** -0.5)
            elif name.endswith(("weight", "scale")):
                p.fill_(1.0)
            else:
                normal(p, 0.05)
            if any(layer in name for layer in LAST_LAYERS):
                p.copy_((output * p.float()).to(p.dtype))
        for name, buffer in module.named_buffers():
            if "pos_embed" in name:
                normal(buffer, 0.05)
    return module


def patcher(make, config, dtype=torch.float32, output=0.2, seed=0, **unet):
    """A MODEL of a host model class. `unet` is set after the config class has written its own values."""
    config.unet_config.update(unet)
    config.set_inference_dtype(dtype, None if dtype.itemsize > 1 else torch.float16)
    device = comfy.model_management.get_torch_device()
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(fill(make(config), seed, output), load_device=device, offload_device=torch.device("cpu"))


def unet_config(depth, middle, out_depth, **kwargs):
    return {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "transformer_depth": depth, "transformer_depth_middle": middle,
            "transformer_depth_output": out_depth, "context_dim": DIM, "use_spatial_transformer": True,
            "use_linear_in_transformer": True, "legacy": False, "use_checkpoint": False, "adm_in_channels": None,
            "use_temporal_attention": False, "use_temporal_resblock": False, **kwargs}


@torch.inference_mode()
def sd15(**kwargs):
    """SD1.x: eps prediction, one head count, convolutions into the transformers."""
    config = comfy.supported_models.SD15(
        unet_config([1, 1], 1, [1, 1, 1, 1], use_linear_in_transformer=False))
    return patcher(comfy.model_base.BaseModel, config, num_heads=2, **kwargs)


@torch.inference_mode()
def sd2(**kwargs):
    """SD2.x at 768: v prediction, one head width, attention in fp32."""
    def make(config):
        return comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.V_PREDICTION)
    config = comfy.supported_models.SD20(unet_config([1, 1], 1, [1, 1, 1, 1]))
    return patcher(make, config, num_head_channels=32, **kwargs)


@torch.inference_mode()
def sdxl(**kwargs):
    """SDXL: no attention at the top level, two blocks in each transformer below, pooled text and sizes."""
    config = comfy.supported_models.SDXL(unet_config(
        [0, 2], 2, [0, 0, 2, 2], num_classes="sequential", adm_in_channels=POOLED + 6 * 256))
    return patcher(comfy.model_base.SDXL, config, num_head_channels=32, **kwargs)


@torch.inference_mode()
def flux(**kwargs):
    fields = {f.name for f in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": DIM,
        "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
        "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
        **({"txt_ids_dims": []} if "txt_ids_dims" in fields else {})})
    return patcher(comfy.model_base.Flux, config, **kwargs)


@torch.inference_mode()
def sd3(**kwargs):
    depth = 2  # the hidden size is 64 a block
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": DIM, "out_features": 64 * depth}}
    config = comfy.supported_models.SD3({
        "in_channels": 16, "patch_size": 2, "depth": depth, "input_size": None, "adm_in_channels": POOLED,
        "pos_embed_max_size": 16, "num_patches": 256, "context_embedder_config": embedder,
        "pos_embed_scaling_factor": None, "qk_norm": "rms"})
    return patcher(comfy.model_base.SD3, config, **kwargs)


@torch.inference_mode()
def qwen(**kwargs):
    """Qwen-Image, whose latents have five dimensions."""
    config = comfy.supported_models.QwenImage({
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "joint_attention_dim": DIM, "pooled_projection_dim": 32,
        "axes_dims_rope": (8, 12, 12)})
    return patcher(comfy.model_base.QwenImage, config, **kwargs)


@torch.inference_mode()
def zimage(**kwargs):
    """Z-Image, or Lumina 2 on a host without Z-Image."""
    known = inspect.signature(comfy.ldm.lumina.model.NextDiT.__init__).parameters
    unet = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 2,
            "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8, "qk_norm": True, "cap_feat_dim": DIM,
            "multiple_of": 32, "ffn_dim_multiplier": 2.0, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64],
            "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
    newest = getattr(comfy.supported_models, "ZImage", comfy.supported_models.Lumina2)
    if newest is comfy.supported_models.Lumina2:
        unet = {k: v for k, v in unet.items() if k not in ("z_image_modulation", "time_scale", "pad_tokens_multiple")}
    unet = {k: v for k, v in unet.items() if k in known or k == "image_model"}
    return patcher(Lumina2, newest(unet), **kwargs)


class Lumina2(comfy.model_base.Lumina2):
    """Adds the count of tokens, which an older host reads from the text encoder's mask."""

    def extra_conds(self, **kwargs):
        return super().extra_conds(**{"attention_mask": torch.ones(kwargs["cross_attn"].shape[:2], dtype=torch.long),
                                      **kwargs})


UNETS = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl}
FLOWS = {"flux": flux, "sd3": sd3, "qwen": qwen, "zimage": zimage}


def latent(model, batch=1, size=8, seed=3, std=1.0):
    """Random latents [B, C, (1,) size, size] in model space, as VAE Encode would give them for a picture."""
    kind = model.model.latent_format
    shape = (batch, kind.latent_channels, *[1] * (kind.latent_dimensions - 2), size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def cond(tokens=8, batch=1, pooled=True, seed=1):
    """A CONDITIONING of random embeddings [batch, tokens, DIM]. Families without a pooled text ignore it."""
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(batch, POOLED, generator=generator)} if pooled else {}
    return [[torch.randn(batch, tokens, DIM, generator=generator), extra]]


CLIP_CONFIG = {"num_hidden_layers": 2, "hidden_size": DIM, "num_attention_heads": 2, "intermediate_size": 128,
               "hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407,
               "projection_dim": DIM, "layer_norm_eps": 1e-5}


class ClipL(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, textmodel_json_config=dict(CLIP_CONFIG),
                         model_options=model_options or {}, return_projected_pooled=False)


class SD1Clip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=ClipL)


class SDXLClip(comfy.sdxl_clip.SDXLClipModel):
    """Two encoders of half the width, which together fit the small SDXL."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        half = {**CLIP_CONFIG, "hidden_size": DIM // 2, "num_hidden_layers": 3}  # the last layer but one is read
        options = model_options or {}
        common = {"layer": "hidden", "layer_idx": -2, "device": device, "dtype": dtype,
                  "layer_norm_hidden_state": False}
        self.clip_l = comfy.sd1_clip.SDClipModel(
            textmodel_json_config=dict(half), model_options={**options, "model_name": "clip_l"}, **common)
        self.clip_g = comfy.sd1_clip.SDClipModel(
            textmodel_json_config=dict(half), model_options={**options, "model_name": "clip_g"},
            special_tokens={"start": 49406, "end": 49407, "pad": 0}, return_projected_pooled=True, **common)
        self.dtypes = {dtype}


def _clip(tokenizer, model, embedding_directory):
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    made = comfy.sd.CLIP(target, embedding_directory=embedding_directory)
    fill(made.cond_stage_model)
    return made


@torch.inference_mode()
def clip(embedding_directory=None):
    """A CLIP with the real tokenizer and a text model of two layers, for `sd15` and `sd2`."""
    return _clip(comfy.sd1_clip.SD1Tokenizer, SD1Clip, embedding_directory)


@torch.inference_mode()
def sdxl_clip(embedding_directory=None):
    """SDXL's two encoders with the real tokenizers, for `sdxl`."""
    return _clip(comfy.sdxl_clip.SDXLTokenizer, SDXLClip, embedding_directory)


def encode(clip, text):
    """CLIP Text Encode."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@torch.inference_mode()
def taesd(channels=4):
    from comfy.taesd.taesd import TAESD
    return comfy.sd.VAE(sd=fill(TAESD(latent_channels=channels)).state_dict())


@torch.inference_mode()
def kl_vae():
    from comfy.ldm.models.autoencoder import AutoencoderKL
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
                "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    weights = fill(AutoencoderKL(ddconfig=ddconfig, embed_dim=4)).state_dict()
    return comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": ddconfig, "embed_dim": 4}})
