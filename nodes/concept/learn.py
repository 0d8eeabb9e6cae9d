"""Learn, Apply and Save Concept."""
import json
import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

import folder_paths
from comfy_api.latest import io, ui

from ...editing.compact_files import SUFFIX as FEW
from ...editing.compact_files import compact_file
from ...editing.concepts import Objective, Prior
from ...editing.learning import applied, learn_concept
from ...editing.run_files import SUFFIX as RUN
from ...editing.run_files import run_file
from ...editing.watching import Watch
from ...editing.word_files import SUFFIX as WORD
from ...editing.word_files import word_file
from ...host.canvas import log, note
from ...host.concept_files import embedding_file, lora_file, lora_sizes
from ...host.hooks import with_weights_on
from ...host.output import free_path, put
from ...inversion.storage import write
from ..search import aliases
from .widgets import ConceptImagesType, ConceptType, ObjectiveType, TrainableType

LossMapType, LoraType = io.Custom("LOSS_MAP"), io.Custom("LORA_MODEL")


class PalimpsestLearnConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLearnConcept", display_name="Learn Concept", category="palimpsest/concept",
            **aliases("train", "training", "dreambooth", "learn my subject", "train LoRA", "personalize", "few photos"),
            description="Learns a concept from pictures. The MODEL and CLIP that come out know it at once; Save "
                        "Concept writes LoRA and embedding files that work without this pack.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL without Palimpsest editors. It is not changed."),
                io.Clip.Input("clip"),
                ConceptImagesType.Input("images", tooltip="From Concept Images."),
                TrainableType.Input("trainable", tooltip="What learns: LoRA Weights, New Word, DreamBooth, Custom "
                                                         "Diffusion or SVDiff. They chain."),
                io.Int.Input("steps", default=500, min=1, max=1_000_000, tooltip=(
                    "Number of updates. DreamBooth: 400, with the prior 800. LoRA: 500. A new word: 3000. The "
                    "miniature: 100.")),
                io.Int.Input("batch", default=1, min=1, max=256, tooltip=(
                    "Pictures an update. The prior adds as many. Large models take them one after the other, so more "
                    "cost time and no memory. diffusers: 1.")),
                io.Int.Input("seed", default=0, min=0, max=2 ** 64 - 1, control_after_generate=True,
                             tooltip="Of pictures, levels and noise. Equal seeds learn equal weights."),
                ObjectiveType.Input("objective", optional=True,
                                    tooltip="From Prior Preservation, DCO or others. They chain."),
                ConceptType.Input("concept", optional=True, tooltip="A concept to go on from, learned by the same "
                                                                    "trainables."),
                io.Int.Input("save_every", default=0, min=0, max=1_000_000, tooltip=(
                    "Steps after which what was learned so far is saved to output/loras and output/embeddings, and to "
                    "output/concepts what Load Concept gives to go on from, so that a cancelled run is not lost. 0: "
                    "never.")),
                io.Int.Input("look_every", default=0, min=0, max=1_000_000, tooltip=(
                    "Steps between two looks at the losses. Learning stops when three looks are no better or the class "
                    "drifts, and the best look is kept. 0: all steps are learned, and the last one is kept.")),
                io.String.Input("look_caption", default="", tooltip=(
                    "A picture of this text is shown at each look. * stands for the concept. A text that was not "
                    "learned shows best what was.")),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), ConceptType.Output(display_name="concept"),
                     LossMapType.Output(display_name="loss map", tooltip="For ComfyUI's Plot Loss Graph."),
                     LoraType.Output(display_name="lora", tooltip=(
                         "What the weights learned, for ComfyUI's Load LoRA Model and Save LoRA Weights."))])

    @classmethod
    def execute(cls, model, clip, images, trainable, steps, batch, seed, objective=None, concept=None, save_every=0,
                look_every=0, look_caption="") -> io.NodeOutput:
        asked: dict = {Prior: None, Objective: None}
        for one in objective or ():
            kind = Prior if isinstance(one, Prior) else Objective
            if asked[kind]:
                raise ValueError(f"Learn Concept has two objectives of one kind, {type(asked[kind]).__name__} and "
                                 f"{type(one).__name__}: keep one of them.")
            asked[kind] = one
        watch = Watch(look_every, look_caption.strip()) if look_every else None
        say_batch(batch, images)
        if save_every:
            check_folder("loras")
        learned = learn_concept(model, clip, images, trainable, asked[Prior], steps, batch, seed, concept, watch, said,
                                objective=asked[Objective], save_every=save_every, save=Keeping().keep)
        return io.NodeOutput(*applied(model, clip, learned), learned, {"loss": list(learned.losses)},
                             dict(learned.weights))


class PalimpsestApplyConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestApplyConcept", display_name="Apply Concept", category="palimpsest/concept",
            **aliases("load LoRA", "use concept", "LoRA strength"),
            description="Puts a learned concept on a MODEL and CLIP, stronger or weaker. Concepts chain.",
            inputs=[
                io.Model.Input("model"), io.Clip.Input("clip"), ConceptType.Input("concept"),
                io.Float.Input("strength_model", default=1.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="Of what the network learned. 0 leaves it as it is."),
                io.Float.Input("strength_clip", default=1.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="Of what the text encoder's weights learned. A new word has no strength."),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()])

    @classmethod
    def execute(cls, model, clip, concept, strength_model, strength_clip) -> io.NodeOutput:
        return io.NodeOutput(*applied(model, clip, concept, strength_model, strength_clip))


