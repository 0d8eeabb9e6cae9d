"""The miniature's networks as they are trained. `model.py` puts them into the host's classes.

There are five: an 8x autoencoder, a CLIP-shaped text encoder over the words of the captions, the scene reader, and the
host's U-Net and Flux with small settings. Together they take under 30 MB in fp16.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .scenes import COLOURS, GROUNDS, MATERIALS, POSES, SHAPES, STYLES

CHANNELS = 4
"""Of the latent, in the shipped weights. The weights tell their own."""
UNET = dict(image_size=32, model_channels=64, num_res_blocks=[1, 1],
            channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_middle=1,
            transformer_depth_output=[1, 1, 1, 1], context_dim=128,
            use_spatial_transformer=True, use_linear_in_transformer=False, legacy=False)
FLUX = dict(in_channels=4, out_channels=4, vec_in_dim=1, context_in_dim=128, hidden_size=192, mlp_ratio=3.0,
            num_heads=6, depth=3, depth_single_blocks=6, axes_dim=[8, 12, 12], theta=10_000, patch_size=2,
            qkv_bias=True, guidance_embed=False, txt_ids_dims=[])
WORDS = 24
"""Rows of text that the flow model reads."""
HEADS = dict(num_heads=-1, num_head_channels=32)
CLIP = dict(num_hidden_layers=2, hidden_size=128, num_attention_heads=4, intermediate_size=256, hidden_act="quick_gelu",
            max_position_embeddings=77, eos_token_id=49407, layer_norm_eps=1e-5, model_type="clip_text_model")
OBJECT_HEADS = dict(shape=SHAPES, colour=tuple(COLOURS), material=MATERIALS, pose=POSES)
READER_HEADS = {**OBJECT_HEADS, **{f"{k}#2": v for k, v in OBJECT_HEADS.items()},
                "ground": GROUNDS, "style": STYLES, "count": ("0", "1", "2")}
SCALE = .18215


class Residual(nn.Module):
    def __init__(self, channels: int, ops=nn):
        super().__init__()
        self.n1 = ops.GroupNorm(8, channels)
        self.c1 = ops.Conv2d(channels, channels, 3, 1, 1)
        self.c2 = ops.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.c2.weight)
        nn.init.zeros_(self.c2.bias)

    def forward(self, x):
        return x + self.c2(F.silu(self.c1(F.silu(self.n1(x)))))


class Coder(nn.Module):
    """One half of the autoencoder. It gives the parameters their names, enc.f.* and dec.f.*."""
    def __init__(self, *layers):
        super().__init__()
        self.f = nn.Sequential(*layers)

    def forward(self, x):
        return self.f(x)


class Autoencoder(nn.Module):
    """Pictures (B, 3, H, W) in -1..1, with sides that are multiples of 8, to latents (B, z, H/8, W/8) and back.

    `encode` and `decode` use the host's latents. They have unit variance after the host's scaling by 0.18215.
    """
    def __init__(self, ops=nn, a: int = 64, b: int = 128, z: int = CHANNELS):
        super().__init__()
        conv, norm = ops.Conv2d, ops.GroupNorm
        wide, narrow = (lambda: Residual(a, ops)), (lambda: Residual(b, ops))
        self.enc = Coder(nn.PixelUnshuffle(4), conv(48, a, 3, 1, 1), wide(), wide(), conv(a, b, 4, 2, 1),
                         narrow(), narrow(), norm(8, b), nn.SiLU(), conv(b, z, 3, 1, 1))
        self.dec = Coder(conv(z, b, 3, 1, 1), narrow(), narrow(), narrow(), conv(b, a * 4, 3, 1, 1), nn.PixelShuffle(2),
                         wide(), wide(), wide(), norm(8, a), nn.SiLU(), conv(a, 48, 3, 1, 1), nn.PixelShuffle(4))
        self.register_buffer("mean", torch.zeros(1, z, 1, 1))
        self.register_buffer("std", torch.ones(1, z, 1, 1))

    def encode(self, x):
        return (self.enc(x) - self.mean.to(x)) / (self.std.to(x) * SCALE)

    def decode(self, z):
        return self.dec(z * (self.std.to(z) * SCALE) + self.mean.to(z))


class Attention(nn.Module):
    """Causal self-attention with a plain softmax. At this size the fused kernel's backward is slow on a CPU."""
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -.5
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return self.out_proj((logits.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width), Attention(width, heads)
        self.layer_norm2, self.mlp = nn.LayerNorm(width), MLP(width, hidden)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Twin of the host's CLIP text model over a compact vocabulary. It works out of place, so that it can be trained.

    Maps row numbers (B, 77) to hidden states (B, 77, 128) after the final norm.
    """
    def __init__(self, words: int, width: int = CLIP["hidden_size"]):
        super().__init__()
        self.token, self.pos = nn.Embedding(words, width), nn.Embedding(CLIP["max_position_embeddings"], width)
        self.layers = nn.ModuleList(Layer(width, CLIP["num_attention_heads"], CLIP["intermediate_size"])
                                    for _ in range(CLIP["num_hidden_layers"]))
        self.final = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight, std=.05)
        nn.init.normal_(self.pos.weight, std=.02)

    def forward(self, rows):
        x = self.token(rows) + self.pos.weight[:rows.shape[-1]]
        for layer in self.layers:
            x = layer(x)
        return self.final(x)


class ReaderNet(nn.Module):
    """Pictures (B, 3, 128, 128) in -1..1 to logits by head (`READER_HEADS`). "#2" is the right or lower object."""
    def __init__(self, a: int = 32, b: int = 64, c: int = 128):
        super().__init__()
        self.body = nn.Sequential(nn.PixelUnshuffle(4), *self._block(48, a), *self._block(a, b, 2), *self._block(b, b),
                                  *self._block(b, c, 2), *self._block(c, c), nn.Conv2d(c, 24, 1), nn.Flatten(),
                                  nn.Linear(24 * 64, 192), nn.ReLU())
        self.head = nn.Linear(192, sum(map(len, READER_HEADS.values())))

    @staticmethod
    def _block(before: int, after: int, stride: int = 1):
        return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()

    def forward(self, x):
        logits = self.head(F.dropout(self.body(x), .1, self.training))
        return dict(zip(READER_HEADS, logits.split([len(v) for v in READER_HEADS.values()], -1)))


def flux_settings() -> dict:
    """FLUX, as far as the host knows its names: 0.3.64 does not know all."""
    from comfy.ldm.flux.model import FluxParams
    return {name: value for name, value in FLUX.items() if name in FluxParams.__dataclass_fields__}


def new_unet(device="cpu", z: int = CHANNELS):
    """The host's U-Net for latents of z channels, with fresh weights (the host's own layers skip initialisation)."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    net = UNetModel(**UNET, **HEADS, in_channels=z, out_channels=z, dtype=torch.float32, device=device,
                    operations=comfy.ops.disable_weight_init)
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.Conv2d.reset_parameters(m) if isinstance(m, nn.Conv2d) else nn.Linear.reset_parameters(m)
        elif isinstance(m, (nn.GroupNorm, nn.LayerNorm)):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    for m in net.modules():
        last = {"ResBlock": "out_layers", "SpatialTransformer": "proj_out"}.get(type(m).__name__)
        if last:
            layer = getattr(m, last)
            nn.init.zeros_((layer[-1] if last == "out_layers" else layer).weight)
    nn.init.zeros_(net.out[-1].weight)
    return net
