"""The rows of the showcase in the benchmarks, and what they share."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from ..inversion.method import Method
from ..nodes.attention.p2p import PalimpsestAttentionInject
from . import LAST

NO_INVERSION = "no inversion"
LATER = 0.25  # of the schedule: begun there a pose changes as often and keeps more


@dataclass(frozen=True)
class SceneRow:
    """An editor in SceneBench (bench/scenes.py) and PIE-Bench (bench/pie.py).

    edit(scenes, model, inversion): the edited MODEL, or a LATENT where `on` is NO_INVERSION. Inputs have their nodes'
        defaults unless the row says otherwise. What a name gives in brackets with "true" or "another" is known of no
        picture of one's own.
    order: its number among the rows.
    samples: the prompt that is sampled, "target", "source" or a function of the scenes that returns a CONDITIONING.
    kinds: the kinds of edit that it is for. Empty: all.
    on: the row of the inversions that it stands on.
    crossed: whether it is measured on other inversions too.
    cfg: its guidance, if it has its own.
    start: where Replay starts.
    anew: whether it begins there with new noise on the source, not with the inversion's.
    singly: whether it names words, so that each picture is edited alone.
    only: the model that it is for, "flow". Empty: both.
    """
    name: str
    edit: Callable
    order: int = LAST
    samples: str | Callable = "target"
    kinds: tuple[str, ...] = ()
    on: str = "DDIM"
    crossed: bool = False
    cfg: float | None = None
    start: float = 0.0
    anew: bool = False
    singly: bool = False
    only: str = ""

    @property
    def told(self) -> bool:
        """Whether it is given what is not known of a picture of one's own."""
        return "(true" in self.name or "(another" in self.name


@dataclass(frozen=True)
class CostRow:
    """An editor in the benchmark of costs (bench/cost.py).

    edit(bench): the edited MODEL.
    order: its number among the rows.
    gradient: whether it follows a gradient. If so, it has no promised time.
    large: whether it is measured on the largest latents too.
    rows: the rows of the batch.
    joint: whether it is measured on a transformer too.
    """
    name: str
    edit: Callable
    order: int = LAST
    gradient: bool = False
    large: bool = False
    rows: int = 1
    joint: bool = False


@dataclass(frozen=True)
class InversionRow:
    """A row among the inversions (bench/inversions.py).

    method: its METHOD.
    order: its number among the rows.
    settings: changes to the method's defaults, or a function of the number of steps that returns them.
    guided: whether what it records belongs to the CFG.
    source: "re-read" or "drifting", if the row is about the source branch.
    edits: whether its Replay is made for prompts other than the source's.
    faithful: settings for the replay of the source, if they differ.
    over: the row with which its reconstruction is compared.
    """
    name: str
    method: Method
    order: int = LAST
    settings: Mapping | Callable = field(default_factory=dict)
    guided: bool = False
    source: str = ""
    edits: bool = True
    faithful: Mapping = field(default_factory=dict)
    over: str = ""


def inputs_of(node) -> dict:
    """The inputs of a node's class by name."""
    return {i.id: i for i in node.define_schema().inputs}


def output(node, **given):
    """A node's first output. Inputs that are not given have their defaults."""
    defaults = {name: i.default for name, i in inputs_of(node).items() if getattr(i, "default", None) is not None}
    return node.execute(**defaults | given).result[0]


def as_it_is(scenes, model, inversion):
    """A SceneRow's edit: none."""
    return model


def inject(scenes, model, inversion, **settings):
    """A SceneRow's edit: Attention Inject."""
    return output(PalimpsestAttentionInject, model=model, inversion=inversion, prompt_edit=scenes.edit, **settings)


inject_auto = partial(inject, schedule="auto")


def on_inversion(node, before=None, masked=False, **settings):
    """A SceneRow's edit: a node on MODEL and INVERSION, after the edit `before`. masked: it gets the true edit mask."""
    def edit(scenes, model, inversion):
        model = before(scenes, model, inversion) if before else model
        mask = {"mask": scenes.masks} if masked else {}
        return output(node, model=model, inversion=inversion, **mask, **settings)
    return edit


def alone(node, **settings):
    """A CostRow's edit: one node."""
    return lambda bench: bench.other(node, **settings)


def concept(scenes) -> tuple[list[str], str]:
    """(the phrase that each edit brings, "add"), or where an edit only takes away (what it takes, "remove").

    A phrase begins as the target does, "a photo of", where that has such a beginning.
    """
    part = "new" if all(change.new for change in scenes.changed) else "old"
    texts = []
    for edit, change in zip(scenes.edits, scenes.changed):
        start, phrases = f"{change.ends[0].text} of ", getattr(change, part)
        begins = edit.target_text.startswith(start) and change.ends[0] not in phrases
        texts.append(start * begins + " and ".join(phrase.text for phrase in phrases))
    return texts, "add" if part == "new" else "remove"


def names(*phrases) -> str:
    """Phrases' words as a widget takes them."""
    return ", ".join(name for phrase in phrases for name in phrase.names)


def fresh(scenes, part: str) -> tuple[str, ...]:
    """The words of one picture's "new" or "old" phrases that the others of the two lack."""
    change = scenes.changed[0]
    other = change.old if part == "new" else change.new
    known = {name.partition("#")[0] for phrase in other for name in phrase.names}
    return tuple(name for phrase in getattr(change, part) for name in phrase.names
                 if name.partition("#")[0] not in known)
