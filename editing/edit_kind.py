"""What an edit does, read off its two English prompts: which words change, and of what kind the change is.

Words that both prompts have in the same order stay. Between them lie the changes, words that go and words that come. A
change is split at its prepositions and commas, and each part is

    style       words of a style, a medium before "of", an artist
    background  words of a place, a season, weather or a time of day that are not part of a thing's name, as in "winter
                jacket", and what stands before "background"
    colour      colours alone
    material    materials, patterns and other adjectives, "made of"
    pose        -ing verbs, expressions, sizes, positions
    add         words that come, with none that go, and "with" for "without"
    delete      words that go, with none that come, and "without" for "with"
    object      all else: a thing becomes another

by lists of words (editing/edit_words.py) and by where it stands in the sentence. Of several changes the loosest
names the edit: the one that needs most freedom from the source (KINDS, loosest first).
"""
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from .edit_words import (
    ABSENT,
    ADJECTIVE_ENDINGS,
    ARTISTS,
    BODY,
    COLOURS,
    DETERMINERS,
    ENGLISH,
    FIGURES,
    FOREIGN,
    FUNCTION,
    GROUND_PREPOSITIONS,
    LEADS,
    MATERIALS,
    MEDIA,
    NO_ADJECTIVES,
    NO_POSE,
    PLACES,
    POSITIONS,
    SCENES,
    STANCES,
    STYLES,
    TIMES,
)

KINDS = "delete", "add", "pose", "object", "background", "style", "material", "colour"


@dataclass(frozen=True)
class Change:
    """One change, with its words in order. Each word is named by its own occurrence, as in "cat#2".

    kind: one of KINDS.
    removed, added: the words that go and come, without articles and the like.
    source, target: the words of the things in either prompt that it concerns.
    """
    kind: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """What an edit does.

    kind: of its loosest change, or "" where none is found.
    changes: all of them.
    english: whether the prompts could be read.
    """
    kind: str
    changes: tuple[Change, ...] = ()
    english: bool = True


def read_edit(source: str, target: str) -> Edit:
    """The kind of the edit from one prompt, without weight syntax, to another."""
    a, b = Prompt.of(source), Prompt.of(target)
    if not _english(a.words + b.words):
        return Edit("", english=False)
    changes = [change for i, j, k, n in _hunks(a.words, b.words) for change in _changes(a, i, j, b, k, n)]
    if not changes and _moved(a.words, b.words):
        changes = [Change("pose", (), (), a.names(a.content()), b.names(b.content()))]
    kind = min((change.kind for change in changes), key=KINDS.index, default="")
    return Edit(kind, tuple(changes))


@dataclass(frozen=True)
class Prompt:
    """Words in lower case, with "," for every mark between them."""
    words: tuple[str, ...]

    @classmethod
    def of(cls, text):
        found = re.findall(r"embedding:\S+|\w+(?:[-'’_]\w+)*|[,.;:!?|]", text.lower())
        return cls(tuple("," if not re.search(r"\w", word) else word for word in found))

    def names(self, places) -> tuple[str, ...]:
        """The words at some places, by their own occurrence where there are several."""
        names = []
        for i in places:
            word, count = self.words[i], self.words.count(self.words[i])
            names.append(word if count == 1 else f"{word}#{self.words[:i + 1].count(word)}")
        return tuple(names)

    def content(self, start=0, end=None) -> list[int]:
        """The places in a span of the words that say something."""
        return [i for i in range(start, len(self.words) if end is None else end)
                if self.words[i] != "," and self.words[i] not in FUNCTION]

    def phrase(self, start, end) -> list[int]:
        """The places of the things that a span speaks of: its own words and those beside it without a break."""
        while start and self._says(start - 1):
            start -= 1
        while end < len(self.words) and self._says(end):
            end += 1
        found = [i for i in self.content(start, end) if not _pose(self.words[i])]
        return found or self._subject(start)

    def head(self, place) -> str:
        """The word that a word belongs to, as "jacket" in "a warm winter jacket"."""
        while place + 1 < len(self.words) and self._says(place + 1) and not _pose(self.words[place + 1]):
            place += 1
        return self.words[place]

    def thing(self, start) -> list[int]:
        """The places of the thing that a span from here on begins with."""
        ends = GROUND_PREPOSITIONS | LEADS | {","}
        end = next((i for i in range(start, len(self.words)) if self.words[i] in ends or _verb(self.words[i])), None)
        return self.content(start, end)

    def _subject(self, place):
        """The places of the nearest phrase before a place, over "is" and the like."""
        while place and (not self._says(place - 1) or _pose(self.words[place - 1])):
            place -= 1
        end = place
        while place and self._says(place - 1):
            place -= 1
        return [i for i in self.content(place, end) if not _pose(self.words[i])]

    def _says(self, place):
        return self.words[place] != "," and self.words[place] not in FUNCTION


