"""The base of every editor, and the editors that a MODEL carries."""
from collections.abc import Hashable
from dataclasses import dataclass

from ..host.keys import KEY
from ..inversion.trajectory import Inversion
from .predictions import Asked


@dataclass
class NoState:
    """Of an editor that keeps nothing during a run."""


class Editor:
    """Base of what a node attaches to a MODEL, with every hook of a run and its default.

    A subclass is a frozen dataclass. What it gathers during a run lives in `run.state(self)`, made by `State()` when it
    is asked for first and dropped at the run's end.

    State: a dataclass with a default for every field.
    name: the node's, for messages.
    prompts: CONDITIONINGs of its own; `run.prompts(self)` has them encoded.
    roles: the rows that it acts on, "target" and "null".
    lends: whether its inversion is of another picture than the one sampled, so that no run begins at its noise.
    holds: whether it keeps a part of the picture as it was; then it has the last word, wherever it stands in the chain.
    follows: whether it edits by the target's prompt alone, so that the source's own prompt changes nothing.
    mixes: whether it changes the target's prediction by what it asked for; `answered` then returns the new one.
    replays: whether it is Replay's, which applies what an inversion learned.
    node: (id, class) of the node that attached it, None outside a graph.
    """
    State = NoState
    name = ""
    prompts = ()
    roles = ("target",)
    lends = False
    holds = False
    follows = False
    mixes = False
    replays = False
    node = None

    def __deepcopy__(self, memo):
        return self

    def read_inversion(self) -> Inversion | None:
        """The INVERSION that it reads: its field `inversion`, where it has one."""
        return getattr(self, "inversion", None)

    def begin(self, run):
        """Before the first model call: raise ValueError on what cannot work."""

    def reads(self, run, sigma) -> bool:
        """Whether the source's features are needed at this σ."""
        return False

    def conditions(self, run, conds, sigma):
        """The cond lists that the host is to evaluate, entries under their own uuids; lists may be added at the end."""
        return conds

    def predicted(self, run, x0s, x, sigma):
        """The x0 predictions of those lists, without those of the lists that `conditions` added."""
        return x0s

    def asks(self, run, sigma) -> dict[Hashable, Asked]:
        """Predictions that it wants beside the host's, by names of its own. Asked once an evaluation of the model, but
        for every prediction of the target where it mixes."""
        return {}

    def answered(self, run, x0, sigma):
        """After every time it was asked, whatever it asked for: `x0.target`, `x0.null` and `x0[name]`."""

    def before(self, run, x, sigma):
        """The x that the model is to see, in sampler space."""
        return x

    def after(self, run, x0, sigma):
        """The x0 that the sampler is to see, in sampler space."""
        return x0


def editors(model) -> tuple:
    """The editors attached to a MODEL, first attached first."""
    return model.model_options["transformer_options"].get(KEY, ())


def editor_of(model, kind):
    """The MODEL's editor of a class, of the class itself and no subclass, or None."""
    return next((e for e in editors(model) if type(e) is kind), None)


def require_plain(model, node):
    """Editors belong to the sampled MODEL alone."""
    if editors(model):
        raise ValueError(f"{node} reads the source as it is, this MODEL carries {len(editors(model))} edits: connect "
                         "the MODEL from before the first editor.")
