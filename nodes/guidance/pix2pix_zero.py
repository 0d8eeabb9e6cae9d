"""Cross-Attention Guidance and Edit Direction: pix2pix-zero."""
import torch
from comfy_api.latest import io

from ...editing.run import attach
from ...editing.word_maps import word_layers_of
from ...guidance.pix2pix_zero import CrossAttentionGuidance, edit_direction
from ...host.network import require_words
from ...host.sampling import check_family
from ...host.tokens import encode, tokenize_rows
from ..search import aliases
from ..widgets import InversionType


class PalimpsestCrossAttentionGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestCrossAttentionGuidance", display_name="Cross-Attention Guidance",
            category="palimpsest/guidance",
            description="Moves each step's latent to bring the target's cross-attention near the source's, which keeps "
                        "the structure (pix2pix-zero, Parmar et al. 2023). For Edit Direction or any edited prompt. "
                        "Needs Euler steps.",
            **aliases("pix2pix zero", "keep structure", "keep layout", "cat to dog", "cross attention loss"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Float.Input("amount", default=0.1, min=0.001, max=100.0, step=0.01,
                               tooltip="Step size along the gradient. Higher keeps more of the source's structure. "
                                       "Paper: 0.1 for real pictures, 0.15 for sampled ones."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where it begins. Paper: 0."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where it ends. Paper: 1."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, amount, start, end) -> io.NodeOutput:
        require_words(model, "Cross-Attention Guidance", "take Free-Prompt Edit to keep the structure")
        check_family(model, inversion)
        if start >= end:
            raise ValueError(f"Cross-Attention Guidance starts at {start:g} and ends at {end:g}, so no step is left: "
                             "lower start or raise end (paper: 0 and 1).")
        return io.NodeOutput(attach(model, CrossAttentionGuidance(inversion, amount, start, end,
                                                                  word_layers_of(model))))


class PalimpsestEditDirection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestEditDirection", display_name="Edit Direction", category="palimpsest/prompt",
            description="Turns the source prompt into the target. Adds the difference between the mean embeddings of "
                        "two lists of sentences (pix2pix-zero, Parmar et al. 2023).",
            **aliases("pix2pix zero", "cat to dog", "prompt difference", "embedding arithmetic", "mean embedding",
                      "edit vector", "horse to zebra"),
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("source_sentences", multiline=True, tooltip=(
                    "Sentences about the source object, one per line: \"a photo of a cat\", \"a cat sleeps\" … Paper: "
                    "a thousand, written by a language model. A dozen will do.")),
                io.String.Input("target_sentences", multiline=True, tooltip=(
                    "Sentences about the target object, one per line.")),
                io.Conditioning.Input("conditioning", tooltip="The prompt to edit: Prompt Edit's source, or another "
                                                              "that names the object."),
                io.Float.Input("scale", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="How much of the direction is added. Below 0 reverses it. Paper: 1."),
            ],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, clip, source_sentences, target_sentences, conditioning, scale) -> io.NodeOutput:
        source, target = ([line.strip() for line in text.split("\n") if line.strip()]
                          for text in (source_sentences, target_sentences))
        if not (source and target):
            raise ValueError(f"Edit Direction needs sentences of both kinds, but has {len(source)} source sentences "
                             f"and {len(target)} target sentences: write at least one of each, one per line.")
        if not scale or set(source) == set(target):
            raise ValueError(f"Edit Direction would change nothing. Its scale is {scale:g}, and the two lists "
                             f"{'are equal' if set(source) == set(target) else 'differ'}: use a scale other than 0 and "
                             "different sentences.")
        (here, here_extra), (there, there_extra) = (rows[0] for rows in cls._encoded(clip, source, target))
        direction = scale * edit_direction(here, there)
        edited = []
        for cross, extra in conditioning:
            if cross.shape[1] < len(direction) or cross.shape[2] != direction.shape[1]:
                raise ValueError(f"The CONDITIONING is {list(cross.shape[1:])} (tokens, width), but the "
                                 f"sentences' direction is {list(direction.shape)}: write sentences of under 75 "
                                 "tokens, and connect this CLIP's own CONDITIONING.")
            cross = torch.cat([cross[:, :len(direction)] + direction.to(cross), cross[:, len(direction):]], 1)
            extra = dict(extra)
            if extra.get("pooled_output") is not None and there_extra.get("pooled_output") is not None:
                pooled = edit_direction(here_extra["pooled_output"], there_extra["pooled_output"])
                extra["pooled_output"] = extra["pooled_output"] + scale * pooled.to(extra["pooled_output"])
            edited.append([cross, extra])
        return io.NodeOutput(edited)

    @staticmethod
    def _encoded(clip, source, target):
        """Both lists' CONDITIONINGs, all sentences as long as the longest."""
        tokens = tokenize_rows(clip, [*source, *target])
        return encode(clip, tokens[:len(source)]), encode(clip, tokens[len(source):])
