"""Predictions that editors ask for beside the host's own.

An editor compares the target's or the null prompt's prediction with another one of the same x. It asks for that in the
host's own call of the network, one row more, under the same ControlNets, so that the two differ by their words alone.
"""
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .editor import Editor
    from .run import Run

ASKED = "palimpsest_asked"


@dataclass(frozen=True)
class Asked:
    """One more prediction.

    entries: the processed cond entries of an editor's own prompt; "null" for the null prompt's; "target" for the
    target's once more, whose rows the editor may leave unedited (`asked_by`).
    beside: the role, "target" or "null", whose ControlNets it is under.
    """
    entries: list | str
    beside: str


@dataclass(frozen=True)
class Answers:
    """The x0 predictions of one call, as the editor that asked sees them.

    x0s: of all cond lists.
    roles: {"target": index, "null": index}; the null prompt's is there where the host or an editor asked for it.
    names: {name: index} of what the editor asked for.
    """
    x0s: list
    roles: dict
    names: dict

    @property
    def target(self) -> Tensor:
        return self.x0s[self.roles["target"]]

    @property
    def null(self) -> Tensor:
        return self.x0s[self.roles["null"]]

    def __getitem__(self, name) -> Tensor:
        return self.x0s[self.names[name]]


class Questions:
    """The cond lists of one call, with those that editors ask for behind the host's.

    Editors are asked in the first call of an evaluation that predicts the target. Another pack may call the network
    again in the same evaluation: there only editors that mix are asked, so that all predictions of the target are
    alike.
    """

    def __init__(self, run: "Run", conds: list, sigma: float):
        self.run, self.sigma, self.given, self.conds = run, sigma, len(conds), list(conds)
        roles = [None if c is None else run.role(conds, i) for i, c in enumerate(conds)]
        self.nulls = {role: i for i, role in enumerate(roles) if role == "null"}
        targets = [i for i, role in enumerate(roles) if role == "target"]
        first = [] if run.asked else targets[:1]
        run.asked = run.asked or bool(targets)
        self.asked = [(editor, target, self._asked(editor, target)) for editor in run.editors
                      for target in (targets if editor.mixes else first)]

    def answer(self, x0s: list) -> list:
        """The x0 predictions of the host's lists, after every editor has seen its own."""
        for editor, target, names in reversed(self.asked):
            mixed = editor.answered(self.run, Answers(x0s, {"target": target, **self.nulls}, names), self.sigma)
            if editor.mixes:
                x0s[target] = mixed
        return x0s[:self.given]

    def _asked(self, editor, target) -> dict:
        return {name: self._index(asked, target, (editor, name))
                for name, asked in editor.asks(self.run, self.sigma).items()}

    def _index(self, asked, target, asker) -> int:
        """Of the list that answers."""
        others = self.conds[target if asked.beside == "target" else self._null()]
        entries = asked.entries
        if entries == "null":
            entries = self._null_entries()
            if controls(entries, self.sigma) == controls(others, self.sigma):
                return self._null()
        made = others if entries == "target" else controlled_as(entries, others, self.sigma)
        self.conds.append([{**entry, ASKED: asker} for entry in made])
        return len(self.conds) - 1

    def _null(self) -> int:
        """The index of the null prompt's list, which the host leaves out at CFG 1."""
        if not self.nulls:
            self.conds.append(self._null_entries())
            self.nulls["null"] = len(self.conds) - 1
        return self.nulls["null"]

    def _null_entries(self) -> list:
        if self.nulls:
            return self.conds[self.nulls["null"]]
        return next(entries for name, entries in self.run.guider.conds.items() if "negative" in name)


def asked_by(editor: "Editor", entry: dict) -> Hashable | None:
    """The name under which an editor asked for the prediction of a cond entry; None where it did not."""
    asker, name = entry.get(ASKED, (None, None))
    return name if asker is editor else None


def controls(entries, sigma) -> list:
    """The ControlNets of processed cond entries for the whole picture at σ, each once. None stands
    for entries without one."""
    acting = (e for e in entries if "area" not in e
              and e.get("timestep_start", math.inf) >= sigma >= e.get("timestep_end", 0.0))
    return list(dict.fromkeys(e.get("control") for e in acting)) or [None]


def controlled_as(entries, others, sigma) -> list:
    """Processed cond entries under the ControlNets of the others, once under each. The objects are shared: the host has
    made them ready, runs them in one forward with the others, and cleans them up."""
    return [{k: v for k, v in {**e, "control": c}.items() if k != "control" or c}
            for e in entries for c in controls(others, sigma)]
