"""Words that are other ones in each layer of the network, in each stage of sampling, or in both.

A stage is a range of the schedule; all are equally long in the network's timesteps, and the noisiest is the first. A
layer is a transformer of the U-Net with its cross-attention. A prompt with such a word has one entry a stage, which the
host chooses by σ, and in it what every layer reads (host/layered.py).
"""
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..host.concept_files import tables, with_words
from ..host.layered import Place, added, layered
from .concepts import NewWord, Theta, WordAt, WordTable

STEPS = 1000  # the timesteps that networks were trained with


@dataclass(frozen=True)
class WordSpace(NewWord):
    """A new word with vectors of its own for each stage and layer. Base of the papers' ways to learn one.

    stages: how many.
    in_layers: whether each layer has its own.
    """
    stages: ClassVar[int] = 1
    in_layers: ClassVar[bool] = False

    def begin(self, start, layers, generator):
        return {encoder: v.repeat(self.stages, layers if self.in_layers else 1, 1, 1) for encoder, v in start.items()}

    def at(self, theta, stage, generator=None):
        return WordAt({encoder: v[stage] for encoder, v in theta.items()})

    def table(self, theta: Theta, places: tuple[Place, ...]) -> WordTable:
        """What was learned."""
        vectors, added = ({encoder: torch.stack([one[encoder] for one in found]).detach().cpu().clone()
                           for encoder in found[0]}
                          for found in zip(*(self.at(theta, stage) for stage in range(self.stages))))
        return WordTable(vectors, places if self.in_layers else (), added)


def edges(stages: int) -> list[float]:
    """The percents at which stages begin and end. Between two timesteps, so that a step lies in one stage alone."""
    inner = (1 - (STEPS * (1 - n / stages) - 0.5) / (STEPS - 1) for n in range(1, stages))
    return [0.0, *inner, 1.0]


def stage_of(sampling, sigma: float, stages: int) -> int:
    """The stage of σ. sampling: the host's model_sampling."""
    return sum(sigma < float(sampling.percent_to_sigma(edge)) for edge in edges(stages)[1:-1])


def in_stages(entries: Sequence[list], bounds: Sequence[float]) -> list:
    """A CONDITIONING of one entry a stage, of its own each. Neighbours that are the same entry become one."""
    found: list = []
    for entry, start, end in zip(entries, bounds, bounds[1:]):
        if found and found[-1][0] is entry:
            found[-1][2] = end
        else:
            found.append([entry, start, end])
    if len(found) == 1:
        return [found[0][0]]
    return [[rows, {**extras, "start_percent": start, "end_percent": end}] for (rows, extras), start, end in found]


def entry(clip, encode: Callable[[dict], Mapping], reads: Sequence[Mapping], held: Sequence[Mapping],
          words: Sequence[WordAt], places: tuple[Place, ...]) -> list:
    """One entry of a CONDITIONING. Its pooled text, where a model reads one, is the first place's.

    encode: what the CLIP makes of tokens.
    reads: the host's tokens of what each place reads, or of what all read.
    held: {encoder: [n,D]}, what the tokens hold for each of the words.
    """
    varied = [word.added for word in words if word.added]
    rows = [_spelled(tokens, held, words, n) for n, tokens in enumerate(reads)] * (2 if varied else 1)
    together = {key: [row for tokens in rows for row in tokens[key]] for key in rows[0]} if len(rows) > 1 else rows[0]
    with added(clip, _offsets(reads, held, words) if varied else {}):
        extras = dict(encode(together))
    embedding = extras.pop("cond")
    if not places:
        return [embedding, extras]
    return layered(embedding.unflatten(1, (len(rows), -1))[0], extras, places)[0]


def marks(shapes: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, Tensor]]:
    """What tokens hold for some words, of {encoder: (n, D)} each. No two vectors are the same."""
    return [{encoder: torch.arange(n)[:, None] + torch.full((n, width), 100.0 * (number + 1))
             for encoder, (n, width) in shape.items()} for number, shape in enumerate(shapes)]


def require_marks(text: str, tokens: Mapping, held: Mapping[str, Mapping[str, Tensor]]):
    """ValueError where a text has a word of {name: what tokens hold for it}, and its tokens hold nothing for it."""
    for name, mark in held.items():
        rows = ((row, v) for encoder, v in mark.items() for row in tokens.get(_key(encoder, tokens), ()))
        if _written([name]).search(text) and not any(_marked(row, v) for row, v in rows):
            raise ValueError(f"The caption {text!r} has embedding:{name}, and the CLIP's tokens of it have no vector "
                             "of that word, so that it could not learn: write blanks around it, and start ComfyUI "
                             "without node packs that change how prompts are read.")


def _spelled(tokens, held, words, layer) -> dict:
    """Tokens with the words' vectors in place of their marks."""
    if not words:
        return tokens
    found = {key: [list(row) for row in rows] for key, rows in tokens.items()}
    for mark, word in zip(held, words):
        for encoder, v in word.vectors.items():
            for row in found.get(_key(encoder, found), ()):
                for place, n in _marked(row, mark[encoder]):
                    row[place] = (v[layer % len(v), n], *row[place][1:])
    return found


