"""Concept Prompt, for words in layers and stages, and Load Concept, for what no file of ComfyUI holds."""
from comfy_api.latest import io, ui

from ...concept.svdiff import SpectralShifts
from ...editing.compact_files import SUFFIX as FEW
from ...editing.compact_files import load_compact
from ...editing.layers import numbered, parse_numbers
from ...editing.run_files import SUFFIX as RUN
from ...editing.run_files import load_run
from ...editing.word_files import SUFFIX, read_word
from ...editing.word_spaces import prompt
from ..checks import check_span
from ..inversion.storage import FromFile
from ..search import aliases
from .widgets import ConceptType


class PalimpsestConceptPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestConceptPrompt", display_name="Concept Prompt", category="palimpsest/concept",
            **aliases("encode concept", "layered prompt", "prompt per layer", "prompt schedule", "style mixing"),
            description="Encodes a prompt with a word that was learned in layers, in stages of sampling or in both. "
                        "It goes where any CONDITIONING goes.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the family that the concept was learned on."),
                ConceptType.Input("concept", tooltip="From Learn Concept or Load Concept."),
                io.String.Input("text", multiline=True, default="a photo of embedding:my-thing", tooltip=(
                    "The prompt. embedding:NAME stands for the word.")),
                io.String.Input("layers", default="", tooltip=(
                    "The layers that read the text: 'd0-5, m0, u0-8', as in Mutual Self-Attention. Empty: all. P+: "
                    "coarse layers (d4-5, m0, u0-2) take the shape, fine ones the look.")),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "The share of the schedule from which on the text is read.")),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "The share of the schedule up to which the text is read.")),
                io.String.Input("elsewhere", multiline=True, default="", tooltip=(
                    "What the other layers read, and what is read before start and after end. Empty: the text without "
                    "the word.")),
                ConceptType.Input("more", optional=True, tooltip=(
                    "Another concept, whose word may stand in both texts.")),
            ],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, clip, concept, text, layers, start, end, elsewhere, more=None) -> io.NodeOutput:
        words = {**concept.tables, **(more.tables if more else {})}
        lacking = next((one for one in (concept, more) if one and not one.tables), None)
        if lacking:
            raise ValueError(f"Concept Prompt's concept learned {len(lacking.words)} words and {len(lacking.weights)} "
                             "weights, and none in layers or stages: use its MODEL and CLIP with CLIP Text Encode.")
        if more and concept.tables.keys() & more.tables.keys():
            raise ValueError(f"Both concepts call their word {', '.join(concept.tables.keys() & more.tables.keys())}: "
                             "learn one of them under another name.")
        check_span("Concept Prompt", start, end, "0 and 1")
        places = next((table.places for table in words.values() if table.places), ())
        if layers.strip() and not places:
            raise ValueError(f"Concept Prompt has the layers {layers!r}, and the concept's word is one for all layers: "
                             "leave layers empty, or learn New Word in Layers.")
        chosen = frozenset(address[:2] for address in parse_numbers(
            layers, numbered({(*place, 0): 0.0 for place in places}))) if layers.strip() else None
        return io.NodeOutput(prompt(clip, words, text, elsewhere.strip() or None, chosen, start, end))


class PalimpsestLoadConcept(FromFile, io.ComfyNode):
    suffixes, what = (SUFFIX, RUN, FEW), "a concept's word, run or shifts"

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLoadConcept", display_name="Load Concept", category="palimpsest/concept",
            description="Loads what Save Concept wrote: a word in layers or stages for Concept Prompt, a run that "
                        "Learn Concept goes on with, or SVDiff's shifts for Apply Concept. LoRA and embedding files "
                        "are loaded by ComfyUI's own nodes.",
            **aliases("open concept", "load word", "load P+", "import concept", "load SVDiff"),
            inputs=[cls.file_input(), io.Model.Input("model", optional=True, tooltip=(
                f"For a file named …{FEW}: the MODEL that learned it, whose weights it shifts."))],
            outputs=[ConceptType.Output(display_name="concept")])

    @classmethod
    def execute(cls, file, model=None) -> io.NodeOutput:
        path = cls.path(file)
        if path.endswith(FEW):
            if model is None:
                raise ValueError(f"{file} holds shifts of a MODEL's weights, and Load Concept has no MODEL: connect "
                                 "the one that learned them.")
            concept = load_compact(path, model, SpectralShifts(1e-3))
            return io.NodeOutput(concept, ui=ui.PreviewText(f"shifts of {len(concept.compact)} weights"))
        if path.endswith(RUN):
            concept = load_run(path)
            return io.NodeOutput(concept, ui=ui.PreviewText(f"{len(concept.losses)} steps, to go on from"))
        concept = read_word(path)
        (name, table), = concept.tables.items()
        text = f"embedding:{name}, {len(table.places) or 1} layers, {table.stages} stages"
        return io.NodeOutput(concept, ui=ui.PreviewText(text))
