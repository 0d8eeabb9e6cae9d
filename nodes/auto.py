"""What "auto" chooses on several nodes: schedules and masks by the kind of the edit, read off PROMPT_EDIT."""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.alignment import Pair, PromptEdit
from ..attention.maps import Attention
from ..editing.edit_kind import KINDS, Edit, read_edit
from ..editing.edit_words import FUNCTION
from ..host.canvas import log, note
from ..host.tokens import Word, present_words

SCHEDULES = {  # kind: (cross_end, self_end)
    "delete": (0.3, 0.0), "add": (0.0, 0.3), "pose": (0.1, 0.0), "object": (0.8, 0.2), "background": (0.0, 0.8),
    "style": (0.0, 1.0), "material": (0.5, 0.8), "colour": (0.4, 1.0), "": (0.8, 0.4)}
"""Chosen on public scenes of the miniature, as bench/scenes.py measures them. Without a kind: Attention Inject's
defaults."""
JOINT = {
    "delete": (0.3, 0.0), "add": (0.1, 0.0), "pose": (0.1, 0.0), "object": (0.1, 0.0), "background": (0.5, 0.5),
    "style": (0.8, 0.4), "material": (0.3, 0.3), "colour": (0.8, 0.8), "": (0.2, 0.0)}
"""The same where words and picture share one softmax, chosen on the miniature flow model. Every layer there has the one
grid, so what a U-Net needs to keep a shape keeps the thing itself."""
LASTING = {"delete"}
"""Kinds in which the words that stay keep the source's maps to the end. Else the target draws them once more, where the
others went."""
GENTLE = {"colour", "style"}
"""Kinds that come nearer with less guidance. CFG is the sampler's, so auto can only say so."""
WHOLE = {"background", "style", ""}
"""Kinds that may change the whole picture."""
SHAPED = {"add", "object", "pose"}
"""Kinds whose mask follows the words of the target too."""
FINEST, FINE = 0.5, 32
"""Self-attention is replaced up to this share of the latent's side and so many tokens a side, as in the authors' code
for real pictures, which knows SD's 64² latent alone. On SDXL's 128² the tokens are fewer: 0.25."""
LAYOUT, TOKENS = {"background", "style", "colour"}, 16
"""Kinds that keep the whole layout. They replace it on grids of so many tokens a side too, which a share of 0.5 holds
on SD's 64² latent and not on the miniature's 16²."""
UNREAD = "auto cannot read what changes between the two prompts, since it knows English alone"
UNCHANGED = "auto finds no change between the two prompts; name in the target prompt what should be seen instead"
NAMES = {"delete": "removal", "add": "addition", "pose": "change of pose", "object": "swap of an object",
         "background": "change of background", "style": "change of style", "material": "change of material",
         "colour": "change of colour"}


