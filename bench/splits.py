"""The sets of edits that SceneBench measures."""
from collections.abc import Callable
from dataclasses import dataclass

from ..miniature.hard import hard_edit
from ..miniature.scenes import Edit, held_out_edit


@dataclass(frozen=True)
class Split:
    """edit(number, kind): its edits, from number `first` on.

    details: whether success also needs every detail that no caption states.
    """
    edit: Callable[[int, str], Edit]
    first: int
    details: bool = False

    def edits(self, kind: str, numbers) -> list[Edit]:
        return [self.edit(n, kind) for n in numbers]


SPLITS = {"public": Split(held_out_edit, 0), "held-out": Split(held_out_edit, 10_000),
          "hard-public": Split(hard_edit, 0, True), "hard-held-out": Split(hard_edit, 10_000, True)}
