"""One sampling run of an edited MODEL.

An editor is a frozen description that `attach` puts on a clone of the MODEL. When the clone is sampled, five of the
host's wrappers give every editor its turn, ask the host where the run is (σ, rows, blocks), and drop all that the run
gathered at its end, also when it is cancelled or fails. The model itself is never changed.
"""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from ..host import gradients
from ..host.canvas import concerning, executing_node, log, retract_warnings
from ..host.guiders import CFGGuider, calc_cond_batch, convert_cond, encoded
from ..host.hooks import register_weights
from ..host.keys import KEY, RUN, running
from ..host.network import Attention, attentions
from ..host.options import WrappersMP, add_wrappers, with_transformer
from ..inversion.grid import CoupledState
from ..inversion.method import method_of
from ..inversion.trajectory import Inversion
from .call import Call
from .checks import (
    check_finite,
    check_hooks,
    check_noise,
    check_run,
    inversions_of,
    inversions_read,
    warn_of_memory,
    warn_of_run,
    warn_of_start,
)
from .editor import Editor, editors
from .predictions import Questions
from .reference import Reference, null_entries


@dataclass(eq=False)
class Run:
    """What one sampling run knows, and what its editors gather until its end.

    guider, sigmas: the host's.
    shape: of the latent being sampled, [B,C,…].
    editors: the first attached first.
    reference: the source's features.
    x: the latent at this σ, as the model sees it.
    started: whether the model was asked.
    asked: whether editors were asked for predictions in this evaluation of the model.
    coupled: the state of a solver that holds two latents.
    """
    guider: CFGGuider
    sigmas: Tensor
    shape: tuple
    editors: tuple[Editor, ...]
    reference: Reference = field(init=False)
    x: Tensor | None = None
    started: bool = False
    asked: bool = False
    coupled: CoupledState | None = None
    _encoded: dict[int, list] = field(default_factory=dict)
    _states: dict[int, Any] = field(default_factory=dict)
    _levels: dict[float, float] = field(default_factory=dict)
    _stand_ins: dict = field(default_factory=dict)
    _warned: set = field(default_factory=set)

    def __deepcopy__(self, memo):
        return self

    def start(self, noise, latent_image, denoise_mask):
        """Encodes all prompts and lets every editor begin."""
        self.reference = Reference(self)
        for editor in self.editors:
            check_hooks(self, editor)
            self._encoded[id(editor)] = [encoded(self.guider, prompt, noise, latent_image, denoise_mask)
                                         for prompt in editor.prompts]
            with concerning(editor.node):
                editor.begin(self)

    def end(self):
        """Drops what was gathered."""
        self.reference.clear()
        self._states.clear()
        self._stand_ins.clear()
        self.coupled = self.x = None

    def state(self, editor: Editor) -> Any:
        """What an editor gathers in this run: an instance of its State."""
        if id(editor) not in self._states:
            self._states[id(editor)] = editor.State()
        return self._states[id(editor)]

    def prompts(self, editor: Editor) -> list:
        """The cond lists of an editor's own prompts. They exchange neither areas nor control with the guider's."""
        return self._encoded[id(editor)]

    @cached_property
    def sites(self) -> dict[Attention, float]:
        """{every attention of the network: the side of its grid over the latent's}."""
        return attentions(self.guider.inner_model.diffusion_model)

    def read(self, x: Tensor, sigma: float):
        """Reads the source's features of σ now, for an editor whose `before` needs them. The model's own call at σ then
        reads no others."""
        options = with_transformer(self.guider.model_options, **{RUN: self, "sample_sigmas": self.sigmas})
        levels = x.new_full((len(x),), sigma)
        self.reference.read(self, calc_cond_batch, self.guider.inner_model, x, levels, options, {})

    def graph(self) -> AbstractContextManager[dict]:
        """model_options for calls of the model between two steps, through which autograd differentiates for x. Editors
        take no part. Forward and backward belong inside; tensors of the graph must be made or cloned inside."""
        return gradients.graph(self.guider, self.sigmas, self._stand_ins)

    def couple(self, state: CoupledState):
        """A solver of two latents is about to ask the network."""
        self.coupled = state
        if not state.on_path:
            self.reference.read_alone()

    def shown(self, inversion: Inversion, sigma: float) -> Tensor:
        """What the network saw of the INVERSION at this point of the run, at σ: [pictures,C,…]."""
        if self.coupled is None or self.coupled.on_path:
            return inversion.at(sigma)
        return self.coupled.shown(self.coupled.source(inversion)[0])

    def lower(self, inversion: Inversion, sigma: float) -> float:
        """The level from which the INVERSION's trajectory came to σ; σ itself between its steps, where its levels are
        noised apart, and where the network saw other latents."""
        if self.coupled is not None and not self.coupled.on_path:
            return sigma
        return method_of(inversion).lower(inversion, sigma)

    def read_at(self, inversion: Inversion, where: tuple[bool, float], sigma: float) -> float:
        """The level at which an editor that reads there (`Editor.where`) is shown the INVERSION at σ."""
        lower, middle = where
        if not middle:
            return self.lower(inversion, sigma) if lower else sigma
        level = self._level(middle)
        if sigma <= level or self.coupled is not None and not self.coupled.on_path:
            return sigma
        steps = method_of(inversion).sigmas(inversion)[:-1].tolist()
        return min(sigma, *sorted(steps, key=lambda own: abs(own - level))[:1])

    def landing(self, inversion: Inversion, sigma: float) -> Tensor:
        """The x0 with which the step that is being taken keeps to the INVERSION."""
        if self.coupled is None:
            return method_of(inversion).landing(inversion, sigma)
        return self.coupled.landing(inversion)

    def within(self, sigma: float, start: float, end: float) -> bool:
        """Whether σ lies between two percents of the full schedule (the host's `percent_to_sigma`)."""
        return start < end and self._level(start) >= sigma >= self._level(end)

    def _level(self, percent) -> float:
        if percent not in self._levels:
            sampling: Any = self.guider.model_patcher.get_model_object("model_sampling")
            self._levels[percent] = float(sampling.percent_to_sigma(percent))
        return self._levels[percent]

    def warn_once(self, editor: Editor, message: str, *args):
        """Logs a warning that concerns an editor's node, once a run."""
        if (id(editor), message) not in self._warned:
            self._warned.add((id(editor), message))
            with concerning(editor.node):
                log.warning(message, *args)

    def warn_if_idle(self, name: str, acts: Callable[[float], bool]):
        """Warns where an editor acts(σ) at no step of this run, nor in the middle of one where the method that is
        replayed asks there. Another sampler may take the steps at which it does."""
        steps = self.sigmas[:-1].tolist()
        replayed = map(method_of, inversions_of(e for e in self.editors if e.replays))
        if not any(map(acts, (s for levels in (self.sigmas, *(m.levels(self.sigmas) for m in replayed))
                              for s in levels[:-1].tolist()))):
            log.warning("%s acts on none of the %d steps being sampled (sigma %.4g to %.4g): move its start and end, "
                        "unless another sampler takes the steps they name.", name, len(steps), steps[0], steps[-1])

    def role(self, conds: Sequence[list | None], index: int) -> str:
        """"target", "null" or "other" for a cond list the host handed to calc_cond_batch: by identity, else by where
        its first entry comes from (the host appends to each list the areas of the others, under their uuids)."""
        mine = conds[index] or []
        names = [n for n, held in self.guider.conds.items() if held is conds[index]]
        first = {e["uuid"] for e in mine[:1]}
        names = names or [n for n, own in self.guider.original_conds.items() if first & {e["uuid"] for e in own}]
        if names and set(names) <= self.edited():
            return "target"
        return "null" if any("negative" in n for n in names) else "other"

    def targets(self) -> list:
        """The processed target entries."""
        return [e for name in self.edited() for e in self.guider.conds[name]]

    def edited(self) -> set:
        """The names of the guider's lists that hold the target: the positive one, or where a guider has none, those
        that are not negative."""
        conds = self.guider.conds
        return {"positive"} & conds.keys() or {name for name in conds if "negative" not in name}