def _hunks(a, b) -> list[tuple]:
    """(start, end) in both of what is not shared."""
    return [codes[1:] for codes in SequenceMatcher(None, a, b, False).get_opcodes() if codes[0] != "equal"]


def _parts(prompt: Prompt, start, end) -> list[tuple[int, int]]:
    """Spans of a span, each from a preposition or comma on, without those that say nothing."""
    cuts = [start, *(i for i in range(start + 1, end) if prompt.words[i] in GROUND_PREPOSITIONS | LEADS | {","}), end]
    return [(i, j) for i, j in zip(cuts, cuts[1:]) if prompt.content(i, j)]


def _changes(a, i, j, b, k, n) -> list[Change]:
    found = []
    for old, new in zip_longest(_parts(a, i, j), _parts(b, k, n)):
        (i0, j0), (k0, n0) = old or (j, j), new or (n, n)
        kind = _kind(_Side(a, i0, j0), _Side(b, k0, n0))
        removed, added = a.content(i0, j0), b.content(k0, n0)
        concerned = {"add": ([], added), "delete": (removed, [])}.get(kind) or (a.phrase(i0, j0), b.phrase(k0, n0))
        found.append(Change(kind, a.names(removed), b.names(added), a.names(concerned[0]), b.names(concerned[1])))
    return found + _unsaid(a, i, j, b, k, n)


def _unsaid(a, i, j, b, k, n) -> list[Change]:
    """The change where a word without content is swapped: "with" and "without", "up" and "down"."""
    old, new = {*a.words[i:j]}, {*b.words[k:n]}
    if old and new and old | new == {"up", "down"}:
        return [Change("pose", a.names([i]), b.names([k]), a.names(a.phrase(i, j)), b.names(b.phrase(k, n)))]
    goes, comes = ABSENT & new, ABSENT & old
    names = a.names(a.thing(j)) if goes else b.names(b.thing(n))
    if bool(goes) == bool(comes) or not names:
        return []
    return [Change("delete", names, (), names, ()) if goes else Change("add", (), names, (), names)]


