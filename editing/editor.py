"""The base of every editor, and the editors that a MODEL carries."""
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..host.keys import KEY
from ..inversion.trajectory import Inversion
from .predictions import Answers, Asked

if TYPE_CHECKING:
    from .call import Call
    from .run import Run
    from .sites import Site


@dataclass
class NoState:
    """Of an editor that gathers nothing during a run."""


class Editor:
    """Base of what a node attaches to a MODEL, with every hook of a run and its default.

    A subclass is a frozen dataclass. What it gathers during a run lives in `run.state(self)`, made by `State()` when it
    is asked for first and dropped at the run's end. σ is a level of the host's schedule, x a latent [B,C,…] in sampler
    space. The hooks stand in the order in which a run calls them.

    State: a dataclass with a default for every field.
    name: the node's, for messages.
    prompts: CONDITIONINGs of its own; `run.prompts(self)` has them encoded.
    roles: the rows that it acts on, "target" and "null".
    lends: whether its inversion is of another picture than the one sampled, so that no run begins at its noise.
    anew: whether it is made for new noise, so that no run need begin at its inversion's.
    holds: whether it keeps a part of the picture as it was; then it has the last word, wherever it stands in the chain.
    follows: whether it edits by the target's prompt alone, so that the source's own prompt changes nothing.
    mixes: whether it changes the target's prediction by what it asked for; `answered` then returns the new one.
    replays: whether it is Replay's, which applies what an inversion learned.
    lower: whether it reads the source where its trajectory was before it came to the target's level (`Run.lower`).
    middle: the percent of the schedule at whose level it reads the source until the target is there; 0: at the target's
        own level.
    node: (id, class) of the node that attached it, None outside a graph.
    """
    State: type = NoState
    name: str = ""
    prompts: Sequence[list] = ()
    roles: Sequence[str] = ("target",)
    lends: bool = False
    anew: bool = False
    holds: bool = False
    follows: bool = False
    mixes: bool = False
    replays: bool = False
    lower: bool = False
    middle: float = 0.0
    node: tuple[str, str] | None = None

    def __deepcopy__(self, memo):
        return self

    def read_inversion(self) -> Inversion | None:
        """The INVERSION that it reads: its field `inversion`, where it has one."""
        return getattr(self, "inversion", None)

    @property
    def where(self) -> tuple[bool, float]:
        """Where it reads the source. Editors of one INVERSION that read at the same place share what it shows."""
        return self.lower, self.middle

    def begin(self, run: "Run"):
        """Before the first model call: raise ValueError on what cannot work."""

    def hands_on(self, run: "Run", sigma: float) -> str:
        """What its steps before σ hand on to the one there beside the latent, in words. A sampler that goes on where
        another one ended begins without it."""
        return ""

    def before(self, run: "Run", x: Tensor, sigma: float) -> Tensor:
        """The x that the model will see."""
        return x

    def asks(self, run: "Run", sigma: float) -> dict[Hashable, Asked]:
        """Predictions that it wants beside the host's, by names of its own. Asked once an evaluation of the model, but
        for every prediction of the target where it mixes."""
        return {}

    def conditions(self, run: "Run", conds: list, sigma: float) -> list:
        """The cond lists that the network is to evaluate, with what it changes of their entries, under their uuids."""
        return conds

    def reads(self, run: "Run", sigma: float) -> bool:
        """Whether it needs the source's features at this σ."""
        return False

    @staticmethod
    def install(model_options: dict, edits: list[Any], call: "Call") -> dict:
        """model_options with the patches of some editors, for one call of the network. Those that share this function
        are installed together. What changes model_options is in host/options.py and host/unet.py, always on copies."""
        return model_options

    def keeps(self, run: "Run", site: "Site", sigma: float) -> Iterable[str]:
        """The names of the source's features that it needs at a site. Attention has "q", "k" and "v"; an editor with
        patches of its own names its features as it likes."""
        return ()

    def answered(self, run: "Run", x0: Answers, sigma: float) -> Tensor | None:
        """After every time it was asked, whatever it asked for: `x0.target`, `x0.null` and `x0[name]`."""

    def after(self, run: "Run", x0: Tensor, sigma: float) -> Tensor:
        """The x0 that the sampler will see."""
        return x0


def overrides(editor: Editor, hook: str) -> bool:
    """Whether an editor has a hook of its own."""
    return getattr(type(editor), hook) is not getattr(Editor, hook)


def editors(model) -> tuple[Editor, ...]:
    """The editors attached to a MODEL, first attached first."""
    return model.model_options["transformer_options"].get(KEY, ())


def editor_of(model, kind):
    """The MODEL's editor of a class, of the class itself and no subclass, or None."""
    return next((e for e in editors(model) if type(e) is kind), None)


def require_plain(model, node: str):
    """ValueError on a MODEL that carries editors: they belong to the sampled MODEL alone."""
    if editors(model):
        raise ValueError(f"{node} reads the source as it is, this MODEL carries {len(editors(model))} edits: connect "
                         "the MODEL from before the first editor.")