def attach(model, editor: Editor, replacing: Editor | None = None):
    """A clone of the MODEL with one more editor, or with it instead of another."""
    retract_warnings()
    object.__setattr__(editor, "node", executing_node())
    m = model.clone()
    held = tuple(editor if e is replacing else e for e in editors(model))
    m.model_options["transformer_options"][KEY] = held if replacing else (*held, editor)
    add_wrappers(m, KEY, _WRAPPERS)
    return m


def alone(model, editor: Editor):
    """A clone of the MODEL with this one of its editors only."""
    m = model.clone()
    m.model_options["transformer_options"][KEY] = (editor,)
    return m


def _prepare_sampling(executor, model, noise_shape, conds, *args, **kwargs):
    """Lets the host count the sources and the editors' prompts when it loads and makes room.
    Then removes them again."""
    sources = [inversion.conditioning for inversion in inversions_read(editors(model))]
    own = {f"{KEY}.{i}": convert_cond(prompt)
           for i, prompt in enumerate([*sources, *(p for e in editors(model) for p in e.prompts)])}
    real_model, conds, models = executor(model, noise_shape, {**conds, **own}, *args, **kwargs)
    return real_model, {k: c for k, c in conds.items() if k not in own}, models


def _outer_sample(executor, *args, **kwargs):
    """The host knows the hooks of the guider's prompts. Those of the editors' own are added."""
    guider = executor.class_obj
    register_weights(guider, (prompt for e in editors(guider.model_patcher) for prompt in e.prompts))
    return executor(*args, **kwargs)


