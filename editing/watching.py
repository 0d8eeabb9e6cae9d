"""Looks at a run of learning while it goes: is the concept still better learned, has its class begun to drift?

Each look measures the mean loss of a few rows with fixed pictures, levels and noise, of the concept's pictures and of
the prior's. It may make a picture of a caption that was not learned. The best look's weights are what the run gives.

Single updates are noisy, so what is looked at is their average, the power function EMA of Karras, Aittala, Lehtinen,
Hellsten, Aila, Laine, CVPR 2024, arXiv:2312.02696, section 3.1:  θ̂_t = β_t θ̂_{t-1} + (1 - β_t) θ_t,
β_t = (1 - 1/t)^{γ+1}. It weighs the last steps of a run alike, however long the run is.
"""
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..host.canvas import log

ROWS = 8  # of a look, of the concept's pictures and of the prior's
GAMMA = 16.97  # γ of the paper's width 0.05: about a tenth of the steps count
BETTER = 0.99  # a look is better where the loss is under this share of the best one's


@dataclass(frozen=True)
class Watch:
    """every: steps between two looks.
    caption: of the pictures; * stands for the concept. None are made without it.
    drift: by which share the class's loss may grow. A look at which it has grown more is no better one; early in a run
        it may grow and fall again.
    patience: looks without a better one, after which learning stops.
    steps, cfg: of the pictures' sampling. cfg None is as one samples: by the objective's scale, at 1 where the model is
        told its guidance, or at 7.5.
    """
    every: int
    caption: str = ""
    drift: float = 0.3
    patience: int = 3
    steps: int = 15
    cfg: float | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """step: updates until then.
    concept, prior: the losses; the prior's is None without one.
    picture: [1,C,…] as VAE Decode takes it, or None.
    """
    step: int
    concept: float
    prior: float | None
    picture: Tensor | None


class Watching:
    """The looks of a run. `learner` is learner.py's.

    step: updates before the first look.
    state: of the looks to go on with, as `state` gives it.
    sheet: the pictures so far side by side, as a latent of sampler space.
    """

    def __init__(self, watch: Watch, learner, step: int = 0, state: Mapping[str, Any] | None = None):
        self.watch, self.learner = watch, learner
        self.looks: list[Look] = []
        self.sheet: Tensor | None = None
        self.counted = 0  # the step from which on looks are counted that are no better
        self.best: tuple[Look, list[Tensor]]  # with the values of what is trained
        if state:
            self.looks += state["looks"]
            self.average, best = ([value.to(leaf, copy=True) for value, leaf in zip(values, learner.leaves)]
                                  for values in (state["average"], state["values"]))
            self.best = self.looks[state["best"]], best
            for look in self.looks:
                self._show(look.picture)
            if self.due(step) and self.looks[-1].step < step:  # it was cancelled while it looked
                self.look(step)
            if self._waited():
                self.counted = step
            return
        self.average = [leaf.detach().clone() for leaf in learner.leaves]
        self.look(step)

    def state(self) -> dict:
        """What going on needs. values: of the best look."""
        average, values = ([value.cpu().clone() for value in held] for held in (self.average, self.best[1]))
        return {"looks": tuple(self.looks), "best": self.looks.index(self.best[0]), "average": average,
                "values": values}

    @property
    def better(self) -> bool:
        """Whether a look was better than the first."""
        return self.best[0] is not self.looks[0]

    def follow(self, step: int):
        """Takes what is trained into its average, after update `step` of the run."""
        share = 1 - (1 - 1 / (step - self.looks[0].step)) ** (GAMMA + 1)  # 1 - β_t
        for mean, leaf in zip(self.average, self.learner.leaves):
            mean.lerp_(leaf.detach(), share)

    def due(self, step: int) -> bool:
        return step % self.watch.every == 0

    def look(self, step: int) -> bool:
        """Looks once. Returns whether learning should stop."""
        learner, watch = self.learner, self.watch
        with torch.no_grad(), self.averaged():
            concept = learner.loss_of(learner.images, ROWS)
            prior = learner.loss_of(learner.prior.images, ROWS) if learner.prior else None
            picture = learner.picture(watch.caption, watch.steps, watch.cfg) if watch.caption else None
        look = Look(step, concept, prior, picture)
        self.looks.append(look)
        self._show(picture)
        if len(self.looks) == 1 or concept < BETTER * self.best[0].concept and not self._drifted(look):
            self.best = look, [mean.clone() for mean in self.average]
        return self._waited()

    def keep_best(self) -> list[Look]:
        """Puts the best look's values in the place of the last ones. Returns the looks up to it."""
        if not self.better:
            grown = "" if self.looks[0].prior is None else (
                f", and the class's grew from {self.looks[0].prior:.3g} to {self.looks[-1].prior:.3g}")
            log.warning("Nothing was learned in %s updates that is worth keeping: the concept's loss went from %.3g to "
                        "%.3g%s. Lower the learning rate, or let the class drift further.", self.looks[-1].step,
                        self.looks[0].concept, self.looks[-1].concept, grown)
        self._put(self.best[1])
        return [look for look in self.looks if look.step <= self.best[0].step]

    def _waited(self) -> bool:
        """Whether enough looks were no better."""
        since = max(self.best[0].step, self.counted)
        return sum(found.step > since for found in self.looks) >= self.watch.patience

    def _show(self, picture):
        if picture is not None:
            shown = self.learner.guider.inner_model.process_latent_in(picture)
            self.sheet = shown if self.sheet is None else torch.cat([self.sheet, shown], -1)

    @contextmanager
    def averaged(self):
        """While it lasts, what is trained has its average's values."""
        last = [leaf.detach().clone() for leaf in self.learner.leaves]
        self._put(self.average)
        try:
            yield
        finally:
            self._put(last)

    def _put(self, values):
        with torch.no_grad():
            for leaf, value in zip(self.learner.leaves, values, strict=True):
                leaf.copy_(value)

    def _drifted(self, look) -> bool:
        first = self.looks[0].prior
        return first is not None and look.prior > (1 + self.watch.drift) * first
