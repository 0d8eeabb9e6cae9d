"""One sampling run of an edited MODEL.

An editor is a frozen description that `attach` puts on a clone of the MODEL. When the clone is sampled, four of the host's
wrappers give every editor its turn, ask the host where the run stands (σ, rows, blocks), and drop all that the run gathered
at its end, also when it is cancelled or fails. The model itself is never changed.
"""
import math
from dataclasses import dataclass, field

import comfy.sampler_helpers
import comfy.samplers
from comfy.patcher_extension import WrappersMP
from comfy.utils import repeat_to_batch_size

from .canvas import about, afresh, here, log
from .keys import KEY, RUN, running
from .reference import Reference, null_entries
from .sampling import Solver, digest
from .tiles import TILES, keys, locating


class Editor:
    """Base of what a node attaches to a MODEL. Subclasses are frozen dataclasses, with the field `inversion` where they hold one;
    a run's own state lives in `run.memory`. prompts: CONDITIONINGs of its own; `run.prompts(editor)` has them encoded."""
    prompts = ()

    roles = ("target",)  # the rows that it acts on, "target" and "null"
    lends = False  # whether its inversion is of another picture than the one sampled, so that no run begins at its noise
    holds = False  # whether it keeps a part of the picture as it was: then it has the last word, wherever it stands in the chain
    follows = False  # whether it edits by the target's prompt alone, so that the source's own changes nothing
    node = None  # (id, class) of the one that attached it, None outside a graph

    def __deepcopy__(self, memo):
        return self

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

    def before(self, run, x, sigma):
        """The x that the model is to see, in sampler space."""
        return x

    def after(self, run, x0, sigma):
        """The x0 that the sampler is to see, in sampler space."""
        return x0


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
    encoded: dict = field(default_factory=dict)
    memories: dict = field(default_factory=dict)
    levels: dict = field(default_factory=dict)
    standing: object = None  # a solver's of two latents (inversion/steps.py)

    def __deepcopy__(self, memo):
        return self

    def memory(self, editor) -> dict:
        return self.memories.setdefault(id(editor), {})

    def prompts(self, editor) -> list:
        """The cond lists of the editor's own prompts, which are neither the guider's nor exchange areas or control with them."""
        return self.encoded[id(editor)]

    def read(self, x, sigma):
        """Has the source's features of σ read now, for an editor whose `before` needs them; those that the call of the model
        reads."""
        options = self.guider.model_options
        to = {**options["transformer_options"], RUN: self, "sample_sigmas": self.sigmas}
        _read(self, comfy.samplers.calc_cond_batch, self.guider.inner_model, x, x.new_full((len(x),), sigma),
              {**options, "transformer_options": to})

    def stand(self, standing):
        """A solver of two latents is about to ask the network."""
        self.standing = standing
        if not standing.on_path:
            self.reference.read_alone()

    def shown(self, inversion, sigma):
        """What the network saw of the INVERSION where the run stands now, at σ: [pictures,C,…]."""
        if self.standing is None or self.standing.on_path:
            return inversion.at(sigma)
        return self.standing.shown(self.standing.source(inversion)[0])

    def landing(self, inversion, sigma):
        """The x0 with which the step that is being taken keeps to the INVERSION."""
        return inversion.landing(sigma) if self.standing is None else self.standing.landing(inversion)

    def within(self, sigma, start, end) -> bool:
        """Whether σ lies between two percents of the full schedule (the host's `percent_to_sigma`)."""
        return start < end and self._sigma(start) >= sigma >= self._sigma(end)

    def _sigma(self, percent):
        if percent not in self.levels:
            self.levels[percent] = float(self.guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(percent))
        return self.levels[percent]

    def warn_if_idle(self, name, acts):
        """Say that an editor acts(σ) at no step of this run; a warning, since another sampler may take the other steps."""
        steps = self.sigmas[:-1].tolist()
        if not any(map(acts, steps)):
            log.warning("%s acts on none of the %d steps being sampled (sigma %.4g to %.4g): move its start and end, unless "
                        "another sampler takes the steps they name.", name, len(steps), steps[0], steps[-1])

    def role(self, conds, index) -> str:
        """"target", "null" or "other" for a cond list the host handed to calc_cond_batch: by identity, else by where its first
        entry comes from (the host appends to each list the areas of the others, under their uuids)."""
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
        """The guider's lists that hold the target: the positive one, or where a guider has none, those that are not negative."""
        conds = self.guider.conds
        return {"positive"} & conds.keys() or {name for name in conds if "negative" not in name}


def editors(model) -> tuple:
    """The editors attached to a MODEL, first attached first."""
    return model.model_options["transformer_options"].get(KEY, ())


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


