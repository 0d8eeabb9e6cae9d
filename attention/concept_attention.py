"""ConceptAttention: Diffusion Transformers Learn Highly Interpretable Features. Helbling, Meral, Hoover, Yanardag,
Chau, ICML 2025. arXiv:2502.04320

Concepts c_1..c_n, words that need not stand in the prompt, pass through the blocks beside the prompt's tokens p and
the picture's x, with the weights of the prompt's stream. They look up the picture and each other, and nothing looks up
them, so the picture stays as it is:

    o_x, o_p = softmax([q_x; q_p] [k_x; k_p]ᵀ / √d) [v_x; v_p]    o_c = softmax(q_c [k_x; k_c]ᵀ / √d) [v_x; v_c]

A concept's map is how its output agrees with those of the picture, over heads and channels, among all concepts:

    φ = softmax over concepts of o_x · o_c

in the mean over blocks (on Flux the last four with two streams, 15 to 18 of 19) and steps. A concept is embedded alone,
and its first token stands for it.
Differs from the paper: the picture is read along an INVERSION, at each of its levels, where theirs gets new noise at
one. Concepts have the pooled text of the source's prompt, theirs on Flux has zeros. On other families layers are ours.
The authors' SD3 code compares o_x that looked up the concepts, and a token of padding, in the prompt's place; here it
is the formula's, as on Flux. On Flux.2 they put all concepts where the last token but one stands, here they stand
behind the text, and divide the mean scores by 1000 before the softmax.
Checked against: helblazer811/ConceptAttention@db30c4d (no licence; run beside ours on a small Flux, SD3 and Flux.2 of
equal weights, numbers in tests/data/concept_attention.json) and, on all families, attention by one masked softmax.
"""
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..editing.editor import require_plain
from ..editing.run import attach
from ..editing.sites import AttentionEdit
from ..editing.word_maps import Mean, word_layers_of
from ..host.keys import running
from ..host.network import text_filled, text_runs
from ..host.sampling import Solver, sample
from ..host.tokens import Tokens, Word, encode, tokenize
from ..inversion.grid import report_step
from ..inversion.trajectory import Inversion
from .maps import Attention

NAME = "Concept Attention"


@dataclass
class Seen:
    """At one level.

    outputs: o_x, at the site that computes.
    keys, values: of concepts and picture, there.
    maps: φ, the mean over blocks so far.
    """
    outputs: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    maps: Mean = field(default_factory=Mean)


@dataclass(frozen=True, eq=False)
class Concepts(AttentionEdit):
    """The last columns of the text are concepts, which nothing but themselves looks up.

    count: how many.
    columns: of the text with them.
    layers: the addresses of the blocks whose outputs are compared.
    normalise: whether o_c has length 1.
    """
    State = Seen
    count: int
    columns: int
    layers: Collection[tuple]
    normalise: bool
    name = NAME
    words_too = True

    def acts(self, run, site, sigma):
        return site.joint and site.kind in ("cross", "beside")

    def attend(self, rows, site, q, k, v, source, attention):
        seen, (first, _, _) = rows.call.run.state(self), *text_runs(rows.call.network, self.columns, k.shape[1])
        ours = slice(first + self.columns - self.count, first + self.columns)

        def without(x):
            return torch.cat([x[:, :ours.start], x[:, ours.stop:]], 1)

        if site.kind == "cross":  # of the picture; its own keys stand last
            seen.keys, seen.values = (torch.cat([x[:, ours], x[:, -q.shape[1]:]], 1) for x in (k, v))
            seen.outputs = attention(q, without(k), without(v))  # o_x, Eq. 8
            return seen.outputs
        found = attention(q[:, ours], seen.keys, seen.values)  # o_c, Eq. 7
        if site.address in self.layers:
            o_c = F.normalize(found.float(), dim=-1) if self.normalise else found.float()
            maps = (o_c @ seen.outputs.float().transpose(1, 2)).softmax(1)  # φ, Eq. 11
            seen.maps.add(maps.unflatten(2, site.grid), rows, site)
        asked = attention(without(q), without(k), without(v))
        return torch.cat([asked[:, :ours.start], found, asked[:, ours.start:]], 1)


def embedded(clip, concepts: Sequence[str]) -> Tensor:
    """[n, channels]: the first token of each concept, read by itself."""
    rows = []
    for concept in concepts:
        tokens = tokenize(clip, concept)
        (text, _), *_ = encode(clip, (tokens,))
        rows.append(text[0, tokens.words[0].positions[0]])
    return torch.stack(rows)


def with_concepts(conditioning: list, concepts: Tensor, network) -> list:
    """A CONDITIONING whose text has concepts [n, channels] behind it, and names no words any more. The network's text
    is filled up first, so that no token before the concepts has another place."""
    longer = []
    for text, extra in conditioning:
        if text.shape[2] != concepts.shape[1]:
            raise ValueError(f"{NAME}'s CLIP gives its concepts {concepts.shape[1]} channels, and the INVERSION's "
                             f"prompt has {text.shape[2]}: connect the CLIP that encoded the source.")
        extra = {name: value for name, value in extra.items() if name != "palimpsest_tokens"}
        if extra.get("attention_mask") is not None:
            extra["attention_mask"] = F.pad(extra["attention_mask"], (0, len(concepts)), value=1)
        text = F.pad(text, (0, 0, text_filled(network, text.shape[1]), 0))
        longer.append([torch.cat([text, concepts.to(text).expand(len(text), -1, -1)], 1), extra])
    return longer


def read_concepts(model, inversion: Inversion, concepts: dict[str, Tensor], layers: Collection[tuple],
                  normalise=False) -> Attention:
    """The maps of some concepts, along the inversion's trajectory.

    concepts: {their names: their embeddings [channels]}.
    """
    require_plain(model, NAME)
    conditioning = with_concepts(inversion.conditioning, torch.stack([*concepts.values()]),
                                 model.model.diffusion_model)
    editor = Concepts(len(concepts), conditioning[0][0].shape[1], layers, normalise)
    noise, steps = inversion.at(float(inversion.sigmas[0])), []  # an error where no trajectory was kept

    def solver(denoise, x, sigmas, extra_args, callback, disable):
        state = running(extra_args["model_options"]).state(editor)
        for i in range(len(sigmas) - 1):
            latents = inversion.latents[i].to(x)
            state.maps = Mean()
            x0 = denoise(latents, sigmas[i].repeat(len(latents)), **extra_args)
            steps.append(state.maps.value.cpu())
            report_step(callback, i, latents, sigmas[i], x0)
        return x

    sample(attach(model, editor), conditioning, noise, inversion.sigmas, Solver(solver))
    maps, size = torch.stack(steps), tuple(inversion.shape[-2:])
    words = tuple(Word(name, (i,)) for i, name in enumerate(concepts))
    tokens = Tokens(", ".join(concepts), tuple(range(len(words))), (1.0,) * len(words), words)
    side = maps.shape[-2] / size[0]
    return Attention((tokens,) * inversion.batch, maps, tuple(inversion.sigmas[:-1].tolist()), size, side, side,
                     maps.mean(0), layers=word_layers_of(model), source=inversion.tokens or ())