@dataclass(frozen=True)
class Auto:
    """What the edits of a batch's rows ask for.

    pairs: the prompts of each row.
    edits: what changes from one to the other.
    """
    pairs: tuple[Pair, ...]
    edits: tuple[Edit, ...]

    @classmethod
    def of(cls, prompt_edit: PromptEdit):
        texts = [[" ".join(word.text for word in tokens.words) for tokens in (pair.source, pair.target)]
                 for pair in prompt_edit.pairs]
        return cls(prompt_edit.pairs, tuple(read_edit(*both) for both in texts))

    @classmethod
    def of_attention(cls, node, attention: Attention, typed: str):
        """For a node that finds words in an ATTENTION. ValueError where some were typed."""
        if typed.strip():
            raise ValueError(f"{node} has the words {typed!r}, but auto chooses them: clear the words, or set "
                             "choose_words ('settings' on a blueprint) to 'as set'.")
        if attention is None or attention.edit is None:
            raise ValueError(f"{node} cannot choose words without the two prompts: connect Attention Store's "
                             "ATTENTION, or set choose_words to 'as set'.")
        return cls.of(attention.edit)

    def schedule(self, latent, coarsest, joint=False) -> tuple[float, float, float]:
        """cross_end, self_end and self_resolution on a latent (height, width): the least that a change asks for.

        coarsest: the network's coarsest grid, as a share of the latent's side. It is replaced on large latents too.
        joint: whether words and picture share one softmax.
        """
        kinds, chosen = self._kinds, JOINT if joint else SCHEDULES
        cross_end, self_end = map(min, zip(*(chosen[kind] for kind in kinds)))
        finest = min(FINEST, max(coarsest, FINE / min(latent)))
        return cross_end, self_end, min(1.0, max(finest, TOKENS / min(latent) if kinds <= LAYOUT else 0.0))

    @property
    def advice(self) -> list[str]:
        """What else to say on Attention Inject."""
        return ["half the usual CFG keeps more of the picture"] if self._kinds <= GENTLE else []

    @property
    def lasts(self) -> bool:
        """Whether words keep the source's maps to the end."""
        return any(edit.kind in LASTING for edit in self.edits)

    def lasting(self, ends: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Where cross-attention ends for each pair's tokens [target], given where it ends for others."""
        found = []
        for pair, edit, end in zip(self.pairs, self.edits, ends):
            said = [i for word in pair.target.words if word.name not in FUNCTION for i in word.positions]
            found.append(end.index_fill(0, torch.tensor(said), 1.0) if edit.kind in LASTING else end)
        return tuple(found)

    def source_words(self, rows: int) -> list[list[Word]]:
        """The words of the source where each of some rows may change; none where that is the whole picture."""
        return self._words("source", rows, KINDS)

    def target_words(self, rows: int) -> list[list[Word]]:
        """The same of the target: words of what is added or takes another shape."""
        return self._words("target", rows, SHAPED)

    def sampled_words(self, prompts) -> list[list[Word]]:
        """Those of the prompts that are sampled. ValueError where they are not Prompt Edit's targets."""
        targets = tuple(pair.target for pair in self.pairs)
        if tuple(prompts) != targets:
            seen, wanted = (", ".join(repr(tokens.text) for tokens in texts) for texts in (prompts, targets))
            raise ValueError(f"auto chose the words of {wanted}, the positive being sampled is {seen}: connect Prompt "
                             "Edit's target CONDITIONING to the sampler.")
        return self.target_words(len(targets))

    def whole(self, rows: int) -> list[bool]:
        """Whether each of some rows may change in the whole picture."""
        return [whole(self.edits[i % len(self.edits)]) for i in range(rows)]

    @property
    def _kinds(self):
        return {change.kind for edit in self.edits for change in edit.changes} or {""}

    def _words(self, side, rows, kinds):
        found = [present_words(", ".join(_named(edit, side, kinds)), [getattr(pair, side)])[0][0]
                 for edit, pair in zip(self.edits, self.pairs)]
        return [found[i % len(found)] for i in range(rows)]

    def say(self, *chosen: str, sides=("source", "target")):
        """Shows on the node what the rows change, and what was chosen for it."""
        for edit in dict.fromkeys(self.edits):
            words = [word for side in sides for word in _named(edit, side, KINDS if side == "source" else SHAPED)]
            rest = "; ".join((*chosen, f"mask: {', '.join(dict.fromkeys(words)) or 'the whole picture'}"))
            if edit.kind:
                note("%s; %s", _read(edit), rest)
            else:
                log.warning("%s: %s", _read(edit), rest)

    def said(self, *chosen: str) -> str:
        """What the rows change, a line each, and what was chosen for them all."""
        return "\n".join([*dict.fromkeys(map(_read, self.edits)), "; ".join(chosen)])


def whole(edit: Edit) -> bool:
    """Whether an edit may change the whole picture."""
    return any(change.kind in WHOLE for change in edit.changes) or not edit.changes


def _named(edit, side, kinds) -> list[str]:
    """The words of an edit's mask."""
    return [] if whole(edit) else [*dict.fromkeys(word for change in edit.changes if change.kind in kinds
                                                  for word in getattr(change, side))]


def _read(edit):
    if not edit.kind:
        return UNCHANGED if edit.english else UNREAD
    return "auto: " + "; ".join(map(_said, edit.changes))


def _said(change):
    before, after = (" ".join(word.partition("#")[0] for word in words) for words in (change.removed, change.added))
    return f"{NAMES[change.kind]}: " + (f"{before} -> {after}" if before and after else before or after or "position")