def require_plain(model, node):
    """Editors belong to the sampled MODEL alone."""
    if editors(model):
        raise ValueError(f"{node} reads the source as it is, this MODEL carries {len(editors(model))} edits: connect the MODEL "
                         "from before the first editor.")


def rows_may_mix(model, conditioning) -> bool:
    """Whether rows of different σ may share a forward: nothing on the conditioning or the model reads one σ for the batch."""
    options = model.model_options
    foreign = {k for k in options if k != "transformer_options"} | {k for k in options["transformer_options"] if k != KEY}
    wrapped = {key for kinds in (model.wrappers, model.callbacks) for keys in kinds.values() for key, found in keys.items() if found}
    bound = {"start_percent", "end_percent", "timestep_start", "timestep_end", "control", "gligen", "hooks"}
    return not (foreign or wrapped - {KEY} or bound & {k for _, extras in conditioning for k in extras})


def controls(entries, sigma) -> list:
    """The ControlNets that processed cond entries have for the whole picture at σ, each once, with None where one has none."""
    acting = (e for e in entries if "area" not in e and e.get("timestep_start", math.inf) >= sigma >= e.get("timestep_end", 0.0))
    return list(dict.fromkeys(e.get("control") for e in acting)) or [None]


def controlled_as(entries, others, sigma) -> list:
    """Processed cond entries under the ControlNets of the others, once under each, so that they differ by their words alone. The
    objects are shared: the host has made them ready, runs them in one forward with the others, and cleans them up."""
    return [{k: v for k, v in {**e, "control": c}.items() if k != "control" or c}
            for e in entries for c in controls(others, sigma)]


def _distinct(chosen) -> list:
    """The distinct INVERSIONs that some editors hold."""
    held = [getattr(e, "inversion", None) for e in chosen]
    return list({id(inversion): inversion for inversion in held if inversion is not None}.values())


def _sources(chosen) -> list:
    """The distinct INVERSIONs whose features some editor may read."""
    return _distinct(e for e in chosen if type(e).reads is not Editor.reads)


def _prepare_sampling(executor, model, noise_shape, conds, *args, **kwargs):
    """Lets the host count the sources and the editors' prompts in what it loads and makes room for, then takes them out again."""
    own = [inversion.conditioning for inversion in _sources(editors(model))] + [p for e in editors(model) for p in e.prompts]
    own = {f"{KEY}.{i}": comfy.sampler_helpers.convert_cond(conditioning) for i, conditioning in enumerate(own)}
    real_model, conds, models = executor(model, noise_shape, {**conds, **own}, *args, **kwargs)
    return real_model, {k: c for k, c in conds.items() if k not in own}, models


