"""Small random transformers, made of the host's own classes. Most join words and picture in attention."""
import inspect

import comfy.ldm.chroma.model
import comfy.ldm.lumina.model
import comfy.model_base
import comfy.supported_models
import torch
from palimpsest.host.tokens import Tokens, Word

import tiny
from tiny import DIM, POOLED

STREAMS = {"hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
           "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True}
HUNYUAN = {"image_model": "hunyuan_video", "context_in_dim": DIM, "byt5": False, "meanflow": False,
           "meanflow_sum": False, "use_cond_type_embedding": False, "vision_in_dim": None}
TODAY = hasattr(comfy.supported_models, "ZImage")  # not ComfyUI 0.3.64


def known(made, config):
    """What a host's class takes of a configuration. An older one takes less."""
    names = inspect.signature(made).parameters
    return {name: value for name, value in config.items() if name in names or name == "image_model"}


@torch.inference_mode()
def chroma(**kwargs):
    config = comfy.supported_models.Chroma(known(comfy.ldm.chroma.model.ChromaParams, {
        **STREAMS, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": DIM,
        "patch_size": 2, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 2, "txt_ids_dims": [],
        "vec_in_dim": None}))
    return tiny.patcher(comfy.model_base.Chroma, config, **kwargs)


@torch.inference_mode()
def lumina2(**kwargs):
    """Two heads of queries look up one of keys."""
    config = comfy.supported_models.Lumina2(known(comfy.ldm.lumina.model.NextDiT, {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "n_layers": 2, "n_refiner_layers": 1,
        "n_heads": 2, "n_kv_heads": 1, "qk_norm": True, "cap_feat_dim": DIM, "multiple_of": 32,
        "ffn_dim_multiplier": 2.0, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64], "rope_theta": 10000.0}))
    return tiny.patcher(tiny.Lumina2, config, **kwargs)


def sd35_medium(**kwargs):
    """Its first block has attention of the picture alone too."""
    return tiny.sd3(x_block_self_attn_layers=[0], **kwargs)


@torch.inference_mode()
def aura_flow(**kwargs):
    config = comfy.supported_models.AuraFlow({
        "cond_seq_dim": DIM, "max_seq": 1024, "n_double_layers": 1, "n_layers": 3, "dim": 64, "n_heads": 2,
        "global_conddim": 64})
    return tiny.patcher(comfy.model_base.AuraFlow, config, **kwargs)


@torch.inference_mode()
def hunyuan_video(**kwargs):
    config = comfy.supported_models.HunyuanVideo({
        **STREAMS, **HUNYUAN, "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "theta": 256,
        "patch_size": [1, 2, 2], "guidance_embed": True})
    return tiny.patcher(comfy.model_base.HunyuanVideo, config, **kwargs)


@torch.inference_mode()
def hunyuan_image(**kwargs):
    """A token a cell. Its last layer is scaled up, for editors move it little."""
    kwargs.setdefault("output", 1.0)
    config = comfy.supported_models.HunyuanImage21({
        **STREAMS, **HUNYUAN, "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "axes_dim": [16, 16],
        "theta": 256, "patch_size": [1, 1], "guidance_embed": False})
    return tiny.patcher(comfy.model_base.HunyuanImage21, config, **kwargs)


@torch.inference_mode()
def hidream(**kwargs):
    config = comfy.supported_models.HiDream({
        "image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
        "num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [DIM, DIM],
        "text_emb_dim": POOLED, "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (16, 8, 8),
        "max_resolution": [32, 32], "llama_layers": [0, 1, 2]})
    return tiny.patcher(comfy.model_base.HiDream, config, **kwargs)


@torch.inference_mode()
def wan(**kwargs):
    config = comfy.supported_models.WAN21_T2V({
        "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "text_len": 16, "in_dim": 16, "dim": 64,
        "ffn_dim": 128, "freq_dim": 64, "text_dim": DIM, "out_dim": 16, "num_heads": 2, "num_layers": 2})
    return tiny.patcher(comfy.model_base.WAN21, config, **kwargs)


