"""One sampling run of an edited MODEL.

An editor is a frozen description that `attach` puts on a clone of the MODEL. When the clone is sampled, four of the
host's wrappers give every editor its turn, ask the host where the run stands (σ, rows, blocks), and drop all that the
run gathered at its end, also when it is cancelled or fails. The model itself is never changed.
"""
from dataclasses import dataclass, field

import comfy.sampler_helpers
import comfy.samplers
from comfy.patcher_extension import WrappersMP

from ..host.canvas import about, afresh, here, log
from ..host.keys import KEY, RUN, running
from ..host.sampling import rows_may_mix
from ..host.tiles import locating
from ..inversion.grid import CoupledState
from ..inversion.method import method_of
from .call import Call
from .checks import check_hooks, check_noise, check_run, inversions_read, warn_of_run
from .editor import editors
from .predictions import Questions
from .reference import Reference, null_entries


@dataclass(eq=False)
class Run:
    """What one sampling run knows: the host's guider and schedule, the editors, and what they gather until its end."""
    guider: object
    sigmas: object
    shape: tuple
    editors: tuple
    reference: Reference = field(init=False)
    x: object = None  # the latent at this σ, as the model sees it
    started: bool = False
    asked: bool = False  # whether editors were asked for predictions in this evaluation of the model
    encoded: dict = field(default_factory=dict)
    memories: dict = field(default_factory=dict)
    states: dict = field(default_factory=dict)
    levels: dict = field(default_factory=dict)
    coupled: CoupledState | None = None  # of a solver that holds two latents

    def __deepcopy__(self, memo):
        return self

    def state(self, editor):
        """What an editor gathers in this run: an instance of its State."""
        return self.states.setdefault(id(editor), editor.State())

    def memory(self, editor) -> dict:
        return self.memories.setdefault(id(editor), {})

    def prompts(self, editor) -> list:
        """The cond lists of the editor's own prompts, which are neither the guider's nor exchange areas or control with
        them."""
        return self.encoded[id(editor)]

    def read(self, x, sigma):
        """Has the source's features of σ read now, for an editor whose `before` needs them; those that the call of the
        model reads."""
        options = self.guider.model_options
        to = {**options["transformer_options"], RUN: self, "sample_sigmas": self.sigmas}
        _read(self, comfy.samplers.calc_cond_batch, self.guider.inner_model, x, x.new_full((len(x),), sigma),
              {**options, "transformer_options": to})

    def couple(self, state: CoupledState):
        """A solver of two latents is about to ask the network."""
        self.coupled = state
        if not state.on_path:
            self.reference.read_alone()

    def shown(self, inversion, sigma):
        """What the network saw of the INVERSION where the run stands now, at σ: [pictures,C,…]."""
        if self.coupled is None or self.coupled.on_path:
            return inversion.at(sigma)
        return self.coupled.shown(self.coupled.source(inversion)[0])

    def landing(self, inversion, sigma):
        """The x0 with which the step that is being taken keeps to the INVERSION."""
        return method_of(inversion).landing(inversion, sigma) if self.coupled is None else self.coupled.landing(inversion)

    def within(self, sigma, start, end) -> bool:
        """Whether σ lies between two percents of the full schedule (the host's `percent_to_sigma`)."""
        return start < end and self._sigma(start) >= sigma >= self._sigma(end)

    def _sigma(self, percent):
        if percent not in self.levels:
            self.levels[percent] = float(self.guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(percent))
        return self.levels[percent]

    def warn_if_idle(self, name, acts):
        """Say that an editor acts(σ) at no step of this run; a warning, since another sampler may take the other
        steps."""
        steps = self.sigmas[:-1].tolist()
        if not any(map(acts, steps)):
            log.warning("%s acts on none of the %d steps being sampled (sigma %.4g to %.4g): move its start and end, "
                        "unless another sampler takes the steps they name.", name, len(steps), steps[0], steps[-1])

    def role(self, conds, index) -> str:
        """"target", "null" or "other" for a cond list the host handed to calc_cond_batch: by identity, else by where
        its first entry comes from (the host appends to each list the areas of the others, under their uuids)."""
        names = [n for n, mine in self.guider.conds.items() if mine is conds[index]]
        first = {e["uuid"] for e in conds[index][:1]}
        names = names or [n for n, own in self.guider.original_conds.items() if first & {e["uuid"] for e in own}]
        if names and set(names) <= self.edited():
            return "target"
        return "null" if any("negative" in n for n in names) else "other"

    def targets(self) -> list:
        """The processed target entries."""
        return [e for name in self.edited() for e in self.guider.conds[name]]

    def edited(self) -> set:
        """The guider's lists that hold the target: the positive one, or where a guider has none, those that are not
        negative."""
        conds = self.guider.conds
        return {"positive"} & conds.keys() or {name for name in conds if "negative" not in name}