def _sampler_sample(executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, *args, **kwargs):
    afresh()
    options = extra_args["model_options"]["transformer_options"]
    run = Run(guider, sigmas, tuple(latent_image.shape), options[KEY])
    bad = int((~latent_image.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {latent_image.numel()} values of the LATENT being sampled are NaN or infinite: connect "
                         "Replay's LATENT, or repair the node that made it.")
    _check(run, getattr(executor.class_obj, "inversion", None))
    _warn(run, executor.class_obj)
    run.reference = Reference(guider, _sources(run.editors), sigmas,
                              lambda inversion: rows_may_mix(guider.model_patcher, inversion.conditioning))
    for editor in run.editors:
        _check_hooks(run, editor)
        run.encoded[id(editor)] = [_encode(guider, prompt, noise, latent_image, denoise_mask) for prompt in editor.prompts]
        with about(editor.node):
            editor.begin(run)
    options[RUN] = run
    try:
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    finally:
        del options[RUN]
        run.reference.clear()
        run.memories.clear()
        run.standing = run.x = None


def _encode(guider, prompt, noise, latent_image, denoise_mask) -> list:
    """A cond list, encoded as the host encodes the guider's."""
    conds = {"positive": comfy.sampler_helpers.convert_cond(prompt)}
    device = guider.model_patcher.load_device
    return comfy.samplers.process_conds(guider.inner_model, noise, conds, device, latent_image, denoise_mask)["positive"]


def _check_hooks(run, editor):
    """The host registers the hooks of the guider's prompts, and passes over others in silence."""
    known = getattr(run.guider.model_options.get("registered_hooks"), "hooks", ())
    own = (hook for prompt in editor.prompts for _, extras in prompt for hook in getattr(extras.get("hooks"), "hooks", ()))
    lost = sorted({type(hook).__name__ for hook in own if hook not in known})
    if lost:
        raise ValueError(f"{editor.name}'s own prompt carries hooks ({', '.join(lost)}) that the prompts being sampled have not, and "
                         "the host applies theirs alone: give the positive the same hooks (Cond Set Props), or take them off and "
                         "load the LoRA on the MODEL.")


def _check(run, stepped):
    """What no run can work with, for every editor that holds an INVERSION; stepped: the one whose own steps the SAMPLER takes."""
    replayed = {id(e.inversion) for e in run.editors if getattr(e, "replays", False)}
    acting = [e for e in run.editors if not getattr(e, "replays", False)]
    if acting and run.guider.model_options.get("context_handler") is not None:
        raise ValueError(f"Context windows show the model parts of the latent in turn, the editors on this MODEL ({len(acting)}) read "
                         "it whole: remove the Context Windows node.")
    for inversion in _distinct(run.editors):
        if inversion.theta and id(inversion) not in replayed:
            raise ValueError(f"The {inversion.method} INVERSION learned {', '.join(inversion.theta)} and nothing applies it: "
                             "put Replay Inversion on this MODEL and sample with its SAMPLER.")
        recorded = [name for name, theta in inversion.theta.items() if theta.applied_by == "step"]
        if recorded and inversion is not stepped:
            raise ValueError(f"The {inversion.method} INVERSION recorded {', '.join(recorded)} for its own steps, and another "
                             "SAMPLER is connected: connect Replay's SAMPLER.")
        if inversion.latents is None:
            if inversion in _sources(run.editors):
                raise ValueError(f"The {inversion.method} INVERSION holds no trajectory and an editor on this MODEL reads one: "
                                 "invert with a method that keeps it, such as DDIM Invert.")
            continue
        if tuple(inversion.shape[1:]) != run.shape[2:] or inversion.shape[0] != run.shape[1]:
            raise ValueError(f"The latent being sampled is {list(run.shape[1:])} (channels, height, width), the INVERSION's is "
                             f"{list(inversion.shape)}: start from Replay's LATENT, or invert a picture of this size.")
        if run.shape[0] % inversion.batch:
            raise ValueError(f"The latent being sampled has {run.shape[0]} rows, the INVERSION {inversion.batch} pictures: "
                             f"the rows must be a multiple of {inversion.batch} (Repeat Latent Batch).")
        inversion.require(run.sigmas)


def _warn(run, sampler):
    """What a run can do, and its user has hardly meant."""
    acting = [e for e in run.editors if not getattr(e, "replays", False)]
    for inversion in _distinct(run.editors):
        inversion.begin_run()
    if acting and getattr(run.guider, "cfg", None) == 0:
        log.warning("CFG 0 samples the negative prompt alone, and the editors on this MODEL (%d) work on the target's: raise CFG "
                    "(papers: 7.5; 1 is without guidance).", len(acting))
    known = _distinct(e for e in run.editors if not e.lends)
    if known and isinstance(sampler, (Solver, comfy.samplers.KSAMPLER)) and Solver.of(sampler).adds_noise:
        log.warning("The SAMPLER adds noise of its own: edits work, but reconstruction is not promised (euler adds none).")
    target = [e for name in run.edited() for e in run.guider.original_conds[name]]
    own = {digest([i.conditioning[0][0]]) for i in known}
    same = target and all("control" not in e and digest([e.get("cross_attn")]) in own for e in target)
    if acting and same and all(e.follows for e in acting):
        with about(acting[-1].node):
            log.warning("The prompt being sampled is the source's own, and the editors on this MODEL (%d) change nothing by "
                        "themselves: connect the target CONDITIONING to the sampler, or rewrite a word of it.", len(acting))


def _predict_noise(executor, x, timestep, model_options={}, seed=None):
    run = running(model_options)
    if run is None:
        return executor(x, timestep, model_options, seed)
    sigma = float(timestep[0])
    if not run.started:
        run.started = True
        _check_noise(run, x, sigma)
    for editor in sorted(run.editors, key=lambda e: e.holds):
        x = editor.before(run, x, sigma)
    run.x = x
    x0 = executor(x, timestep, model_options, seed)
    for editor in sorted(reversed(run.editors), key=lambda e: e.holds):
        x0 = editor.after(run, x0, sigma)
    return x0


def _check_noise(run, x, sigma):
    begun = [i for i in _distinct(e for e in run.editors if not e.lends) if i.latents]
    known = [repeat_to_batch_size(run.shown(i, sigma), x.shape[0]).to(x) for i in begun]
    apart, noisy = min((((x - z).norm() / z.norm(), z.norm()) for z in known), default=(0, 0))
    if 4 * x.norm() < noisy:
        raise ValueError(f"Sampling starts at sigma {sigma:.3g} from a latent of {100 * x.norm() / noisy:.0f} % of the "
                         "INVERSION's norm there, a picture without its noise: connect Replay's LATENT.")
    if apart > 0.5:
        log.warning("Sampling starts from other noise than the inversion (%.0f %% of its norm apart at sigma %.3g): connect "
                    "Replay's LATENT and SAMPLER, or turn add_noise off.", 100 * apart, sigma)


def _calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
    run = running(model_options)
    if run is None or any(conds[0] is entries for entries in run.reference.reading):
        return executor(model, conds, x_in, timestep, model_options)
    sigma = float(timestep[0])
    for editor in run.editors:
        conds = editor.conditions(run, conds, sigma)
    nulls = [c for i, c in enumerate(conds) if c is not None and run.role(conds, i) == "null"]
    _read(run, executor, model, x_in, timestep, model_options, nulls)
    x0s = executor(model, conds, x_in, timestep, _install(model_options, run.editors, Call(run, "write", conds, sigma, x_in)))
    for editor in reversed(run.editors):
        x0s = editor.predicted(run, x0s, x_in, sigma)
    return x0s


def _read(run, executor, model, x_in, timestep, model_options, nulls=()):
    sigma = float(timestep[0])

    def patch(readers, conds, x, levels, prompts):
        return _install(model_options, readers, Call(run, "read", conds, sigma, x, levels, prompts))

    run.reference.read(executor, model, x_in, timestep, sigma, lambda level: [e for e in run.editors if e.reads(run, level)],
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


@dataclass(frozen=True)
class Call:
    """One calc_cond_batch.

    mode: "read" (the reference's rows) or "write" (the host's own).
    x: the latents that it is given.
    levels: where it reads, all the σ of its rows.
    prompts: where it reads, the prompt of each cond list, as Reference names it.
    """
    run: Run
    mode: str
    conds: list
    sigma: float
    x: object
    levels: tuple = ()
    prompts: tuple = ()
    chunks: dict = field(default_factory=dict)

    @property
    def whole(self):
        """The latent of which x is all or a window."""
        return self.x if self.x.shape[-2:] == self.run.shape[-2:] else self.run.x

    def parts(self, options) -> list:
        """(index, uuid, role, entry) of each part of a forward's rows, in their order: of each chunk, and where another node cuts
        the latent into tiles, of each tile, which is its entry's area."""
        areas = options.get(TILES, [None] * len(options["uuids"]))
        if areas is None:
            raise ValueError(f"Another node shows the network a forward that is no part of the latent of {self.run.shape[-2]} x "
                             f"{self.run.shape[-1]} cells being sampled, and the {len(self.run.editors)} editors on this MODEL "
                             "cannot tell which places it is of: remove the node that tiles, turns or resizes the latent.")
        named = [(index, uuid, *self.chunk(index, uuid)) for index, uuid in keys(options)]
        return [(*rest, entry if area is None else {**entry, "area": area}) for area, (*rest, entry) in zip(areas, named)]

    def chunk(self, index, uuid):
        """(role, entry) of one chunk of a forward, from its `cond_or_uncond` index and uuid.

        Where another list has an area, the host makes an entry of the same area here: its text, and so its tokens, are
        those of an entry of this list."""
        if (index, uuid) not in self.chunks:
            self.chunks[index, uuid] = self._chunk(index, uuid)
        return self.chunks[index, uuid]

    def _chunk(self, index, uuid):
        entry = next(e for e in self.conds[index] if e["uuid"] == uuid)
        text = entry["model_conds"].get("c_crossattn")
        owner = next(e for e in self.conds[index] if e["model_conds"].get("c_crossattn") is text)
        role = self.run.role(self.conds, index)
        prompt = owner["uuid"] if role == "null" else None
        entry = {**entry, "palimpsest_tokens": owner.get("palimpsest_tokens"), "palimpsest_prompt": prompt}
        if "area" in entry:  # of which the host leaves out what lies past an edge
            sizes, starts = entry["area"][:len(entry["area"]) // 2], entry["area"][len(entry["area"]) // 2:]
            ends = self.run.shape[-len(sizes):]
            entry["area"] = (*(min(size, end - start) for size, start, end in zip(sizes, starts, ends)), *starts)
        return role, entry

    def readers(self, index, edits) -> list:
        """Those of some edits that read what a read's cond list shows."""
        return [e for e in edits if "null" in e.roles or self.prompts[index] is None]


_WRAPPERS = {WrappersMP.PREPARE_SAMPLING: _prepare_sampling, WrappersMP.SAMPLER_SAMPLE: _sampler_sample,
             WrappersMP.PREDICT_NOISE: _predict_noise, WrappersMP.CALC_COND_BATCH: _calc_cond_batch}
