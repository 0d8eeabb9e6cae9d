"""Attention Inject: Prompt-to-Prompt."""
import torch
from comfy_api.latest import io

from ...attention.alignment import PromptEdit
from ...attention.p2p import PromptToPrompt
from ...editing.run import attach
from ...host.network import joins_words, require_words, resolutions
from ...host.sampling import check_family
from ...host.tokens import find_in_some, parse_word_values
from ..auto import Auto
from ..checks import check_source
from ..search import aliases
from ..widgets import InversionType, PromptEditType, auto_input


def per_token(values: dict, edit: PromptEdit, default: float) -> tuple:
    """One tensor [target tokens] per pair, from {word: value}. "default" sets the other words.
    A target may lack a word."""
    tensors = [torch.full((len(pair.target.ids),), float(values.get("default", default))) for pair in edit.pairs]
    for name, value in values.items():
        if name == "default":
            continue
        for tensor, word in zip(tensors, find_in_some(name, [pair.target for pair in edit.pairs])):
            if word:
                tensor[list(word.positions)] = value
    return tuple(tensors)


class PalimpsestAttentionInject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestAttentionInject",
            display_name="Attention Inject",
            category="palimpsest/attention",
            description="Prompt-to-Prompt: the source's attention maps keep the layout, the target's words fill it.",
            **aliases("prompt to prompt", "p2p", "cross attention control", "change a word", "swap a word",
                      "replace object by words", "keep composition", "keep layout", "edit image with text",
                      "edit photo with words", "cross attention replace", "attention refine"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                PromptEditType.Input("prompt_edit"),
                io.Float.Input("cross_start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where cross-attention replacement begins. Paper: 0."),
                io.Float.Input("cross_end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="Share where it ends. Higher keeps more of the source's layout. Paper: 0.8, or "
                                       "0.4 for looser edits."),
                io.Float.Input("self_start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where self-attention replacement begins. Paper: 0."),
                io.Float.Input("self_end", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="Share where it ends. Higher keeps shapes, lower lets them change. Paper: 0.4, "
                                       "tried from 0.3 to 0.7."),
                io.Float.Input("cross_resolution", default=1.0, min=0.0, max=1.0, step=0.0625,
                               tooltip="Largest grid whose cross-attention is replaced, as a share of the latent's "
                                       "side. 1 = all grids (paper), 0.25 = 16² tokens of a 64² latent."),
                io.Float.Input("self_resolution", default=0.5, min=0.0, max=1.0, step=0.0625,
                               tooltip="The same for self-attention. 0.5 = 32² tokens of a 64² latent (the authors' "
                                       "code for real pictures). 0.25 = 16² (paper)."),
                io.String.Input("word_weights", default="", tooltip=(
                    "Strength of each target word's map (re-weighting), as in 'fluffy: 3, snow: -1'. 1 = unchanged. "
                    "Paper: -2 to 10.")),
                io.String.Input("word_ends", default="", tooltip=(
                    "A separate cross-attention end for single target words, as in 'lion: 0.4'. The others end at "
                    "cross_end.")),
                auto_input("schedule", "auto sets cross_end, self_end and self_resolution by what the two prompts "
                                       "change: an object, a colour, a pose, ... The node says what it chose. Add "
                                       "Latent Blend with auto too: it finds the mask. Not the paper's."),
            ],
            outputs=[io.Model.Output(), io.String.Output(display_name="settings", tooltip=(
                "The schedule in words. With auto: what it read in the prompts, and what it chose. Edit Report writes "
                "it below its pictures."))],
        )

    @classmethod
    def execute(cls, model, inversion, prompt_edit, cross_start, cross_end, self_start, self_end, cross_resolution,
                self_resolution, word_weights, word_ends, schedule="as set") -> io.NodeOutput:
        require_words(model, "Attention Inject")
        check_family(model, inversion)
        check_source(inversion, prompt_edit, "Attention Inject")
        typed, auto = parse_word_values(word_ends, 0, 1), Auto.of(prompt_edit) if schedule == "auto" else None
        lasts = auto is not None and auto.lasts and not typed
        joint = joins_words(model.model.diffusion_model)
        coarsest = min(resolutions(model.model.diffusion_model).values())
        if auto:
            cross_end, self_end, self_resolution = auto.schedule(inversion.shape[-2:], coarsest, joint)
        if joint:  # on one grid
            cross_resolution = self_resolution = 1.0
        settings = (f"cross_end {cross_end:g}{', 1 for the words that stay' * lasts}, self_end {self_end:g}, "
                    f"self_resolution {self_resolution:g}")
        if auto:
            auto.say(settings, *auto.advice)
            settings = auto.said(settings, *auto.advice)
        ends = per_token(typed, prompt_edit, cross_end)
        if auto and lasts:
            ends = auto.lasting(ends)
        given = parse_word_values(word_weights, -100, 100)
        weights = per_token(given, prompt_edit, 1.0)
        cross = cross_resolution >= coarsest and any((e > cross_start).any() for e in ends)
        self_ = self_resolution >= coarsest and self_end > self_start
        if not (cross or self_):
            raise ValueError(
                f"Attention Inject would change nothing. Cross-attention is replaced from {cross_start} to {cross_end} "
                f"on grids up to {cross_resolution} of the latent's side, self-attention from {self_start} to "
                f"{self_end} on grids up to {self_resolution}: set an end above its start (paper: 0.8 and 0.4), and a "
                f"resolution of {coarsest} or more.")
        # a default may spare a word
        asked = per_token(dict(given, default=1.0), prompt_edit, 1.0) if cross else weights
        lost = [e[(w != 1) & ((e <= cross_start) | (cross_resolution < coarsest))] for e, w in zip(ends, asked)]
        if any(map(len, lost)):
            last = min(float(e.min()) for e in lost if len(e))
            why = (f"cross_resolution is {cross_resolution}: set it to {coarsest} or more"
                   if cross_resolution < coarsest else
                   f"it runs from {cross_start} to {last:g}: set cross_end, or the word's end, above cross_start "
                   "(paper: 0.8)")
            raise ValueError(f"Attention Inject has word_weights {word_weights!r}, but replaces no cross-attention "
                             f"that they could scale, because {why}.")
        return io.NodeOutput(attach(model, PromptToPrompt(
            inversion, prompt_edit.pairs, cross_start if cross else 1.0, ends, weights,
            self_start if self_ else 1.0, self_end, cross_resolution, self_resolution)), settings)
