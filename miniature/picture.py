"""Pictures of a training run: the loss curve and a grid of samples."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import scenes


def loss_curve(curve: list[tuple[int, float]], path: Path, width: int = 640, height: int = 320):
    """Draws (step, loss) pairs as an SVG, with a logarithmic axis for the loss."""
    steps, losses = np.array(curve, float).T
    low, high = losses.min() * .97, losses.max() * 1.03
    x = 60 + (width - 80) * steps / steps.max()
    y = 20 + (height - 60) * np.log(high / losses) / np.log(high / low)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
    marks = "".join(f'<text x="54" y="{24 + (height - 60) * i / 3:.1f}" text-anchor="end">{v:.3f}</text>'
                    for i, v in enumerate(np.geomspace(high, low, 4)))
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                    f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{marks}'
                    f'<text x="{width - 20}" y="{height - 18}" text-anchor="end">{int(steps.max())} steps</text>'
                    f'<text x="60" y="{height - 18}">weighted eps error of the U-Net</text>'
                    f'<polyline points="{points}" fill="none" stroke="#2255cc" stroke-width="1.5"/></svg>\n')


def sample(model, clip, vae, captions: list[str], steps: int = 50, cfg: float = 3., seed: int = 0) -> torch.Tensor:
    """Pictures (B, 128, 128, 3) of captions, sampled with the host's DDIM on ddim_uniform, a flow model with Euler on
    simple.

    All captions are sampled in one run, as rows of one CONDITIONING.
    """
    import comfy.model_base
    import comfy.sample
    encode = clip.encode_from_tokens_scheduled
    rows = [encode(clip.tokenize(c))[0] for c in captions]
    pooled = torch.cat([r[1]["pooled_output"] for r in rows])
    positive = [[torch.cat([r[0] for r in rows]), {**rows[0][1], "pooled_output": pooled}]]
    channels = model.model.latent_format.latent_channels
    latent = torch.zeros(len(captions), channels, scenes.SIZE // 8, scenes.SIZE // 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    flow = isinstance(model.model, comfy.model_base.Flux)
    out = comfy.sample.sample(model, noise, steps, cfg, *(("euler", "simple") if flow else ("ddim", "ddim_uniform")),
                              positive, encode(clip.tokenize("")), latent, seed=seed, disable_pbar=True)
    return vae.decode(out)


def sheet(pictures: torch.Tensor, columns: int) -> Image.Image:
    """Pictures (B, H, W, 3) in 0..1 on one sheet, `columns` in a row."""
    rows = [torch.cat(list(row), 1) for row in pictures.split(columns)]
    return Image.fromarray((torch.cat(rows).clamp(0, 1) * 255).round().byte().cpu().numpy())


def sample_grid(path: Path, weights: Path, columns: int = 8, rows: int = 4):
    """Saves samples of held-out captions. Under each row stand the rendered scenes of the same captions."""
    from .model import load_miniature
    drawn = [scenes.held_out_scene(i) for i in range(columns * rows)]
    made = sample(*load_miniature(weights), [s.caption() for s in drawn])
    truth = torch.stack([torch.from_numpy(scenes.render(s)) for s in drawn])
    both = [part for i in range(0, len(drawn), columns) for part in (made[i:i + columns], truth[i:i + columns])]
    sheet(torch.cat(both), columns).save(path, quality=90)
