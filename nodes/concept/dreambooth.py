"""DreamBooth: all weights, and class-prior preservation."""
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from comfy_api.latest import io, ui

from ...concept.dreambooth import RARE, AllWeights
from ...concept.lora import LoRA
from ...concept.textual_inversion import TextualInversion
from ...editing.concept_checks import text_learns
from ...editing.concepts import SLOT, ConceptImages, Prior
from ...editing.learning import applied, learn_concept, step_needs
from ...editing.watching import Watch
from ...host.concept_files import vectors_of
from ...host.progress import before_a_cancel
from ...host.sampling import prediction_type
from ..inversion.report import decode
from ..search import aliases
from .images import PalimpsestClassImages, captions_of, class_prompts, encoded, named, once, say_guidance, shots
from .learn import Keeping, said, say_batch
from .widgets import (
    ConceptImagesType,
    ConceptType,
    ObjectiveType,
    TrainableType,
    added,
    more_input,
    more_objectives_input,
    rate_input,
    text_encoder_input,
)

NODE = "Learn a Subject"
NEW, FASTER = "embedding:", 5  # a word's rate over LoRA's: diffusers' 5e-4 over 1e-4
TEMPLATES = "\n".join(text.format(SLOT) for text in (
    "a photo of a {}", "a photo of a {} outside", "a close photo of a {}", "a picture of a {} in a room"))


def new_word(clip, identifier: str, noun: str, lr: float) -> list:
    """What an identifier embedding:NAME lets learn: a word like the noun, as long as it."""
    if not identifier.startswith(NEW):
        return []
    length = math.lcm(*map(len, vectors_of(clip, noun).values()))  # encoders may split it differently
    return [TextualInversion(identifier.removeprefix(NEW), noun, length, FASTER * lr)]


def class_templates(captions: Sequence[str], noun: str) -> str:
    """Prompts of the class: what the captions say of it, and the noun alone. Structured as they are, the class differs
    from the subject in the identifier alone."""
    said = [_noun(noun).sub(SLOT, " ".join(text.replace(SLOT, " ").split()), 1) for text in captions]
    return "\n".join(dict.fromkeys((*said, f"a photo of a {SLOT}"))) if said else TEMPLATES


def _noun(noun):
    """Finds it in a caption, as a word."""
    return re.compile(rf"(?<!\w){re.escape(noun)}(?!\w)", re.IGNORECASE)


class PalimpsestLearnAll(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnAll", display_name="DreamBooth (All Weights)", category="palimpsest/concept",
            **aliases("dreambooth", "fine-tune all", "train checkpoint", "my face", "my dog"),
            description="Lets a concept be learned in all weights of the network (Ruiz et al. 2022). The most faithful "
                        "way, with the largest file and the most memory. Add Prior Preservation.",
            inputs=[rate_input(5e-6, "diffusers: 5e-6, with the text encoder 2e-6. The miniature: 2e-4."),
                    text_encoder_input(), more_input()],
            outputs=[TrainableType.Output(display_name="trainable")])

    @classmethod
    def execute(cls, lr, text_encoder, more=None) -> io.NodeOutput:
        return added(AllWeights(lr, text_encoder), more)


class PalimpsestPriorPreservation(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPriorPreservation", display_name="Prior Preservation", category="palimpsest/concept",
            **aliases("regularization images", "regularisation", "class images", "language drift", "forgetting"),
            description="Pictures of the class are learned along with the concept, so that 'a dog' still means any dog "
                        "(DreamBooth, Ruiz et al. 2022).",
            inputs=[
                ConceptImagesType.Input("class_images", tooltip="From Class Images. The model made them before it "
                                                                "learned."),
                io.Float.Input("weight", default=1.0, min=0.0, max=100.0, step=0.05, tooltip=(
                    "What their loss counts beside the concept's. Paper: 1.")),
                more_objectives_input(),
                io.Boolean.Input("predicted", default=False, tooltip=(
                    "Whether the model keeps to what it predicted of them before it learned, in the place of the "
                    "pictures themselves. More of the class stays, a step takes a forward more. Paper: off.")),
            ],
            outputs=[ObjectiveType.Output(display_name="objective")])

    @classmethod
    def execute(cls, class_images, weight, more=None, predicted=False) -> io.NodeOutput:
        return io.NodeOutput((*(more or ()), Prior(class_images, weight, predicted)))


class PalimpsestLearnSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnSubject", display_name=NODE, category="palimpsest/concept",
            **aliases("dreambooth", "my dog", "my face", "my product", "few photos", "train LoRA", "personalize"),
            description="Learns a thing, an animal or a person from a few pictures: LoRA of network and text encoder "
                        "with class-prior preservation (DreamBooth). It looks at itself as it learns, stops when "
                        "nothing more is won or the class begins to drift, and gives the best that it found.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. It is not changed."),
                io.Clip.Input("clip"), io.Vae.Input("vae"),
                io.Image.Input("images", tooltip=(
                    "Three to five pictures of the subject in different places, a batch or a list. Any sizes, about "
                    "the model's.")),
                io.String.Input("noun", default="dog", tooltip="What it is, in a word that the model knows."),
                io.String.Input("identifier", default=RARE, tooltip=(
                    "What your subject is called in prompts, before the noun: 'a photo of a sks dog'. A rare token. "
                    f"diffusers: {RARE}. Or a new word, embedding:NAME, which is learned with the weights: your "
                    "subject keeps more of its looks in new places. Save Concept writes its file to "
                    "output/embeddings.")),
                io.Int.Input("steps", default=500, min=1, max=100_000,
                             tooltip="The most updates. diffusers: 500. The miniature: 300."),
                rate_input(1e-4, "diffusers: 1e-4. The miniature: 2e-3 to 4e-3."),
                io.Int.Input("rank", default=8, min=1, max=1024, tooltip="Width of LoRA's matrices. diffusers: 4."),
                io.Int.Input("batch", default=1, min=1, max=256, tooltip=(
                    "Pictures an update, and as many of the class. diffusers: 1. The miniature: 4.")),
                io.Int.Input("class_count", default=50, min=2, max=10_000, tooltip=(
                    "Pictures of the class that the model makes first. diffusers: 100.")),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1,
                               tooltip=(
                    "Of the pictures that it makes. The miniature: 3. Flux: 1.")),
                io.Float.Input("drift", default=0.3, min=0.0, max=10.0, step=0.01, tooltip=(
                    "By which share the class's loss may grow. Looks at which it has grown more are not kept.")),
                io.Int.Input("seed", default=0, min=0, max=2 ** 64 - 1, control_after_generate=True,
                             tooltip="Of pictures, levels and noise. Equal seeds learn equal weights."),
                io.String.Input("captions", multiline=True, default="", tooltip=(
                    "What the pictures show, one line a picture: 'a photo of a * dog on the beach'. * stands for the "
                    "subject. What a caption says is not learned with it. Empty: 'a photo of a * dog' for all.")),
                io.String.Input("new_scene", default="", tooltip=(
                    "The text of the pictures that show it as it learns, best one that no caption says. * stands for "
                    "the subject. Empty: 'a photo of a * dog in a garden'.")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "Where the subject is, one for all pictures or one each. Nothing else of them is learned.")),
                ConceptImagesType.Input("class_images", optional=True, tooltip=(
                    "From Class Images, which makes them once however often you learn. Without it: made here.")),
                io.String.Input("others", default="", optional=True, tooltip=(
                    "Other things that should stay as they are, with commas between: 'cat, person'. A third of the "
                    "class pictures is then of them. Empty: they may come to look like the subject.")),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), ConceptType.Output(display_name="concept"),
                     io.Image.Output(display_name="looks", tooltip="A picture of the subject at each look, in order.")])

    @classmethod
    def execute(cls, images, captions=("",), mask=(), class_images=(), **asked) -> io.NodeOutput:
        made = once(NODE, class_images=class_images) if class_images else {}
        return cls._learned(images, captions_of(captions), mask, **made, **once(NODE, **asked))

    @classmethod
    def _learned(cls, images, captions, mask, model, clip, vae, noun, identifier, steps, lr, rank, batch, class_count,
                 cfg, drift, seed, new_scene="", class_images=None, others="") -> io.NodeOutput:
        noun, plain = noun.strip(), f"a photo of a {SLOT} {noun.strip()}"
        _check_subject(noun, identifier.strip(), captions, others)
        if class_images is not None and others.strip():
            raise ValueError(f"Learn a Subject has the others {others!r} and class_images, which are made already: "
                             "write the others behind Class Images' noun, with commas between, or take class_images "
                             "off.")
        given = ConceptImages(tuple(encoded(vae, shots(NODE, images, vae, captions or [plain], mask))), identifier)
        trained = [*new_word(clip, identifier.strip(), noun, lr),
                   LoRA(lr, rank, layers="all", text_encoder=text_learns(clip))]
        if class_images is not None:
            say_guidance(model, cfg)
        else:
            templates, nouns = class_templates(captions, noun), [noun, *named(others)]
            class_prompts(templates.splitlines(), nouns, class_count)  # refuses too many before anything is computed
            of_class = replace(given.examples[0], caption=f"a photo of a {noun}", masks={})
            step_needs(model, clip, given, trained, Prior(ConceptImages((of_class,)), 1.0, predicted=True), batch,
                       watched=True)
            sampling = ("euler", "simple") if prediction_type(model) == "flow" else ("ddim", "ddim_uniform")
            height, width = next(one.shape[1:3] for one in images if len(one))
            class_images = PalimpsestClassImages.execute(
                model, clip, vae, ", ".join(nouns), templates, class_count, width, height, 20, cfg, *sampling,
                seed).result[0]
        watch = Watch(max(steps // 10, 1), new_scene.strip() or f"{plain} in a garden", drift, cfg=cfg)
        say_batch(batch, given)
        prior = Prior(class_images, 1.0, predicted=True)
        # saved where it is cancelled alone, after a look
        keep = Keeping(watch.every).keep
        learned = learn_concept(model, clip, given, trained, prior, steps, batch, seed, watch=watch, told=said,
                                save_every=steps + 1, save=keep)
        with before_a_cancel(lambda: keep(learned)):
            looks = torch.cat([decode(vae, look.picture) for look in learned.looks])
        first, best = learned.looks[0], learned.looks[-1]
        text = (f"Kept after {best.step} of {learned.notes['steps']} updates. Loss of the subject {first.concept:.3f} "
                f"to {best.concept:.3f}, of its class {first.prior:.3f} to {best.prior:.3f}.")
        shown = ui.PreviewText(text).as_dict() | ui.PreviewImage(looks, cls=cls).as_dict()
        return io.NodeOutput(*applied(model, clip, learned), learned, looks, ui=shown)


def _check_subject(noun, identifier, captions, others):
    """ValueError on texts in which a subject, its class and other things are not told apart."""
    if "," in noun or SLOT in others:
        raise ValueError(f"Learn a Subject has the noun {noun!r} and the others {others!r}: write one noun, and other "
                         f"things that should stay as they are in others, with commas between and without {SLOT}.")
    if not noun or not identifier or SLOT in noun + identifier:
        raise ValueError(f"Learn a Subject has the noun {noun!r} and the identifier {identifier!r}: give both, such as "
                         f"'dog' and '{RARE}', without {SLOT}.")
    for what, found in ((f"{SLOT}, which stands for the subject", lambda text: SLOT in text),
                        (f"noun {noun!r}, which stands for its class", _noun(noun).search)):
        lacking = [text for text in captions if not found(text)]
        if lacking:
            raise ValueError(f"{len(lacking)} of Learn a Subject's {len(captions)} captions have no {what}; the first "
                             f"is {lacking[0]!r}: write '{SLOT} {noun}' there.")
