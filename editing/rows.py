"""The rows that learning learns from, and which of them share a forward."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .concepts import Objective


@dataclass(frozen=True, eq=False)
class Row:
    """A picture with noise.

    x, clean: [1,C,…] in sampler space.
    sigma: [1].
    entries: processed cond entries, of its caption and, where an objective asks it, of the frozen model's.
    share: of its loss in the step's.
    objective: what it lowers in the place of its own loss.
    predicted: whether the frozen model's prediction, under the last entry, is learned in the place of `clean`.
    masks: [n,h,w], of what is learned; None learns the whole.
    words, tokens: positions of the masks' words in the text, and of how many, where an objective reads their maps.
    contrasts: (a new word's name, {encoder: [p,D]} of words near it, the same of words far from it).
    """
    x: Tensor
    clean: Tensor
    sigma: Tensor
    entries: tuple
    share: float
    objective: Objective | None
    predicted: bool = False
    masks: Tensor | None = None
    words: tuple = ()
    tokens: int = 0
    contrasts: tuple = ()


def level(sampling, prediction: str, skew: float, generator: torch.Generator) -> float:
    """A row's σ, drawn as the model's family was trained, or by a skew. sampling: the host's model_sampling."""
    levels = sampling.sigmas
    if skew:  # ReVersion's f(t), 2303.13495
        shares = 1 - skew * torch.cos(math.pi * torch.arange(len(levels)) / len(levels))
        return float(levels[int(torch.multinomial(shares, 1, generator=generator))])
    if prediction == "flow":  # logit-normal, through the model's own shift (SD3, 2403.03206)
        percent = torch.randn((), generator=generator).sigmoid()
        return float(sampling.percent_to_sigma(float(percent)))
    return float(levels[int(torch.randint(len(levels), (), generator=generator))])


def weight(prediction: str, sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """c(σ)² of a family's loss, which the model was trained with."""
    if prediction in ("v", "edm"):
        return (sigma ** 2 + sigma_data ** 2) / (sigma * sigma_data) ** 2
    return 1 / sigma ** 2


def masked(rows: Sequence[Row], x: Tensor) -> Tensor:
    """What is learned of rows x [B,C,…], [B,1,…]: the union of each one's masks."""
    one = x.new_ones(x.shape[-2:])
    found = torch.stack([one if row.masks is None else row.masks.amax(0) for row in rows])
    return found.view(len(x), *(1 for _ in x.shape[1:-2]), *x.shape[-2:])


def alike(row: Row, other: Row) -> bool:
    """Whether two rows fit one forward."""
    pairs = [(conds["model_conds"], others["model_conds"]) for conds, others in zip(row.entries, other.entries)]
    hooks = [[entry.get("hooks") for entry in one.entries] for one in (row, other)]
    same = (row.objective, row.predicted, row.x.shape) == (other.objective, other.predicted, other.x.shape)
    return same and hooks[0] == hooks[1] and all(
        cond.can_concat(others[name]) for conds, others in pairs for name, cond in conds.items())


def grouped(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """The rows in groups of up to so many that fit one forward."""
    groups: list[list[Row]] = []
    for row in rows:
        group = next((g for g in groups if len(g) < most and alike(g[0], row)), None)
        if group is None:
            groups.append(group := [])
        group.append(row)
    return groups


def joined(entries: list[dict]) -> dict:
    """One processed cond entry for a batch of rows, made as the host joins its conds."""
    first, *others = entries
    conds = {name: type(cond)(cond.concat([entry["model_conds"][name] for entry in others]))
             for name, cond in first["model_conds"].items()} if others else first["model_conds"]
    return {**first, "model_conds": conds}
