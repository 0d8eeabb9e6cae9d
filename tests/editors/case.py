"""What an editor's cases are made of: the dataclass, the schedule that all share, and a mask, a word and maps."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from palimpsest.nodes.attention.store import PalimpsestAttentionStore

from runs import kept

STEPS, SELF_END, CROSS_END = 3, 0.5, 0.8
LAST = 1000  # a case without a number of its own


@dataclass(frozen=True)
class EditorCase:
    """An editor as the tests of all editors put it on a MODEL.

    name: its name in the tests' ids.
    put: (case, model=the case's own) -> edited MODEL, as its node makes it, for any prompts that a Case can hold.
    order: its place among all. Tests take the families in turn, so a new editor comes last and moves no other.
    reads: it reads the source's features, until CROSS_END.
    acts: it changes the network's predictions of the target, until CROSS_END.
    features: it reads and acts, on every entry of the target until CROSS_END. The other editors leave an entry that
        Prompt Edit did not make to itself from SELF_END on.
    later: it acts from the second step on.
    null_too: it also reads the source under the null prompt, for that prompt's rows.
    moves: it moves the latent itself, so no prompt, not even the null prompt, is predicted at the given one.
    bare: it gathers nothing in a run.
    words: it has a threshold on maps, or signs of an L1 norm, which rounding may flip.
    concepts: how many prompts of its own it has predicted in the target's forward.
    joint: it works on transformers too.
    transformer: the one on which it has every test that has some, beside their turns.
    finds: it finds words in attention, which is not known on all of them.
    apart: it has a prompt of its own predicted in a forward by itself, under other weights.
    guided: it needs guidance. Many tests of every editor sample at CFG 1, so it stands in GUIDED, not in EDITORS.
    """
    name: str
    put: Callable
    order: int = LAST
    reads: bool = False
    acts: bool = False
    features: bool = False
    later: bool = False
    null_too: bool = False
    moves: bool = False
    bare: bool = False
    words: bool = False
    concepts: int = 0
    apart: bool = False
    joint: bool = False
    transformer: str = ""
    finds: bool = False
    guided: bool = False


def shared_word(case):
    """The last source word that every prompt of the case has."""
    prompts = [tokens for pair in case.edit.pairs for tokens in (pair.source, pair.target)]
    names = [{w.name for w in tokens.words} for tokens in prompts]
    return next(w.name for w in reversed(prompts[0].words) if all(w.name in found for found in names))


def quarter(case):
    """A mask of the upper left quarter, in pixels."""
    height, width = case.latent.shape[-2:]
    mask = torch.zeros(1, height * 8, width * 8)
    mask[:, :height * 4, :width * 4] = 1
    return mask


@kept
def store(case):
    with torch.inference_mode():
        return PalimpsestAttentionStore.execute(case.model, case.inversion, case.edit, 0.25).result[0]