def _key(encoder, tokens) -> str:
    """The host's short name of an encoder: "l" of "clip_l", "t5xxl" of itself."""
    return max((key for key in tokens if encoder.endswith(key)), key=len, default="")


def _marked(row, mark) -> list[tuple[int, int]]:
    """[(the place of a mark in a row of tokens, the number of its vector)]. The host may part a long word over two."""
    given = [(place, token.float().cpu()) for place, (token, *_) in enumerate(row) if torch.is_tensor(token)]
    return [(place, n) for place, token in given for n, own in enumerate(mark) if torch.equal(token, own)]


def _offsets(reads, held, words) -> dict[str, Tensor]:
    """What `added` takes: nothing for the rows of keys, the words' for those of values."""
    found: dict = {}
    for mark, word in zip(held, words):
        for encoder, v in word.added.items():
            key = _key(encoder, reads[0])
            rows = [(layer, row) for layer, tokens in enumerate(reads) for row in tokens[key]]
            held = found.get(encoder, v.new_zeros(2 * len(rows), len(rows[0][1]), v.shape[2]))
            for number, (layer, row) in enumerate(rows, len(rows)):
                for place, n in _marked(row, mark[encoder]):
                    at = torch.tensor([number], device=v.device), torch.tensor([place], device=v.device)
                    held = held.index_put(at, v[layer % len(v), n][None])
            found[encoder] = held
    return found


def prompt(clip, words: Mapping[str, WordTable], text: str, elsewhere: str | None = None,
           layers: frozenset[Place] | None = None, start: float = 0.0, end: float = 1.0) -> list:
    """The CONDITIONING of a text in which embedding:NAME is a word of `words`.

    elsewhere: the text in other layers than these, and outside of start and end. None takes the words out.
    """
    written, text = _written(words), apart(text, words)
    if not written.search(text):
        raise ValueError(f"The text {text!r} has none of the concept's words ({', '.join(words)}): write "
                         f"embedding:{next(iter(words))} where it stands.")
    _check(clip, words)
    held = marks([{encoder: v.shape[2:] for encoder, v in table.vectors.items()} for table in words.values()])
    clip = with_words(clip, dict(zip(words, held)))
    elsewhere = " ".join(written.sub("", text).split()) if elsewhere is None else apart(elsewhere, words)
    tokens = {one: clip.tokenize(one) for one in (text, elsewhere)}
    places = next((table.places for table in words.values() if table.places), ())
    stages = max(table.stages for table in words.values())
    bounds = edges(stages)
    if stages > 1:
        start, end = _snapped(bounds, start, end)
    bounds = sorted({*bounds, start, end})
    read = [tuple(text if start <= first < end and (layers is None or place in layers) else elsewhere
                  for place in places or (("", 0),)) for first in bounds[:-1]]
    if any(len({len(rows) for one in {*reads} for rows in tokens[one].values()}) > 1 for reads in read if places):
        raise ValueError(f"{text!r} and {elsewhere!r} are of different numbers of chunks of 75 tokens, and layers read "
                         "them side by side: write both shorter or both longer.")
    kept: dict = {}
    entries = []
    for stage, reads in enumerate(read):
        varied = any(map(written.search, reads))
        key = reads, stage if varied and stages > 1 else 0
        if key not in kept:
            at = places if varied or len(set(reads)) > 1 else ()
            kept[key] = entry(clip, partial(clip.encode_from_tokens, return_pooled=True, return_dict=True),
                              [tokens[one] for one in reads[:len(at) or 1]], held,
                              [table.at(stage) for table in words.values()] if varied else (), at)
        entries.append(kept[key])
    return in_stages(entries, bounds)


def apart(text: str, words) -> str:
    """A text with blanks around embedding:NAME of some words, which the host drops before other signs but commas."""
    return _written(words).sub(r" embedding:\1 ", text) if words else text


def _written(words):
    return re.compile(rf"embedding:({'|'.join(words)})(?![A-Za-z0-9_-])")


def _snapped(bounds, start, end) -> tuple:
    """The edges of stages that are nearest; around the stage in the middle where both are the same."""
    first, last = (min(bounds, key=lambda edge: abs(edge - p)) for p in (start, end))
    if first < last:
        return first, last
    after = next(i for i, edge in enumerate(bounds) if edge > (start + end) / 2)
    return bounds[after - 1], bounds[after]


def _check(clip, words):
    """ValueError where words do not fit the CLIP, or each other."""
    has = {key: part.transformer.get_input_embeddings().weight.shape[1] for key, (_, part) in tables(clip).items()}
    for name, table in words.items():
        needs = {encoder: v.shape[3] for encoder, v in table.vectors.items()}
        if not needs.items() <= has.items():
            raise ValueError(f"The word {name} has vectors of the widths {needs}, this CLIP's are {has}: load the CLIP "
                             "of the family that it was learned on.")
    for what in (lambda t: t.places, lambda t: t.stages if t.stages > 1 else 0):
        if len({what(table) for table in words.values()} - {(), 0}) > 1:
            raise ValueError(f"The words {', '.join(words)} were learned in different layers or stages, and one prompt "
                             "has one set of them: take words of one kind.")