@torch.inference_mode()
def ltx_video(**kwargs):
    config = comfy.supported_models.LTXV({
        "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32,
        "num_attention_heads": 2, "caption_channels": DIM, "num_layers": 2})
    return tiny.patcher(LTXV, config, **kwargs)


@torch.inference_mode()
def flux2(**kwargs):
    """A token a cell. Its text is filled up to 512 from the left. Its last layer is scaled up too."""
    kwargs.setdefault("output", 1.0)
    config = comfy.supported_models.Flux2({
        **STREAMS, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
        "context_in_dim": DIM, "axes_dim": [8, 8, 8, 8], "theta": 2000, "patch_size": 1, "qkv_bias": False,
        "guidance_embed": True, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True,
        "ops_bias": False})
    return tiny.patcher(comfy.model_base.Flux2, config, **kwargs)


class LTXV(comfy.model_base.LTXV):
    """Adds the mask of the text's padding, which its text encoder gives."""

    def extra_conds(self, **kwargs):
        mask = torch.ones(kwargs["cross_attn"].shape[:2], dtype=torch.long)
        return super().extra_conds(**{"attention_mask": mask, **kwargs})


JOINT = {"flux": tiny.flux, "chroma": chroma, "qwen": tiny.qwen, "zimage": tiny.zimage, "lumina2": lumina2,
         "sd3": tiny.sd3, "sd35 medium": sd35_medium, "auraflow": aura_flow, "hidream": hidream, "wan": wan,
         "ltx video": ltx_video,
         **({"hunyuan video": hunyuan_video, "hunyuan image": hunyuan_image, "flux2": flux2} if TODAY else {})}


# those in which words are found
WORDS = {name: made for name, made in JOINT.items() if name != "ltx video"}
VIDEO, CELLS = ("hunyuan video", "wan", "ltx video"), ("hunyuan image", "flux2", "ltx video")  # CELLS: a token a cell


def cond(tokens=8, batch=1, seed=1):
    """A CONDITIONING for all of them."""
    (embedding, extra), = tiny.cond(tokens, batch, seed=seed)
    llama = torch.randn(batch, 3, tokens, DIM, generator=torch.Generator().manual_seed(seed))
    return [[embedding, {**extra, "conditioning_llama3": llama}]]


def worded(family, *prompts, seed=None, columns=None):
    """A CONDITIONING with a row for each prompt, whose words have a token each, in HiDream in two streams. Words behind
    the last column have none. Equal prompts are equal rows, where no seed is given."""
    length, width = columns or 1 + max(len(prompt.split()) for prompt in prompts), 128 if family == "hidream" else 0
    rows, tokens = [], []
    for i, prompt in enumerate(prompts):
        rows += cond(width or length, seed=sum(prompt.encode()) if seed is None else seed + i)
        words = tuple(Word(word, (i, width + i) if width else (i,)) for i, word in enumerate(prompt.split()[:length]))
        ids = [0] * (width + length)
        for word in words:
            for position in word.positions:
                ids[position] = sum(word.text.encode())
        tokens.append(Tokens(prompt, tuple(ids), (1.0,) * len(ids), words,
                             streams=(width, length) if width else (length,)))
    extra = {name: torch.cat([row[1][name] for row in rows]) for name in rows[0][1]}
    extra["conditioning_llama3"] = extra["conditioning_llama3"][:, :, :length]
    return [[torch.cat([row[0] for row in rows]), {**extra, "palimpsest_tokens": tuple(tokens)}]]


def latent(family, model, batch=1, size=(8, 8), seed=3):
    """Random latents [B, C, (frames,) height, width] of a picture, or of a video of three frames."""
    kind = model.model.latent_format
    frames = [] if kind.latent_dimensions == 2 else [3] if family in VIDEO else [1]
    shape = batch, kind.latent_channels, *frames, *size
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
