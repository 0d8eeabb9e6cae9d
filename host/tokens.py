"""Words and tokens of a prompt, from the CLIP object's own tokenizer, and prompts encoded as rows of one CONDITIONING.

For the alignment words are split as Prompt-to-Prompt's authors split them: at the whitespace of the prompt without its
weight syntax. To be named they are split at punctuation too, which belongs to none: "a cat,dog." has the words a, cat
and dog.
"""
import hashlib
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important

CLIP_ENCODERS = {"l", "g", "h"}  # SD1.x: l; SD2.x: h; SDXL: l and g


@dataclass(frozen=True)
class Word:
    """A word and the positions of its tokens in the whole sequence, all chunks joined."""
    text: str
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the word is called by: in lower case, without punctuation at its ends."""
        return _name(self.text)


@dataclass(frozen=True)
class Tokens:
    """A prompt as the text encoder reads it.

    ids, weights: of every position. Each chunk (77 tokens) has its own BOS, EOS and padding. An embedding's vectors
    have negative ids, equal for equal vectors.
    words: the alignment's, to which all other positions belong.
    named: the words that can be named, without punctuation; files of older versions have none.
    """
    text: str
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    words: tuple[Word, ...]
    named: tuple[Word, ...] = field(default=(), compare=False)

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

    ValueError: a text encoder other than CLIP's, or encoders that put the words at different positions.
    """
    encoder, sequence = _sequence(clip, text, length)
    ids = tuple(_id(token) for token, _, _ in sequence)
    content = [i for i, (_, _, word) in enumerate(sequence) if word]
    words = [[(part, _part_ids(clip, part, encoder)) for part in parts] for parts in _split(text)]
    read = [i for parts in words for _, own in parts for i in own]
    if read != [ids[p] for p in content]:
        raise ValueError(f'the tokenizer reads "{text}" as {len(content)} tokens and its words one by one as '
                         f"{len(read)} other ones: write the prompt in plain characters")
    places, whole, named = iter(content), [], []
    for parts in words:
        pieces = [(piece, marks, tuple(next(places) for _ in range(count)))
                  for part, own in parts for piece, marks, count in _pieces(clip, part, own, encoder)]
        whole.append(_joined(pieces))
        lone = all(marks for _, marks, _ in pieces)  # an "&" between spaces is a word
        named += [_joined(list(run)) for marks, run in groupby(pieces, lambda piece: piece[1]) if lone or not marks]
    whole, named = (tuple(word for word in found if word.positions) for found in (whole, named))
    return Tokens(text, ids, tuple(float(weight) for _, weight, _ in sequence), whole, named)


def tokenize_rows(clip, texts: Sequence[str]) -> tuple[Tokens, ...]:
    """The tokens of several prompts, all as long as the longest, so that they can be rows of one CONDITIONING."""
    tokens = [tokenize(clip, text) for text in texts]
    length = max(len(t.ids) for t in tokens)
    return tuple(t if len(t.ids) == length else tokenize(clip, t.text, length) for t in tokens)


def encode(clip, tokens: tuple[Tokens, ...]) -> list:
    """A CONDITIONING with one row a prompt, each encoded alone. It carries `tokens` as "palimpsest_tokens"."""
    rows = []
    for t in tokens:
        pairs = {name: [[(token, weight) for token, weight, _ in chunk] for chunk in chunks]
                 for name, chunks in _host_tokens(clip, t.text, len(t.ids)).items()}
        rows.append(clip.encode_from_tokens_scheduled(pairs))
    conditioning = []
    for entries in zip(*rows):  # several only where hooks schedule the CLIP
        extra = {**entries[0][1], "palimpsest_tokens": tokens}
        if extra.get("pooled_output") is not None:
            extra["pooled_output"] = torch.cat([entry["pooled_output"] for _, entry in entries])
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


def parse_word_values(text: str) -> dict[str, float]:
    """{"lion": 0.4, "default": 1.0} from "lion: 0.4, default: 1.0" (names as typed, lower case)."""
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
        if name in values:
            raise ValueError(f'"{name}" has two values, {values[name]:g} and {value:g}: give each word one, '
                             'and call the second of two equal words "cat#2"')
        values[name] = value
    return values


def _name(text):
    text = text.strip().lower()
    return text.strip(string.punctuation) or text


