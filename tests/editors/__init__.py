"""Every editor by name, one file a technique, under its name and in its folder of the other rooms.

A file ends in `CASES = (EditorCase(...), ...)`. An editor with a case gets every test of composition and purity.
"""
from importlib import import_module
from pathlib import Path

import pytest

import joint
import tiny
from editors.case import CROSS_END, SELF_END, STEPS  # noqa: F401  for the tests
from joint import JOINT


def found() -> dict:
    """{"attention/masactrl": its cases} of every file, in the order of the files."""
    here, cases = Path(__file__).parent, {}
    for path in sorted(here.glob("*/**/*.py")):
        parts = path.relative_to(here).with_suffix("").parts
        cases["/".join(parts)] = import_module(".".join((__name__, *parts))).CASES
    return cases


EVERY = sorted((case for cases in found().values() for case in cases), key=lambda case: case.order)
assert len({case.name for case in EVERY}) == len(EVERY), "two cases have one name"
EDITORS = {case.name: case.put for case in EVERY if not case.guided}
GUIDED = {case.name: case.put for case in EVERY if case.guided}
CONCEPTS = {case.name: case.concepts for case in EVERY if case.concepts}


def those(field):
    return {case.name for case in EVERY if getattr(case, field)}


# case.py says what each of them means.
FEATURES = those("features")
READS, ACTS = those("reads") | FEATURES, those("acts") | FEATURES
NULL_TOO, MOVES, BARE, WORDS, APART, LATER = (
    those(field) for field in ("null_too", "moves", "bare", "words", "apart", "later"))
FAMILIES = list(tiny.UNETS)
ON_JOINT, THIRDS = [case.name for case in EVERY if case.joint], [list(JOINT)[i::3] for i in range(3)]
FINDS = those("finds")
ON_ONE = [(case.name, case.transformer) for case in EVERY if case.transformer]
each = pytest.mark.parametrize("editor, family", [(e, f) for e in EDITORS for f in FAMILIES])


def _on(family, number) -> str:
    """The editor that a transformer gets. Over all turns each has its own."""
    able = [name for name in ON_JOINT if family in joint.WORDS or name not in FINDS]
    return able[number % len(able)]


def each_with(name, variants, turn, joint=(), some=None):
    """Every editor with every variant, on one family. Tests of turns 0, 1 and 2 show an editor on all three.
    joint: transformers that the test has too, each with one editor and one variant in turn.
    some: how many of the variants an editor has, in turn, where they need not all meet."""
    variants = list(variants)
    some = some or len(variants)
    return pytest.mark.parametrize(f"editor, {name}, family", [
        *((e, variants[(i * some + k) % len(variants)], FAMILIES[(i + turn) % len(FAMILIES)])
          for i, e in enumerate(EDITORS) for k in range(some)),
        *((_on(f, i + 9 * turn), variants[i % len(variants)], f) for i, f in enumerate(joint)),
        *((e, variants[i % len(variants)], f) for i, (e, f) in enumerate(ON_ONE if joint else ()))])


def each_in_turn(turn, joint=()):
    """Every editor on one family. Tests of turns 0, 1 and 2 show it on all three. joint: as above."""
    return pytest.mark.parametrize("editor, family", [
        *((e, FAMILIES[(i + turn) % len(FAMILIES)]) for i, e in enumerate(EDITORS)),
        *((_on(f, i + 9 * turn), f) for i, f in enumerate(joint)), *(ON_ONE if joint else ())])