def attach(model, editor, replacing=None):
    """A clone of the MODEL with one more editor, or with it in the place of another."""
    afresh()
    object.__setattr__(editor, "node", here())
    m = model.clone()
    held = tuple(editor if e is replacing else e for e in editors(model))
    m.model_options["transformer_options"][KEY] = held if replacing else (*held, editor)
    for kind, wrapper in _WRAPPERS.items():
        if not m.get_wrappers(kind, KEY):
            m.add_wrapper_with_key(kind, KEY, wrapper)
    return m


def alone(model, editor):
    """A clone of the MODEL with this one of its editors only."""
    m = model.clone()
    m.model_options["transformer_options"][KEY] = (editor,)
    return m


def _prepare_sampling(executor, model, noise_shape, conds, *args, **kwargs):
    """Lets the host count the sources and the editors' prompts in what it loads and makes room for, then takes them out
    again."""
    own = [inversion.conditioning for inversion in inversions_read(editors(model))] + [p for e in editors(model) for p in e.prompts]
    own = {f"{KEY}.{i}": comfy.sampler_helpers.convert_cond(conditioning) for i, conditioning in enumerate(own)}
    real_model, conds, models = executor(model, noise_shape, {**conds, **own}, *args, **kwargs)
    return real_model, {k: c for k, c in conds.items() if k not in own}, models


def _sampler_sample(executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, *args,
                    **kwargs):
    afresh()
    options = extra_args["model_options"]["transformer_options"]
    run = Run(guider, sigmas, tuple(latent_image.shape), options[KEY])
    bad = int((~latent_image.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {latent_image.numel()} values of the LATENT being sampled are NaN or infinite: "
                         "connect Replay's LATENT, or repair the node that made it.")
    check_run(run, getattr(executor.class_obj, "inversion", None))
    warn_of_run(run, executor.class_obj)
    run.reference = Reference(guider, inversions_read(run.editors), sigmas,
                              lambda inversion: rows_may_mix(guider.model_patcher, inversion.conditioning))
    for editor in run.editors:
        check_hooks(run, editor)
        run.encoded[id(editor)] = [_encode(guider, prompt, noise, latent_image, denoise_mask)
                                   for prompt in editor.prompts]
        with about(editor.node):
            editor.begin(run)
    options[RUN] = run
    try:
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    finally:
        del options[RUN]
        run.reference.clear()
        run.memories.clear()
        run.states.clear()
        run.coupled = run.x = None


def _encode(guider, prompt, noise, latent_image, denoise_mask) -> list:
    """A cond list, encoded as the host encodes the guider's."""
    conds = {"positive": comfy.sampler_helpers.convert_cond(prompt)}
    device = guider.model_patcher.load_device
    return comfy.samplers.process_conds(guider.inner_model, noise, conds, device, latent_image,
                                        denoise_mask)["positive"]


def _predict_noise(executor, x, timestep, model_options={}, seed=None):
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
    _read(run, executor, model, x_in, timestep, model_options, nulls)
    x0s = executor(model, conds, x_in, timestep, _install(model_options, run.editors,
                                                          Call(run, "write", conds, sigma, x_in)))
    for editor in reversed(run.editors):
        x0s = editor.predicted(run, x0s, x_in, sigma)
    return questions.answer(x0s)


def _read(run, executor, model, x_in, timestep, model_options, nulls=()):
    sigma = float(timestep[0])

    def patch(readers, conds, x, levels, prompts):
        return _install(model_options, readers, Call(run, "read", conds, sigma, x, levels, prompts))

    run.reference.read(executor, model, x_in, timestep, sigma,
                       lambda level: [e for e in run.editors if e.reads(run, level)],
                       null_entries(nulls), patch, run.shown)


def _install(model_options, chosen, call) -> dict:
    """model_options for one calc_cond_batch, with the editors' patches around whatever stands there now.

    Editors that share an `install` function are installed by one call of it, so that they act in one place."""
    groups = {}
    for editor in chosen:
        if hasattr(editor, "install"):
            groups.setdefault(editor.install, []).append(editor)
    if groups:
        model_options = locating(model_options, call)
    for function, group in groups.items():
        model_options = function(model_options, group, call)
    return model_options


_WRAPPERS = {WrappersMP.PREPARE_SAMPLING: _prepare_sampling, WrappersMP.SAMPLER_SAMPLE: _sampler_sample,
             WrappersMP.PREDICT_NOISE: _predict_noise, WrappersMP.CALC_COND_BATCH: _calc_cond_batch}
