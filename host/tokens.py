"""Words and tokens of a prompt, and prompts encoded as rows of one CONDITIONING.

For the alignment words are split as Prompt-to-Prompt's authors split them: at the whitespace of the prompt without its
weight syntax. To be named they are split at punctuation too, which belongs to none: "a cat,dog." has the words a, cat
and dog.
"""
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from .text_encoders import Piece, host_tokens, streams


@dataclass(frozen=True)
class Word:
    """A word and the positions of its tokens in the whole sequence, all chunks and streams joined."""
    text: str
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the word is called by: in lower case, without punctuation at its ends."""
        return _name(self.text)


@dataclass(frozen=True)
class Tokens:
    """A prompt as its text encoders read it, a position for each column of its CONDITIONING.

    ids, weights: of every position. Each of CLIP's chunks (77 tokens) has its own BOS, EOS and padding. An embedding's
    vectors have negative ids, equal for equal vectors.
    words: the alignment's. Other positions are the frame: BOS, EOS, padding and a chat template.
    named: the words that can be named, without punctuation; files of older versions have none.
    streams: where other encoders than CLIP's read it, how many positions each encoder has; they follow each other, and
    a word has tokens in each.
    """
    text: str
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    words: tuple[Word, ...]
    named: tuple[Word, ...] = field(default=(), compare=False)
    streams: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "named", self.named or self.words)

    def find(self, name: str) -> Word:
        """The word called `name`: all its occurrences as one ("cat"), or only the n-th ("cat#2").
        ValueError lists the words."""
        numbered = re.fullmatch(r"(.+)#(\d+)", name.strip())
        text, number = (numbered[1], int(numbered[2])) if numbered else (name, None)
        found = [word for word in self.named if word.name == _name(text)]
        if found and number is None:
            return Word(found[0].text, sum((word.positions for word in found), ()))
        if number and number <= len(found):
            return found[number - 1]
        listed = ", ".join(word.name for word in self.named) or "none"
        raise ValueError(f'"{name.strip()}" names no word of "{self.text}", which has "{_name(text)}" {len(found)} '
                         f'times: choose from its words ({listed}). Spaces and punctuation separate words. "cat" is '
                         'every "cat", "cat#2" the second.')


def tokenize(clip, text: str, length: int = 0) -> Tokens:
    """The tokens of a prompt, with the host's own empty chunks appended up to `length` positions.

    ValueError: as `streams`.
    """
    read = streams(clip, text, length)
    lengths = [len(stream.ids) for stream in read]
    starts = [sum(lengths[:i]) for i in range(len(read))]
    whole, named = [], []
    for word in zip(*(stream.words for stream in read)):
        pieces = _together(word, starts)
        whole.append(_joined(pieces))
        lone = all(piece.marks for piece in pieces)  # an "&" between spaces is a word
        named += [_joined(list(run)) for marks, run in groupby(pieces, lambda piece: piece.marks) if lone or not marks]
    whole, named = (tuple(word for word in found if word.positions) for found in (whole, named))
    ids, weights = (sum(of_all, ()) for of_all in zip(*((stream.ids, stream.weights) for stream in read)))
    return Tokens(text, ids, weights, whole, named, () if read[0].chunked else tuple(lengths))


def tokenize_rows(clip, texts: Sequence[str]) -> tuple[Tokens, ...]:
    """The tokens of several prompts, all as long as the longest, so that they can be rows of one CONDITIONING."""
    tokens = [tokenize(clip, text) for text in texts]
    length = max(len(t.ids) for t in tokens)
    for t in tokens:
        if t.streams and len(t.ids) < length:
            raise ValueError(f'"{t.text}" has {len(t.ids)} tokens and another prompt {length}, which this text encoder '
                             "does not fill up, so they cannot share a batch: give each a Prompt Edit of its own")
    return tuple(t if len(t.ids) == length else tokenize(clip, t.text, length) for t in tokens)


def encode(clip, tokens: tuple[Tokens, ...]) -> list:
    """A CONDITIONING with one row a prompt, each encoded alone. It carries `tokens` as "palimpsest_tokens"."""
    rows = []
    for t in tokens:
        pairs = {name: [[(token, weight) for token, weight, _ in chunk] for chunk in chunks]
                 for name, chunks in host_tokens(clip, t.text, len(t.ids)).items()}
        rows.append(clip.encode_from_tokens_scheduled(pairs))
    conditioning = []
    for entries in zip(*rows):  # several only where hooks schedule the CLIP
        extra = {**entries[0][1], "palimpsest_tokens": tokens}
        for name in ("pooled_output", "attention_mask", "conditioning_llama3", "conditioning_byt5small"):
            given = [entry.get(name) for _, entry in entries]
            if any(one is not None for one in given):
                shapes = [None if one is None else one.shape[1:] for one in given]
                if len({*shapes}) > 1:  # a text in quotation marks, which HunyuanImage reads apart
                    raise ValueError(f"Of the {len(given)} prompts each carries another {name} ({shapes[0]}, …), and "
                                     "one batch has one: encode one prompt at a time, or quote as much in each.")
                extra[name] = torch.cat(given)
        conditioning.append([torch.cat([cross for cross, _ in entries]), extra])
    return conditioning


def find_in_some(name: str, prompts: Sequence[Tokens]) -> list[Word | None]:
    """The word called `name` in each of the prompts, None in those that lack it; ValueError where all do."""
    found, unknown = [], None
    for tokens in prompts:
        try:
            found.append(tokens.find(name))
        except ValueError as error:
            found.append(None)
            unknown = error
    if unknown and not any(found):
        raise unknown
    return found


def present_words(names: str, prompts: Sequence[Tokens]) -> tuple[list[list[Word]], list[str]]:
    """For each prompt those words of a list like "cat, dog#2" that it has, and the names that no prompt has."""
    columns: dict[str, list[Word | None]] = {}
    for name in filter(str.strip, re.split(r"[,\n]", names)):
        try:
            columns[name] = find_in_some(name, prompts)
        except ValueError:
            columns[name] = [None] * len(prompts)
    return (_rows(columns.values(), len(prompts)),
            [name for name, column in columns.items() if not any(column)])


def parse_words(names: str, prompts: Sequence[Tokens]) -> list[list[Word]]:
    """For each prompt its words that a list like "cat, dog#2" names, in the list's order; none from an empty list.

    ValueError: a name that no prompt has, or a prompt that has none of the names.
    """
    wanted = [name for name in re.split(r"[,\n]", names) if name.strip()]
    rows = _rows([find_in_some(name, prompts) for name in wanted], len(prompts))
    for tokens, words in zip(prompts, rows):
        if wanted and not words:
            tokens.find(wanted[0])  # says that it is not there
    return rows


def _rows(columns: Iterable[list[Word | None]], count: int) -> list[list[Word]]:
    """The words of each of `count` prompts, from the columns that find_in_some gives."""
    columns = list(columns)
    return [[word for column in columns if (word := column[i])] for i in range(count)]


def parse_word_values(text: str, least=float("-inf"), most=float("inf")) -> dict[str, float]:
    """{"lion": 0.4, "default": 1.0} from "lion: 0.4, default: 1.0" (names as typed, lower case). ValueError on a number
    below `least` or above `most`."""
    values = {}
    for item in filter(str.strip, re.split(r"[,\n]", text)):
        name, _, number = (part.strip().lower() for part in item.rpartition(":"))
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not name or not abs(value) < float("inf"):
            raise ValueError(f'"{item.strip()}" is no word with a number: write "word: number" and commas between, '
                             'as in "lion: 0.4, default: 1.0"')
        if not least <= value <= most:
            raise ValueError(f'"{item.strip()}" gives {value:g}, where numbers from {least:g} to {most:g} have a '
                             'meaning: write one of them')
        if name in values:
            raise ValueError(f'"{name}" has two values, {values[name]:g} and {value:g}: give each word one, '
                             'and call the second of two equal words "cat#2"')
        values[name] = value
    return values


def _name(text):
    text = text.strip().lower()
    return text.strip(string.punctuation) or text


def _together(word, starts):
    """The pieces of a word, with the positions of all streams, each of which begins somewhere. Where they cut it
    otherwise it is one piece."""
    moved = [[piece._replace(positions=tuple(p + start for p in piece.positions)) for piece in pieces]
             for pieces, start in zip(word, starts)]
    if any([piece.text for piece in pieces] != [piece.text for piece in moved[0]] for pieces in moved[1:]):
        moved = [[Piece("".join(piece.text for piece in pieces), all(piece.marks for piece in pieces),
                        sum((piece.positions for piece in pieces), ()))] for pieces in moved]
    return [same[0]._replace(positions=sum((piece.positions for piece in same), ())) for same in zip(*moved)]


def _joined(pieces):
    return Word("".join(piece.text for piece in pieces), sum((piece.positions for piece in pieces), ()))


def require_columns(tokens, embedding, extra):
    """The tokens of a prompt must be those of all the columns of its embedding [rows, columns, channels], and of
    Llama's beside it in the entry's `extra`."""
    columns = embedding.shape[1]
    if extra.get("conditioning_llama3") is not None and len(tokens[0].streams) > 1:
        columns += extra["conditioning_llama3"].shape[2]
    if columns != len(tokens[0].ids):
        raise ValueError(f"{tokens[0].text!r} has {len(tokens[0].ids)} tokens and its CONDITIONING {columns} columns: "
                         "another node appended some, as Conditioning (Concat) does, or the MODEL is of another "
                         "family than the CLIP; write it all in one text of Prompt Edit.")