def _is_mark(character):
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _pieces(clip, part, ids, encoder):
    """[(text, whether it is punctuation, count of tokens)] of a part of a word. A hyphen, apostrophe or underscore
    inside a word is its own, as is the point of a number."""
    if part.startswith("embedding:"):
        name, vectors = part.rstrip(","), sum(i < 0 for i in ids)
        return [(name, False, vectors), (part[len(name):], True, len(ids) - vectors)]
    kinds = [_is_mark(c) and not (re.fullmatch(r"\w[-'’_]\w|\d\.\d", part[max(0, i - 1):i + 2]))
             for i, c in enumerate(part)]
    cuts = [(marks, "".join(c for c, _ in run)) for marks, run in groupby(zip(part, kinds), lambda pair: pair[1])]
    if len(cuts) == 1:
        return [(part, cuts[0][0], len(ids))]
    own = [_part_ids(clip, text, encoder) for _, text in cuts]
    if sum(own, []) != ids:
        return [(part, False, len(ids))]  # a token lies across
    return [(text, marks, len(found)) for (marks, text), found in zip(cuts, own)]


def _joined(pieces):
    return Word("".join(text for text, _, _ in pieces), sum((places for _, _, places in pieces), ()))


def _host_tokens(clip, text, length=0):
    """{encoder: [[(token, weight, word id or 0), …] a chunk]}, with empty chunks appended up to `length` positions."""
    encoders, empty = (clip.tokenize(t, return_word_ids=True) for t in (text, ""))
    return {name: chunks + empty[name] * (length // len(empty[name][0]) - len(chunks))
            for name, chunks in encoders.items()}


def _sequence(clip, text, length):
    """(encoder, its (token, weight, word id) at every position). ValueError unless all
    encoders agree on the positions."""
    encoders = {name: sum(chunks, []) for name, chunks in _host_tokens(clip, text, length).items()}
    if not encoders.keys() <= CLIP_ENCODERS:
        raise ValueError(f"this CLIP has the text encoders {', '.join(encoders)}, and words are found in l, g and h "
                         "only: load the CLIP of an SD1.x, SD2.x or SDXL model")
    layouts = {name: [bool(word) for _, _, word in sequence] for name, sequence in encoders.items()}
    first, *others = layouts
    for other in others:
        a, b = layouts[first], layouts[other]
        if a != b:
            raise ValueError(f'"{text}" takes {sum(a)} of {len(a)} tokens in encoder {first} and {sum(b)} of {len(b)} '
                             f"in {other}, so a word has no one position: use embeddings made for both encoders, and "
                             "encoders of equal length")
    return first, encoders[first]


def _split(text):
    """The words, each as the parts the host tokenises apart: "a (red:1.2)dish" is [["a"], ["red", "dish"]].

    The host reads "embedding: name" as one embedding.
    """
    words, inside = [], False
    for segment, _ in token_weights(escape_important(text), 1.0):
        for run in re.findall(r"\s+|embedding:\s+\S+|\S+", unescape_important(segment)):
            blank = run.isspace()
            if not blank and inside:
                words[-1].append(run)
            elif not blank:
                words.append([run])
            inside = not blank
    return words


def _part_ids(clip, part, encoder):
    """A part's ids, tokenised alone: whitespace separates CLIP's tokens, so they are those it has in the prompt."""
    literal = part.replace("(", r"\(").replace(")", r"\)")
    chunks = clip.tokenize(literal, return_word_ids=True)[encoder]
    return [_id(token) for chunk in chunks for token, _, word in chunk if word]


def _id(token):
    if not torch.is_tensor(token):
        return int(token)
    digest = hashlib.sha256(token.detach().float().cpu().numpy().tobytes()).digest()
    return -1 - int.from_bytes(digest[:6], "big")


def require_columns(tokens, embedding):
    """The tokens of a prompt must be those of all the columns of its embedding [rows, columns, channels]."""
    if embedding.shape[1] != len(tokens[0].ids):
        raise ValueError(f"{tokens[0].text!r} has {len(tokens[0].ids)} tokens and its CONDITIONING "
                         f"{embedding.shape[1]} columns: another node appended some, as Conditioning (Concat) does; "
                         "write it all in one text of Prompt Edit.")
