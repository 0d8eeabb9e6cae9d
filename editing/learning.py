"""Learning a concept from pictures, as a plain call.

    concept = learn_concept(model, clip, images, [LoRA(lr=1e-4)], steps=500)
    model, clip = applied(model, clip, concept)

What is trained is a paper's (concept/); the loop is the same for all. A row is a picture with noise of a level σ. Its
loss is what the model was trained with, ‖c(σ)·(x̂0 - x0)‖² as a mean over places and channels: c = 1/σ turns an error
of x0 into one of ε, and into one of the velocity on flow models; c = √(1+σ²)/σ into one of v. Rows of a prior are
averaged apart and count λ; x0 of theirs may be what the frozen model predicts. An `Objective` puts another loss in the
place of the concept's rows' own.
"""
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from ..host.canvas import log
from ..host.concept_files import encoder_lora_names, tables, with_weights, with_words, word_exists
from ..host.gradients import differentiable
from ..host.guiders import PromptGuider
from ..host.progress import before_a_cancel, raise_if_cancelled
from ..host.sampling import Solver, check_family, fingerprint, sample_with
from ..inversion.grid import report_step
from .concept_checks import check, material, say_other_material
from .concepts import Concept, ConceptImages, NewWord, Objective, Prior, PromptRows, WeightBasis
from .forecast import Forecast, forecast
from .learner import Learner
from .watching import Watch, Watching

CLIPPED = 1.0  # diffusers' max_grad_norm


def applied(model, clip, concept: Concept, strength_model: float = 1.0, strength_clip: float = 1.0) -> tuple:
    """(MODEL, CLIP) that know a concept. At strength 0 the weights stay as they are; words do not have strengths."""
    check_family(model, concept, "CONCEPT", "learn")
    if clip:
        _check_clip(clip, concept)
    twice = [name for name in concept.words if clip and word_exists(clip, name)]
    if twice:
        log.warning("The CLIP knows an embedding called %s, and the CONCEPT's takes its place: to use both, learn one "
                    "of them under another name.", ", ".join(twice))
    model, clip = with_weights(model, clip, concept.weights, strength_model, strength_clip)
    return model, with_words(clip, concept.words)


def _check_clip(clip, concept):
    """ValueError where a CLIP is of another family than the one that a concept's text was learned on."""
    has = {key: part.transformer.get_input_embeddings().weight.shape[1] for key, (_, part) in tables(clip).items()}
    for name, vectors in concept.words.items():
        learned = {encoder: v.shape[-1] for encoder, v in vectors.items()}
        apart = {encoder for encoder, _ in learned.items() ^ has.items()}
        if any("t5" not in encoder or encoder in learned.keys() & has.keys() for encoder in apart):  # SD3 may lack T5
            raise ValueError(f"The CONCEPT's word {name} has vectors of the widths {learned}, this CLIP's are {has}: "
                             "connect the CLIP of the family that it was learned on.")
    text = {name.split(".")[0] for name in concept.weights if name.startswith("lora_te")}
    strange = sorted(text.difference(encoder_lora_names(clip).values()))
    if strange:
        raise ValueError(f"{len(strange)} of the CONCEPT's {len(text)} changes of a text encoder, such as "
                         f"{strange[0]}, have no place in this CLIP: connect the CLIP of the family that it was "
                         "learned on.")