def _sampler_sample(executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, *args,
                    **kwargs):
    retract_warnings()
    if len(sigmas) < 2:  # one level, as SplitSigmas leaves at an end: no step, so nothing to edit
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    options = extra_args["model_options"]["transformer_options"]
    run = Run(guider, sigmas.clone(), tuple(latent_image.shape), options[KEY])  # uni_pc writes into its own
    check_finite(latent_image)
    stepped = getattr(executor.class_obj, "inversion", None)
    check_run(run, stepped)
    warn_of_run(run, executor.class_obj)
    warn_of_start(stepped, latent_image, float(sigmas[0]))
    warn_of_memory(run, executor.class_obj, noise, latent_image)
    run.start(noise, latent_image, denoise_mask)
    options[RUN] = run
    try:
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    finally:
        del options[RUN]
        run.end()


def _predict_noise(executor, x, timestep, model_options=None, seed=None):
    model_options = model_options or {}
    run = running(model_options)
    if run is None:
        return executor(x, timestep, model_options, seed)
    sigma, run.asked = float(timestep[0]), False
    if not run.started:
        run.started = True
        check_noise(run, x, sigma)
    for editor in sorted(run.editors, key=lambda e: e.holds):
        x = editor.before(run, x, sigma)
    run.x = x
    x0 = executor(x, timestep, model_options, seed)
    for editor in sorted(reversed(run.editors), key=lambda e: e.holds):
        x0 = editor.after(run, x0, sigma)
    return x0


def _calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
    run = running(model_options)
    if run is None or any(conds[0] is entries for entries in run.reference.reading):
        return executor(model, conds, x_in, timestep, model_options)
    sigma = float(timestep[0])
    questions = Questions(run, conds, sigma)
    conds = questions.conds
    for editor in run.editors:
        conds = editor.conditions(run, conds, sigma)
    nulls = [c for i, c in enumerate(conds) if c is not None and run.role(conds, i) == "null"]
    run.reference.read(run, executor, model, x_in, timestep, model_options, null_entries(nulls, sigma))
    x0s = executor(model, conds, x_in, timestep, Call(run, conds, sigma, x_in).install(model_options, run.editors))
    return questions.answer(x0s)


_WRAPPERS = {WrappersMP.OUTER_SAMPLE: _outer_sample, WrappersMP.PREPARE_SAMPLING: _prepare_sampling,
             WrappersMP.SAMPLER_SAMPLE: _sampler_sample, WrappersMP.PREDICT_NOISE: _predict_noise,
             WrappersMP.CALC_COND_BATCH: _calc_cond_batch}
