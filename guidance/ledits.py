"""LEDITS++: Limitless Image Editing using Text-to-Image Models. Brack, Friedrich, Kornmeier, Tsaban, Schramowski,
Kersting, Passos, CVPR 2024. arXiv:2311.16711, the editing. (inversion/ledits.py holds its inversion.)

SEGA's guidance without momentum, γ = Σ s_e·M_e·ψ_e, where a concept's mask is the intersection of two:
    M¹: where its words' cross-attention in its own row, a mean over heads and layers at a quarter of the latent's side,
    summed
        over tokens and smoothed, reaches its λ-th percentile;
    M²: where |ψ_e|, summed over channels, reaches its own.
As in the authors' code (diffusers' LEditsPPPipelineStableDiffusion) M¹ stands alone in the first fifth of the schedule
(t > 800), and the smoothing is a Gaussian of variance 1/2 on 3 × 3 places. Their SDXL pipeline leaves M¹ out unless
asked; here the masks are those of the paper on every model. Checked against: diffusers 0.42.1, whole runs.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ..editing.masks import smoothed
from ..editing.predictions import asked_by
from ..editing.sites import Rows, Site
from ..editing.word_maps import on_whole_grid, word_maps
from ..host.unet import host_attention, resolutions
from .sega import SEGA, Concept, largest

ATTENTION_ALONE = 1 - 800.5 / 999  # percent of the schedule: t > 800


@dataclass(frozen=True, eq=False)
class Grounded(Concept):
    """A concept with the Tokens of its prompt's rows."""
    tokens: tuple = ()


@dataclass(frozen=True, eq=False)
class LEDITS(SEGA):
    """resolution: of the latent's side, the grid whose cross-attention is read."""
    momentum: float = 0.0
    beta: float = 0.0
    resolution: float = 0.25
    name = "LEDITS++"

    @staticmethod
    def install(model_options, edits, call):
        """model_options in which cross-attention at the editor's resolution is looked at."""
        editor, = edits
        options = model_options.copy()
        to = options["transformer_options"] = options["transformer_options"].copy()
        replace = to["patches_replace"] = dict(to.get("patches_replace", {}))
        slots = replace["attn2"] = dict(replace.get("attn2", {}))
        for position, share in resolutions(call.run.guider.inner_model.diffusion_model).items():
            if share == editor.resolution:
                inner = slots.get(position, slots.get(position[:2], host_attention))
                slots[position] = partial(editor.look, call, position, inner)
        return options

    def look(self, call, position, inner, q, k, v, options):
        """The site's output; the maps of the concepts' words go into the run's memory."""
        memory, parts = call.run.memory(self), call.parts(options)
        site = Site("cross", position, tuple(options["activations_shape"][-2:]), self.resolution, options["n_heads"])
        for (index, uuid, _, entry), *own in zip(parts, q.chunk(len(parts)), k.chunk(len(parts))):
            asked = asked_by(self, entry)
            if asked is not None:
                tokens, here = self.concepts[asked].tokens, {**options, "cond_or_uncond": [index], "uuids": [uuid]}
                words = [[sum((word.positions for word in t.words), ())] for t in tokens]
                rows = [words[i % len(words)] for i in range(len(own[0]))]
                maps, seen = word_maps(partial(_attention, here), site, *own, rows, len(tokens[0].ids)), torch.ones(())
                if "area" in entry:
                    maps, seen = on_whole_grid(maps, Rows(call, entry, len(maps)), site)
                memory.setdefault("maps", {}).setdefault(asked, []).append((maps[:, 0], seen))
        return inner(q, k, v, options)

    def region(self, run, concept, psi, sigma):
        maps, seen = map(sum, zip(*run.memory(self)["maps"].pop(self.concepts.index(concept))))
        maps = maps / seen.clamp(min=1)
        attended = F.interpolate(largest(smoothed(maps)[:, None], concept.threshold), psi.shape[-2:]).to(psi)  # nearest
        if not run.within(sigma, ATTENTION_ALONE, 1.0):
            return attended
        return attended * largest(psi.abs().sum(1, keepdim=True), concept.threshold)


def _attention(options, q, k, v):
    return host_attention(q, k, v, options)