def learn_concept(model, clip, images: ConceptImages, trained: Sequence[WeightBasis | NewWord | PromptRows],
                  prior: Prior | None = None, steps: int = 500, batch: int = 1, seed: int = 0,
                  concept: Concept | None = None, watch: Watch | None = None,
                  told: Callable[[Forecast], None] | None = None, recompute: bool | None = None,
                  norm: float = CLIPPED, objective: Objective | None = None, save_every: int = 0,
                  save: Callable[[Concept], None] | None = None) -> Concept:
    """Train on pictures for some steps, on `batch` rows of them a step and as many of the prior.

    clip: None where a PromptRows stands for the captions.
    concept: one that the same call learned, to go on from: n and n steps learn what 2n do, bit for bit. Other pictures,
        captions or another prior are said.
    watch: stops sooner where nothing more is won, and gives the best that was found. What goes on from it goes on from
        the last step, with the looks so far where it is watched too.
    told: is called with what a step needs, before the first one. Of large models it is found out in any case.
    recompute: whether blocks are computed again in the backward pass, for less memory. None does where it is needed.
    norm: the most that a step's gradient of the weights may measure; a longer one is shortened.
    save: is called with what was learned so far, every `save_every` steps and where learning is cancelled or breaks
        off by a loss that is no number.
    """
    about = {"trained": [repr(one) for one in trained], "objective": repr(objective)}
    given = {**material(images, prior), "batch": batch}
    check(model, clip, images, trained, prior, concept, about, objective)
    alike = not concept or say_other_material(concept, given)
    learner = Learner(model, clip, images, trained, prior, batch, seed, norm, objective)
    learner.recomputed = bool(recompute) and not learner.maps
    losses, looks, at = list(concept.losses if concept else ()), [], {}

    def found(state) -> Concept:
        words, tables, weights, prompt, compact = learner.learned()
        notes = {**about, **given, "steps": len(losses), "seed": seed,
                 **({"kept": looks[-1].step} if looks else {})}
        return Concept(words, weights, fingerprint(model), tuple(losses), notes, state, tuple(looks),
                       prompt, tables, compact)

    def run(options, sigmas, callback):
        learner.begin(options, concept.state if concept else None)
        if told or not learner.together:
            needed = forecast(learner, recompute, watch is not None)
            if told:
                told(needed)
        kept = begun = len(losses)
        seen = concept.state.get("watch") if concept and concept.state and alike else None
        watching = Watching(watch, learner, begun, seen) if watch else None

        def state():
            return learner.state() | ({"watch": watching.state()} if watching else {})

        def keep():
            nonlocal kept
            kept = len(losses)
            if save:
                now = state()
                with watching.averaged() if watching else nullcontext():
                    save(found(now))

        def keep_rest():
            if save_every and len(losses) > kept:
                keep()

        with before_a_cancel(keep_rest):
            for step in range(steps):
                raise_if_cancelled()
                loss, noisy, clean, sigma = learner.step()
                if loss != loss:
                    said = (f"The loss or its gradient is no number in step {step + 1} of {steps}, at sigma "
                            f"{sigma:.3g} with weights in {model.model_dtype()}: lower the learning rate, or start "
                            "ComfyUI with --force-fp32.")
                    keep_rest()
                    if watching.better if watching else len(losses) > begun:
                        last = watching.best[0].step if watching else len(losses)
                        log.warning("%s What was learned until then is kept, of step %s.", said, last)
                        break
                    raise ValueError(said)
                losses.append(loss)
                if watching:
                    watching.follow(len(losses))
                stop = watching is not None and watching.due(len(losses)) and watching.look(len(losses))
                sheet = watching.sheet if watching else None
                report_step(callback, step, noisy, sigmas[step], clean if sheet is None else sheet)
                if save_every and (step + 1) % save_every == 0:
                    keep()
                if stop:
                    break
            at.update(state())
            if watching and watching.looks[-1].step < len(losses):  # a longer run has no such look
                watching.look(len(losses))
        if watching:
            looks.extend(watching.keep_best())

    _on_the_network(learner, run, steps, seed)
    return found(at)


def step_needs(model, clip, images: ConceptImages, trained: Sequence[WeightBasis | NewWord | PromptRows],
               prior: Prior | None = None, batch: int = 1, watched: bool = False) -> Forecast:
    """What a step of the same run needs, without learning. ValueError where that cannot be learned, or is more than
    there is."""
    check(model, clip, images, trained, prior, None, {})
    learner = Learner(model, clip, images, trained, prior, batch, 0, CLIPPED, None)
    needed = []

    def run(options, sigmas, callback):
        learner.begin(options, None)
        needed.append(forecast(learner, None, watched))

    _on_the_network(learner, run)
    return needed[0]


def _on_the_network(learner, run, steps=1, seed=0):
    """Calls run(model_options, sigmas, callback) once the host has loaded what learns."""
    def solver(denoise, x, sigmas, extra_args, callback, disable):
        run(extra_args["model_options"], sigmas, callback)
        return x

    first, identifier = learner.images.examples[0], learner.images.identifier
    with differentiable(learner.model, learner.deltas, lambda: learner.recomputed) as m:
        learner.guider = PromptGuider(m, {"any": [learner.told(first.caption, identifier, 0)]})
        levels = torch.linspace(1, 0, max(steps, 1) + 1)  # a sampler of no level is not called
        sample_with(learner.guider, first.latent[None].float().clone(), levels, Solver(solver), seed=seed)