class PalimpsestConceptHook(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestConceptHook", display_name="Concept on One Prompt", category="palimpsest/concept",
            **aliases("LoRA on one prompt", "hook", "two LoRAs", "regional LoRA", "SINE expert"),
            description="Puts a learned concept's weights on one prompt alone, by ComfyUI's hooks. Other prompts see "
                        "the model as it is. Encode the prompt with the concept's CLIP.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt."),
                ConceptType.Input("concept"),
                io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="Of what the network learned."),
            ],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, conditioning, concept, strength) -> io.NodeOutput:
        if not concept.weights:
            words = ", ".join([*concept.words, *concept.tables]) or "none"
            raise ValueError(f"The concept learned the words {words} and no weights, and "
                             "words need no hook: write them in the prompt.")
        return io.NodeOutput(with_weights_on(conditioning, concept.weights, strength))


class PalimpsestSaveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSaveConcept", display_name="Save Concept", category="palimpsest/concept",
            **aliases("save LoRA", "save embedding", "export LoRA"),
            description="Writes a concept as ComfyUI's own files: a LoRA in output/loras, an embedding a word in "
                        "output/embeddings. A word in layers or stages, and SVDiff's shifts alone, go to "
                        "output/concepts, for Load Concept. A number is added. Nothing is overwritten.",
            inputs=[
                ConceptType.Input("concept"),
                io.String.Input("name", default="my-concept", tooltip="The LoRA's name. An embedding has its word's."),
                io.Combo.Input("precision", options=["fp16", "fp32"], default="fp16",
                               tooltip="Of the LoRA. fp16 is half as large."),
                io.Boolean.Input("resume", default=False, optional=True, tooltip=(
                    "Also writes to output/concepts what Load Concept gives Learn Concept to go on from, bit for bit. "
                    "Eight times as large as the LoRA, with looks twelve.")),
            ],
            outputs=[io.String.Output(display_name="files", tooltip="Their paths in the output folder, one a line.")],
            is_output_node=True)

    @classmethod
    def execute(cls, concept, name, precision, resume=False) -> io.NodeOutput:
        output, name = folder_paths.get_output_directory(), name.strip()
        if (concept.weights or resume) and (not Path(name).name or ".." in Path(name).parts
                                            or not name.isprintable()):
            raise ValueError(f"The name {name!r} is of no file in {os.path.join(output, 'loras')}, where ComfyUI looks "
                             "for LoRAs: write one such as 'my-concept'.")
        try:
            runs = [saved_run(concept, name)] if resume else []
            files = saved(concept, name, precision) + runs
        except OSError as error:
            raise ValueError(f"The concept {name[:99]!r} cannot be written in {output} ({error.strerror}): free or "
                             "unlock that folder, or give a shorter name, and run again. Nothing is learned "
                             "again.") from error
        text = "\n".join(path.relative_to(output).as_posix() for path in files)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def said(forecast):
    """Shows on the node what a step needs."""
    note("%s", forecast)


class Keeping:
    """Saves what a run has learned so far, from some steps on. Of what it may go on from the last is enough."""

    def __init__(self, after: int = 0):
        self.after, self.last = after, None

    def keep(self, part):
        """A full disk does not end the run."""
        if len(part.losses) < self.after:
            return
        name = f"learned-{len(part.losses)}-steps"
        try:
            saved(part, name, "fp16")
            path = saved_run(part, name)
            if self.last:
                self.last.unlink(missing_ok=True)
            self.last = path
            log.info("What %s steps learned is saved. Load Concept gives it: %s", len(part.losses), path.name)
        except (OSError, ValueError) as error:
            log.warning("What %s steps learned cannot be saved (%s), and learning goes on: free the output folder, or "
                        "use Save Concept at the end.", len(part.losses), getattr(error, "strerror", error))


def say_batch(batch, images):
    """Shows on the node that pictures stand in a step more than once."""
    if batch > len(images.examples):
        note("A step draws %s rows of %s pictures: some stand in it twice, each with noise of its own.", batch,
             len(images.examples))


def check_folder(kind):
    """ValueError where no file can be written into a folder of the output, before anything is learned for it."""
    folder = Path(folder_paths.get_output_directory(), kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"What is learned is to be saved in {folder}, and nothing can be written there "
                         f"({error.strerror}): free or unlock it, or set save_every to 0.") from error


def saved(concept, name, precision) -> list[Path]:
    """Writes a concept's files."""
    words = {free_path(f"embeddings/{word}", ".safetensors"): vectors for word, vectors in concept.words.items()}
    files = []
    if concept.weights:
        known = (*(path.stem for path in words), *concept.tables)
        called = [f"embedding:{word}" for word in known] or [concept.notes.get("identifier", "")]
        about = {"modelspec.title": name, "modelspec.trigger_phrase": " ".join(called), **lora_sizes(concept.weights),
                 "palimpsest": json.dumps({**concept.notes, "base": asdict(concept.fingerprint)})}
        path = free_path(f"loras/{name}", ".safetensors")
        weights = {key: value.half() if precision == "fp16" else value for key, value in concept.weights.items()}
        put(path, lora_file(weights, about))
        files.append(path)
    for path, vectors in words.items():  # after the LoRA, whose name may be no file's
        put(path, embedding_file(vectors))
        files.append(path)
    if concept.compact:
        path = free_path(f"concepts/{name}", FEW)
        put(path, compact_file(concept))
        files.append(path)
    for word in concept.tables:
        path = free_path(f"concepts/{word}", WORD)
        put(path, word_file(concept, word))
        files.append(path)
    return files


def saved_run(concept, name) -> Path:
    """Writes what learning goes on from."""
    path = free_path(f"concepts/{name}", RUN)
    write(path, *run_file(concept))
    return path
