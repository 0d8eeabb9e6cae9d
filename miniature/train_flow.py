"""Trains the miniature flow model on the shipped autoencoder's latents, with the shipped U-Net as teacher.

    python tools/dev.py train --flow [--minutes 90] [--work FOLDER] [--out FOLDER]

The text encoder is the shipped one, frozen. At noise levels that the U-Net knows, its x0 is the target instead of the
scene: a scene's velocity is mostly noise that no network can know. Unfinished work is kept in `--work`, and a second
call continues it.
"""
from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as management
import comfy.ops
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock, apply_mod
from comfy.ldm.flux.math import apply_rope
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.util import make_beta_schedule
from safetensors.torch import save_file
from torch import nn

from . import train as whole
from .model import FLOW
from .networks import WORDS, Autoencoder, TextEncoder, flux_settings, new_unet

SCENES, RATE = 40_000, 1e-3


def attention(q, k, v, pe):
    """Plain softmax. For small maps on a CPU it trains faster than the fused kernel."""
    q, k = apply_rope(q, k, pe)
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -.5, -1)
    return (weights.to(v) @ v).transpose(1, 2).flatten(2)


class Double(DoubleStreamBlock):
    """The host's block without its writes in place, so that autograd can follow it."""
    def _qkv(self, x, mod, norm, attn):
        qkv = attn.qkv(apply_mod(norm(x), 1 + mod.scale, mod.shift))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (*attn.norm(q, k, v), v)

    def forward(self, img, txt, vec, pe, **_):
        image, text = self.img_mod(vec), self.txt_mod(vec)
        parts = zip(self._qkv(txt, text[0], self.txt_norm1, self.txt_attn),
                    self._qkv(img, image[0], self.img_norm1, self.img_attn))
        found = attention(*(torch.cat(p, 2) for p in parts), pe)
        of_text, of_image = found.split([txt.shape[1], img.shape[1]], 1)
        img = img + image[0].gate * self.img_attn.proj(of_image)
        img = img + image[1].gate * self.img_mlp(apply_mod(self.img_norm2(img), 1 + image[1].scale, image[1].shift))
        txt = txt + text[0].gate * self.txt_attn.proj(of_text)
        txt = txt + text[1].gate * self.txt_mlp(apply_mod(self.txt_norm2(txt), 1 + text[1].scale, text[1].shift))
        return img, txt


class Single(SingleStreamBlock):
    """As Double."""
    def forward(self, x, vec, pe, **_):
        mod, _ = self.modulation(vec)
        both = self.linear1(apply_mod(self.pre_norm(x), 1 + mod.scale, mod.shift))
        qkv, mlp = both.tensor_split([3 * self.hidden_size], -1)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        found = attention(*self.norm(q, k, v), v, pe)
        return x + mod.gate * self.linear2(torch.cat((found, self.mlp_act(mlp)), 2))


def new_flow(device="cpu"):
    """The host's Flux with fresh weights, in fp32, for training: x (B, 4, H, W), σ (B,), text (B, n, 128) to v."""
    net = Flux(**flux_settings(), dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init)
    for name, p in net.named_parameters():
        if p.ndim == 1:
            nn.init.constant_(p, float("norm" in name))
        elif any(part in name for part in ("mod.lin", "modulation", "final_layer", "vector_in")):
            nn.init.zeros_(p)
        else:
            nn.init.xavier_uniform_(p)
    for block in net.double_blocks:
        block.__class__ = Double
    for block in net.single_blocks:
        block.__class__ = Single
    net.vector_in.requires_grad_(False)  # it reads no pooled text
    return net


