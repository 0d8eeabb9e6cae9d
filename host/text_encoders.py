"""Where the words of a prompt stand among the columns of its CONDITIONING, read off the CLIP object's own tokenizers.

CLIP's tokens never cross a space, so a word has the tokens that it has alone. The tokens of other text encoders may
begin with the space before. There a word ends where the tokens of the prompt up to its end do. A chat template around
the prompt is what the empty prompt has, too.
"""
import hashlib
import re
import string
import unicodedata
from functools import cache
from itertools import groupby
from os.path import commonprefix
from typing import NamedTuple

import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important

CLIP_ENCODERS = {"l", "g", "h"}  # SD1.x: l; SD2.x: h; SDXL: l and g
MODULES = {"l": "clip_l", "g": "clip_g"}  # of the text model, where they have not the encoder's name
COLUMNS = {  # {all of a CLIP's encoders: those whose tokens are columns, in their order}
    ("l", "t5xxl"): ("t5xxl",), ("t5xxl",): ("t5xxl",), ("g", "l", "t5xxl"): ("l", "t5xxl"),
    ("g", "l", "llama", "t5xxl"): ("t5xxl", "llama"), ("l", "llama"): ("llama",),
    **{(name,): (name,) for name in ("qwen25_7b", "qwen3_4b", "qwen3_8b", "mistral3_24b", "gemma2_2b", "pile_t5xl",
                                     "umt5xxl")}}
HEADLESS = ("l", "llama"), ("qwen25_7b",)  # whose columns begin behind the head of their chat template
BESIDE = {"byt5"}  # an encoder whose tokens are no columns: of quoted text, in HunyuanImage
MODELS = ("SD1.x, SD2.x, SDXL, SD3, Flux, Flux.2, Chroma, Qwen-Image, Z-Image, Lumina 2, AuraFlow, HiDream, "
          "HunyuanImage, HunyuanVideo, Wan and LTX-Video")


class Piece(NamedTuple):
    """A part of a word.

    marks: whether it is punctuation.
    positions: of its tokens.
    """
    text: str
    marks: bool
    positions: tuple[int, ...]


class Stream(NamedTuple):
    """What one text encoder reads.

    words: those of the prompt, between its spaces, in their pieces.
    chunked: whether only CLIP reads it, so that empty chunks can follow.
    """
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    words: list[list[Piece]]
    chunked: bool = False


def streams(clip, text: str, length: int = 0) -> list[Stream]:
    """The tokens of a prompt by the encoder that reads them, in the order of their columns. length: as in host_tokens.

    ValueError: text encoders that are not known, or CLIP's where they put the words at different positions."""
    found = {name: sum(chunks, []) for name, chunks in host_tokens(clip, text, length).items()}
    names = tuple(sorted(found.keys() - BESIDE))
    if set(names) <= CLIP_ENCODERS:
        return [_clip_stream(clip, text, found)._replace(chunked=True)]
    if names not in COLUMNS:
        raise ValueError(f"this CLIP has the text encoders {', '.join(names)}, and words are found in those of "
                         f"{MODELS} only: load the CLIP of such a model")
    present = {name for name in names
               if getattr(getattr(clip, "cond_stage_model", None), MODULES.get(name, name), True) is not None}
    chosen = [name for name in COLUMNS[names] if name in present or name == "l" and "g" in present]
    clips = {name: sequence for name, sequence in found.items() if name in CLIP_ENCODERS}
    return [_clip_stream(clip, text, clips) if name in CLIP_ENCODERS else
            _stream(clip, text, name, found[name], names in HEADLESS) for name in chosen]


