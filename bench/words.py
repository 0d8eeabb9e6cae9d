"""The words that an edit changes, read from its two prompts."""
import difflib
import re
from dataclasses import dataclass

JOINTS = re.compile(r"\s+(?:of|and|on|in|with|at)\s+|,\s*")
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Phrase:
    """A part of a prompt between two joints.

    names: its words as nodes take them, "star#2" for the second star of the prompt; no articles.
    """
    text: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Changed:
    """old, new: the phrases of source and target that the other lacks.

    same: those of the target that both have, without the target's first and last.
    ends: the target's first and last, in a caption of the miniature the style and the ground.
    """
    old: tuple[Phrase, ...]
    new: tuple[Phrase, ...]
    same: tuple[Phrase, ...]
    ends: tuple[Phrase, Phrase]


def phrases(prompt: str) -> list[Phrase]:
    seen: dict[str, int] = {}
    found = []
    for text in filter(None, JOINTS.split(prompt.strip())):
        names = []
        for word in text.split():
            seen[word] = seen.get(word, 0) + 1
            if word not in ARTICLES:
                names.append(f"{word}#{seen[word]}")
        found.append(Phrase(text, tuple(names)))
    return found


def changed(source: str, target: str) -> Changed:
    a, b = phrases(source), phrases(target)
    old, new, same = [], [], []
    matched = difflib.SequenceMatcher(None, [p.text for p in a], [p.text for p in b], autojunk=False)
    for kind, i, j, k, n in matched.get_opcodes():
        if kind == "equal":
            same += [p for p in b[k:n] if p not in (b[0], b[-1])]
        else:
            old += a[i:j]
            new += b[k:n]
    return Changed(tuple(old), tuple(new), tuple(same), (b[0], b[-1]))