class Optimiser:
    """Muon for the blocks' matrices, AdamW for the rest, behind one face."""

    def __init__(self, net, rate: float):
        blocks = {p for name, p in net.named_parameters() if p.ndim == 2 and "_blocks." in name and "mod" not in name}
        rest = [p for p in net.parameters() if p not in blocks]
        self.each = [torch.optim.Muon([p for p in net.parameters() if p in blocks], rate, weight_decay=1e-2,
                                      adjust_lr_fn="match_rms_adamw"),
                     torch.optim.AdamW(rest, rate, betas=(.9, .98), weight_decay=1e-2, fused=True)]
        self.param_groups = [g for each in self.each for g in each.param_groups]

    def step(self):
        for each in self.each:
            each.step()

    def state_dict(self):
        return [each.state_dict() for each in self.each]

    def load_state_dict(self, states):
        for each, state in zip(self.each, states):
            each.load_state_dict(state)
        self.param_groups = [g for each in self.each for g in each.param_groups]


def flow_loss(latents, rows, null, text, teacher, batch: int):
    """Squared error of v at logit-normal levels σ, most of them high, where shapes form. Drops 10 % of the captions."""
    alphas = torch.cumprod(1 - torch.as_tensor(make_beta_schedule("linear", 1000, .00085, .012)).double(), 0).float()
    ratios = (1 / alphas - 1).sqrt()

    def loss(net, g):
        device = next(net.parameters()).device
        index = torch.randint(0, len(latents), (batch,), generator=g)
        words = torch.where(torch.rand(batch, 1, generator=g) < .1, null, rows[index]).to(device)
        clean = latents[index].float()
        noise, ratio = torch.randn(clean.shape, generator=g), torch.exp(torch.randn(batch, generator=g) + .8)
        known = ratio < ratios[-1]
        level = (ratios - ratio[:, None]).abs().argmin(1)
        ratio = torch.where(known, ratios[level], ratio)
        sigma = (ratio / (1 + ratio)).to(device)
        clean, noise, known, a, s = (t.to(device) for t in (clean, noise, known, alphas[level], sigma))
        a, s = a.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)
        x, wanted = (1 - s) * clean + s * noise, noise - clean
        with torch.no_grad():
            read = text(words)
            noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
            options = {} if device.type == "cuda" else {"optimized_attention_override": whole.math_attention}
            eps = teacher(noisy[known], level.to(device)[known].float(), context=read[known],
                          transformer_options=options).float()
            taught = (noisy[known] - (1 - a[known]).sqrt() * eps) / a[known].sqrt()
            wanted[known] = (x[known] - taught) / s[known]
        return (net(x, sigma, read[:, :WORDS]).float() - wanted).square().mean()
    return loss


@contextmanager
def gradients():
    """The host's rotary embedding has a gradient only in training."""
    before, management.in_training = getattr(management, "in_training", False), True
    try:
        yield
    finally:
        management.in_training = before


def train(minutes: float, work: Path, out: Path = whole.HERE, count: int = SCENES):
    """Trains on `count` scenes for `minutes` of computing and saves the weights in `out`. Returns the loss curve."""
    device = management.get_torch_device()
    batch, vocab = (64 if device.type == "cuda" else 32), whole.vocabulary()
    work.mkdir(parents=True, exist_ok=True)
    given, (pictures, drawn) = whole.shipped(vocab), whole.make_scenes(count, work)
    ae, teacher, text = Autoencoder(), new_unet(), TextEncoder(len(vocab))
    for part, net in (("ae", ae), ("unet", teacher), ("text", text)):
        net.load_state_dict(given[part])
        net.to(device).requires_grad_(False)
    z = whole.kept(work / "flow_latents.pt",
                   lambda: whole._through(lambda x: ae.enc(whole.to_input(x, device)).float(), pictures, device).half())
    z = (z.float() - ae.mean.cpu()) / ae.std.cpu()
    rows = whole.token_rows([s.caption() for s in drawn], vocab)
    net = new_flow(device)
    loss = flow_loss(z, rows, whole.token_rows([""], vocab), text, teacher, batch)
    with gradients():
        fit = whole.Fit("flow", net, loss, minutes, RATE, work, Optimiser(net, RATE))
        save_file(whole._half(fit.run()), out / FLOW.name)
    return fit.curve