def host_tokens(clip, text, length=0) -> dict[str, list]:
    """{encoder: [[(token, weight, word id or 0), …] a chunk]}, of CLIP alone with empty chunks appended up to `length`
    positions."""
    encoders, empty = (clip.tokenize(t, return_word_ids=True) for t in (text, ""))
    if not encoders.keys() <= CLIP_ENCODERS:
        return encoders
    return {name: chunks + empty[name] * (length // len(empty[name][0]) - len(chunks))
            for name, chunks in encoders.items()}


def _clip_stream(clip, text, encoders: dict[str, list]) -> Stream:
    layouts = {name: [bool(word) for _, _, word in sequence] for name, sequence in encoders.items()}
    first, *others = layouts
    for other in others:
        a, b = layouts[first], layouts[other]
        if a != b:
            raise ValueError(f'"{text}" takes {sum(a)} of {len(a)} tokens in encoder {first} and {sum(b)} of {len(b)} '
                             f"in {other}, so a word has no one position: use embeddings made for both encoders, and "
                             "encoders of equal length")
    ids = [_id(token) for token, _, _ in encoders[first]]
    content = [i for i, inside in enumerate(layouts[first]) if inside]
    words = [[(part, _part_ids(clip, part, first)) for part, _, _ in parts] for parts in _split(_segments(text))]
    read = [i for parts in words for _, own in parts for i in own]
    _require_equal(text, [ids[p] for p in content], read)
    places = iter(content)
    return Stream(tuple(ids), _weights(encoders[first]), [
        [Piece(piece, marks, tuple(next(places) for _ in range(count)))
         for part, own in parts for piece, marks, count in _pieces(clip, part, own, first)] for parts in words])


def _stream(clip, text, encoder, sequence, headless) -> Stream:
    """Of an encoder whose tokens may begin with a space."""
    @cache
    def ids_of(part):
        found = clip.tokenize(_literal(part), return_word_ids=True)[encoder]
        return [_id(token) for chunk in found for token, _, word in chunk if word]

    if any(torch.is_tensor(token) for token, _, _ in sequence):
        raise ValueError(f'"{text}" holds an embedding, and the words of the text encoder {encoder} are found in plain '
                         "text only: remove it")
    content = [i for i, (_, _, word) in enumerate(sequence) if word]
    ids, empty = [_id(sequence[i][0]) for i in content], ids_of("")
    head = len(commonprefix([ids_of("a"), empty]))
    tail = len(empty) - head
    if ids[:head] + ids[len(ids) - tail:] != empty:
        raise ValueError(f'"{text}" does not stand in the template of the text encoder {encoder}, which has '
                         f"{len(empty)} tokens: write the prompt without a template of its own")
    weighted = any(weight != 1 for chunk in clip.tokenize("(a:2)")[encoder] for _, weight in chunk)
    segments, places = _segments(text, weighted), content[head:len(ids) - tail]

    def own(part):
        found = ids_of(part)
        return found[head:len(found) - tail]

    whole = [own(segment) for segment in segments]
    _require_equal(text, [_id(sequence[i][0]) for i in places], sum(whole, []))
    first = content[head] if headless and content else 0
    rest = iter(place - first for place in places)
    left, words = [[next(rest) for _ in part] for part in whole], []
    for parts in _split(segments):
        words.append([])
        for part, number, end in parts:
            text_of, joined = "", []
            for marks, piece in _cut(part):
                text_of, end = text_of + piece, end + len(piece)
                joined.append(marks)
                read = own(segments[number][:end])
                if read == whole[number][:len(read)]:  # else a token lies across
                    count = len(read) - len(whole[number]) + len(left[number])
                    words[-1].append(Piece(text_of, all(joined), tuple(left[number][:count])))
                    left[number], text_of, joined = left[number][count:], "", []
            if text_of:
                raise ValueError(f'the tokenizer of {encoder} joins "{text_of}" of "{text}" to the word behind it, so '
                                 "they have no tokens of their own: write it in plain characters; transformers 5 does "
                                 "so to Llama's, 4 does not")
    return Stream(tuple(_id(token) for token, _, _ in sequence[first:]), _weights(sequence[first:]), words)


def _require_equal(text, given, read):
    if read != given:
        raise ValueError(f'the tokenizer reads "{text}" as {len(given)} tokens and its words one by one as '
                         f"{len(read)} other ones: write the prompt in plain characters")


def _weights(sequence):
    return tuple(float(weight) for _, weight, _ in sequence)


def _is_mark(character):
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _cut(part):
    """[(whether it is punctuation, text)] of a part of a word. A hyphen, apostrophe or underscore inside a word is its
    own, as is the point of a number."""
    kinds = [_is_mark(c) and not (re.fullmatch(r"\w[-'’_]\w|\d\.\d", part[max(0, i - 1):i + 2]))
             for i, c in enumerate(part)]
    return [(marks, "".join(c for c, _ in run)) for marks, run in groupby(zip(part, kinds), lambda pair: pair[1])]


def _pieces(clip, part, ids, encoder):
    """[(text, whether it is punctuation, count of tokens)] of a part of a word that CLIP reads."""
    if part.startswith("embedding:"):
        name, vectors = part.rstrip(","), sum(i < 0 for i in ids)
        return [(name, False, vectors), (part[len(name):], True, len(ids) - vectors)]
    cuts = _cut(part)
    if len(cuts) == 1:
        return [(part, cuts[0][0], len(ids))]
    own = [_part_ids(clip, text, encoder) for _, text in cuts]
    if sum(own, []) != ids:
        return [(part, False, len(ids))]  # a token lies across
    return [(text, marks, len(found)) for (marks, text), found in zip(cuts, own)]


def _segments(text, weighted=True):
    """What the host tokenises apart: parts of other weights, "a (red:1.2)dish" as "a ", "red" and "dish"."""
    escaped = escape_important(text)
    return [unescape_important(part) for part, _ in (token_weights(escaped, 1.0) if weighted else [(escaped, 1.0)])]


def _split(segments):
    """The words, each as its parts (text, number of the segment, where it begins): of "a (red:1.2)dish" one of "a" and
    two of "reddish".

    The host reads "embedding: name" as one embedding.
    """
    words, inside = [], False
    for number, segment in enumerate(segments):
        for run in re.finditer(r"\s+|embedding:\s+\S+|\S+", segment):
            blank = run[0].isspace()
            if not blank and inside:
                words[-1].append((run[0], number, run.start()))
            elif not blank:
                words.append([(run[0], number, run.start())])
            inside = not blank
    return words


def _part_ids(clip, part, encoder):
    """A part's ids, tokenised alone: whitespace separates CLIP's tokens, so they are those it has in the prompt."""
    chunks = clip.tokenize(_literal(part), return_word_ids=True)[encoder]
    return [_id(token) for chunk in chunks for token, _, word in chunk if word]


def _literal(part):
    return part.replace("(", r"\(").replace(")", r"\)")


def _id(token):
    if not torch.is_tensor(token):
        return int(token)
    digest = hashlib.sha256(token.detach().float().cpu().numpy().tobytes()).digest()
    return -1 - int.from_bytes(digest[:6], "big")
