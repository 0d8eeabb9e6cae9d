"""The rows of the showcase in the benchmarks, and what they share."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..inversion.method import Method
from ..nodes.attention.p2p import PalimpsestAttentionInject
from . import LAST


@dataclass(frozen=True)
class SceneRow:
    """An editor in SceneBench (bench/scenes.py) and PIE-Bench (bench/pie.py).

    edit(scenes, model, inversion): the edited MODEL. Inputs have their nodes' defaults unless the name says otherwise.
    order: its number among the rows.
    samples: the prompt that is sampled, "target" or "source".
    """
    name: str
    edit: Callable
    order: int = LAST
    samples: str = "target"


@dataclass(frozen=True)
class CostRow:
    """An editor in the benchmark of costs (bench/cost.py).

    edit(bench): the edited MODEL.
    order: its number among the rows.
    gradient: whether it follows a gradient. If so, it has no promised time.
    large: whether it is measured on the largest latents too.
    rows: the rows of the batch.
    """
    name: str
    edit: Callable
    order: int = LAST
    gradient: bool = False
    large: bool = False
    rows: int = 1


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


def inject(scenes, model, inversion):
    """A SceneRow's edit: Attention Inject."""
    return output(PalimpsestAttentionInject, model=model, inversion=inversion, prompt_edit=scenes.edit)


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
