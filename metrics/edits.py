"""How well a picture was edited: what changed, what stayed, and the best that the autoencoder allows."""
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import background_mask
from .pixels import changed_share, psnr, ssim, tiles

CHANGED = .1
"""A pixel counts as changed if one of its channels differs by more than this share of the range."""


def ideal_edit(source: Tensor, target: Tensor, mask: Tensor, encode: Callable[[Tensor], Tensor],
               decode: Callable[[Tensor], Tensor]) -> Tensor:
    """The best that a blend in latent space can give: the exact target's latent inside the mask, the source's outside.

    source, target: pictures (B, H, W, C) in 0..1
    mask: the edit's area (B, H, W) in 0..1
    encode: pictures to latents (B, ..., h, w)
    decode: latents to pictures

    A latent cell takes the highest mask value of the pixels that it covers. Outside the mask the result differs from
    the source by the decoder's smear. No method that blends latents avoids the smear, so measure it beside every edit.
    """
    latent = encode(source)
    cells = F.adaptive_max_pool2d(mask[:, None], latent.shape[-2:])
    cells = cells.reshape(len(mask), *[1] * (latent.ndim - 3), *latent.shape[-2:]).to(latent)
    return decode(cells * encode(target) + (1 - cells) * latent)


def edit_scores(edited: Sequence[Mapping[str, str]], source: Sequence[Mapping[str, str]],
                wanted: Sequence[Mapping[str, str]]) -> tuple[Tensor, Tensor]:
    """Success and kept of N edits, two float64 tensors [N].

    edited: what a reader sees (attribute -> name) in each edited picture
    source: what it sees in the source's autoencoder round trip, so that the autoencoder's own errors do not count
    wanted: the attributes that each edit had to change, with their new names

    Success is 1 if every wanted attribute reads as wanted, else 0. Kept is the share of the other attributes that read
    as in the round trip. It is nan if the edit names them all.
    """
    if not len(edited) == len(source) == len(wanted):
        raise ValueError(f"{len(edited)} edited readings, {len(source)} of sources, {len(wanted)} wishes: give one of "
                         "each for every edit")
    success = [all(e.get(name) == value for name, value in w.items()) for e, w in zip(edited, wanted)]
    kept = [[e.get(name) == value for name, value in s.items() if name not in w]
            for e, s, w in zip(edited, source, wanted)]
    shares = [sum(k) / len(k) if k else torch.nan for k in kept]
    return torch.tensor(success, dtype=torch.double), torch.tensor(shares, dtype=torch.double)


def edit_numbers(source: Tensor, edited: Tensor, reconstruction: Tensor | None = None, target: Tensor | None = None,
                 mask: Tensor | None = None,
                 tick: Callable[[int, int], object] = lambda done, total: None) -> dict[str, Tensor]:
    """The numbers of an edit that need only pictures, name -> [B]. An input that is None leaves its numbers out.

    Pictures are (B, H, W, C) and the edit mask is (B, H, W), in 0..1. A single picture serves the whole batch.

    psnr, ssim: edited against source
    background_psnr, background_ssim: the same outside the mask, grown by two latent cells
    target_psnr, target_mask_psnr: edited against the exact target, whole and inside the mask
    reconstruction_psnr, reconstruction_ssim: reconstruction against source
    changed: share of the pixels that changed by more than CHANGED
    edit_share, background_share: share of the picture in the mask, where grey counts in part, and in the background

    To the other numbers all that is above 0 is inside the mask.

    tick(done, total) is called before each tile is measured. It may raise to stop.
    """
    measures = dict(psnr=(psnr, edited, source), ssim=(ssim, edited, source),
                    changed=(changed_share, edited, source, CHANGED))
    shares = {}
    if mask is not None:
        background = background_mask(mask)
        measures |= dict(background_psnr=(psnr, edited, source, background),
                         background_ssim=(ssim, edited, source, background))
        shares = {f"{name}_share": m.mean((1, 2), dtype=torch.double)
                  for name, m in (("edit", mask), ("background", background))}
    if reconstruction is not None:
        measures |= dict(reconstruction_psnr=(psnr, reconstruction, source),
                         reconstruction_ssim=(ssim, reconstruction, source))
    if target is not None:
        measures["target_psnr"] = (psnr, edited, target)
        if mask is not None:
            measures["target_mask_psnr"] = (psnr, edited, target, (mask > 0).float())
    rows = [max(len(t) for t in given if isinstance(t, Tensor)) for _, *given in measures.values()]
    done, total = count(), sum(rows) * len(tiles(*source.shape[1:3]))
    numbers = {name: measure(*given, tick=lambda: tick(next(done), total))
               for name, (measure, *given) in measures.items()} | shares
    batch = max(len(n) for n in numbers.values())
    return {name: n.expand(batch) for name, n in numbers.items()}