@dataclass(frozen=True)
class _Side:
    """A span of a prompt, and what stands around it."""
    prompt: Prompt
    start: int
    end: int

    @property
    def words(self):
        return self.prompt.words[self.start:self.end]

    @property
    def content(self):
        return [self.prompt.words[i] for i in self.prompt.content(self.start, self.end)]

    @property
    def before(self):
        """The word before, "," at the prompt's start."""
        return self.prompt.words[self.start - 1] if self.start else ","

    @property
    def after(self):
        """The word after, "," at the prompt's end."""
        return self.prompt.words[self.end] if self.end < len(self.prompt.words) else ","

    @property
    def preposition(self):
        """The preposition on which its thing depends."""
        for word in (*reversed(self.words), *reversed(self.prompt.words[:self.start])):
            if word in FUNCTION - DETERMINERS or word == ",":
                return word
        return ","

    @property
    def modifies(self):
        """Whether it stands directly before a word that it describes."""
        return self.after != "," and self.after not in FUNCTION and not _pose(self.after)

    @property
    def opens(self):
        """Whether nothing but style stands before it."""
        return set(self.prompt.words[:self.start]) <= FUNCTION | MEDIA | STYLES | {","}

    @property
    def tag(self):
        """Whether it stands alone between two commas."""
        return self.before == self.after == ","

    def in_style(self):
        if set(self.content) & (STYLES | ARTISTS) or self.after in ("style", "styled") or "style" in self.words:
            return True
        if set(self.content) & MEDIA:  # "a painting of", not "with a painting"
            appended = self.words[0] == self.after == "," and not set(self.content) <= FIGURES
            return "of" in (*self.words, self.after) or self.tag or appended or self.opens and self.after == ","
        in_style_of = (*self.prompt.words[:self.start], *self.words)[-3:] == ("style", "of")
        return in_style_of or self.opens and (self.before == "by" or self.after in MEDIA - FIGURES)

    def in_place(self):
        if {self.after, *self.content} & {"background", "backdrop"} or self._in_time():
            return True
        depends = self.preposition in GROUND_PREPOSITIONS or self.tag and self.start > 0
        return bool(self.content) and depends and _one_of(self.content[-1], PLACES - TIMES)

    def _in_time(self):
        """Whether it states a time or weather: "winter", "a winter day", "a winter forest", not "a winter jacket"."""
        heads = [self.prompt.head(i) for i in range(self.start, self.end) if self.prompt.words[i] in TIMES]
        return any(head in TIMES | SCENES or _one_of(head, PLACES) for head in heads)

    def made_of(self):
        return self.content[:1] == ["made"] and bool({"of", "from"} & set(self.words))


def _kind(old: _Side, new: _Side) -> str:
    sides = [side for side in (old, new) if side.content]
    if any(side.in_style() for side in sides):
        return "style"
    if len(sides) == 1 and sides[0].made_of():
        return "material"
    words = old.content + new.content
    weather = set(words) <= TIMES and _described(words)  # "a snowy house"
    if weather or any(side.in_place() for side in sides):
        return "background"
    if len(sides) == 1:
        return _kind_of_one(sides[0]) or ("add" if new.content else "delete")
    if all(map(_pose, words)):
        return "pose"
    describes = old.modifies and new.modifies or all(_colour(word) or word in MATERIALS for word in words)
    return describes and _described(words) or "object"


def _kind_of_one(side: _Side) -> str:
    """The kind of words that come or go alone, "" where they are a thing."""
    words = side.content
    led = side.words[0] in LEADS
    own = all(map(_pose, words)) or any(_one_of(word, BODY) for word in words)  # "with its mouth open"
    if led and words[-1] in STANCES and own or not led and _verb(words[0]):  # "jumping"
        return "pose"
    if (led or side.words[0] == ",") and not side.modifies:  # "with a hat"
        return ""
    makes_another = side.modifies and not set(side.words) & (LEADS | DETERMINERS)  # "a robot dog"
    return _described(words) or ("object" if makes_another else "")


def _described(words) -> str:
    """The kind of a change of adjectives alone, or ""."""
    tests: dict[str, Callable] = {"colour": _colour, "material": lambda w: _colour(w) or _adjective(w),
                                  "pose": lambda w: _colour(w) or _adjective(w) or _pose(w)}
    return next((kind for kind, test in tests.items() if all(map(test, words))), "")


def _verb(word):
    return word.endswith("ing") and len(word) > 5 and word not in NO_POSE


def _pose(word):
    return word in STANCES or _verb(word)


def _colour(word):
    return word in COLOURS or word.endswith(("-colored", "-coloured"))


def _adjective(word):
    return word in MATERIALS or (word.endswith(ADJECTIVE_ENDINGS) and word not in NO_ADJECTIVES and not _pose(word)
                                 and word not in PLACES)


def _one_of(word, known):
    return word in known or word.endswith("s") and word[:-1] in known


def _moved(a, b):
    """Whether the prompts differ in a position alone, as "on" and "under"."""
    return a != b and bool((set(a) ^ set(b)) & POSITIONS)


def _english(words: Sequence[str]) -> bool:
    """Whether the words can be read: Latin letters, and no fewer of English's function words than of others'."""
    if any(ord(letter) > 0x24F for word in words for letter in word if letter.isalpha()):
        return False
    return len(FOREIGN.intersection(words)) <= len(ENGLISH.intersection(words))
