"""Feature Share: RF-Edit, FireFlow, Stable Flow, KV-Edit."""
from comfy_api.latest import io

from ...attention.feature_share import NAME, PRESETS, KeptBackground, SharedFeatures, parse_features
from ...editing.layers import roles
from ...editing.masks import masks_of
from ...editing.run import attach
from ...host.network import require_attention
from ..checks import check_span, check_trajectory
from ..search import aliases
from ..widgets import InversionType, layers_input, layers_of, share_input

OWN = "as preset"


class PalimpsestFeatureShare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestFeatureShare", display_name=NAME, category="palimpsest/attention",
            description="Tokens of the target hold the source's keys or values, as RF-Edit, FireFlow, Stable Flow and "
                        "KV-Edit share them on Flux. Keeps the picture while its words change.",
            **aliases("RF-Edit", "RF-Solver-Edit", "FireFlow edit", "Stable Flow", "KV-Edit", "flux edit",
                      "qwen image edit", "value injection", "inject steps", "keep background", "keep the background"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.Combo.Input("preset", options=list(PRESETS), default="RF-Edit", tooltip=(
                    "Whose settings fill what is left as it is below. RF-Edit goes with RF-Solver Invert, FireFlow "
                    "with FireFlow Invert, Stable Flow with any, KV-Edit with a mask and RF-Inversion Invert at gamma "
                    "0 or FlowEdit Invert. All are the authors' for Flux, on other models untuned.")),
                io.String.Input("features", default="", tooltip=(
                    "What is shared: 'v', 'k, v', or '+q, v', where + adds the source's to the target's. Empty: the "
                    "preset's. RF-Edit and FireFlow: v. Stable Flow and KV-Edit: k, v.")),
                layers_input("the preset's. RF-Edit: the latter half of the last kind of block (Flux: s20-37). "
                             "FireFlow: all of that kind. Stable Flow: d0-1, d17-18, s6, s9, s34-35, s37, on Flux "
                             "alone. KV-Edit: all"),
                share_input("start", 0.0, "Share of the schedule where sharing begins. Used where end is set."),
                share_input("end", 0.0, "Share where it ends; later keeps more. 0: the preset's. RF-Edit: 5 of 25 "
                                        "steps (paper: 2 to 8 of 30). FireFlow: the first of 8 steps. Stable Flow and "
                                        "KV-Edit: 1."),
                io.Combo.Input("tokens", options=[OWN, "picture", "all"], default=OWN, tooltip=(
                    "Whose features are shared: the picture's, or the words' too, where both prompts are as long. "
                    "RF-Edit and FireFlow: all.")),
                io.Combo.Input("level", options=[OWN, "same", "below"], default=OWN, tooltip=(
                    "Where the source is read: at the target's own noise level, or at the level below, from which "
                    "the inversion came. RF-Edit and KV-Edit: below. FlowEdit's levels are apart, so always same.")),
                io.Boolean.Input("null_too", default=True, tooltip=(
                    "Whether a negative prompt's rows share too, what the source shows under it. The papers sample "
                    "without one.")),
                io.Mask.Input("mask", optional=True, tooltip=(
                    "1 where the edit may write. Tokens outside share, and the picture comes back there exactly. "
                    "KV-Edit needs it. A video takes one for all frames or one a frame.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, preset, features, layers, start, end, tokens, level, null_too,
                mask=None) -> io.NodeOutput:
        require_attention(model, NAME)
        check_trajectory(model, inversion, NAME)
        own = PRESETS[preset]
        if start and not end:
            raise ValueError(f"{NAME} has a start of {start:g} and an end of 0, which is the preset's own span: set "
                             f"end too ({preset}: {own.end:g}), or leave both at 0.")
        start, end = (start, end) if end else (own.start, own.end)
        check_span(NAME, start, end, f"{own.start:g} and {own.end:g}")
        if preset == "KV-Edit" and mask is None:
            raise ValueError(f"KV-Edit keeps the picture outside a mask, and {NAME} has none: connect a MASK, 1 where "
                             "the edit may write, or choose another preset.")
        if mask is not None and not (mask.any() and (mask := masks_of(mask, inversion)).any()):
            other = "turn it round with InvertMask" if preset == "KV-Edit" else "disconnect the mask"
            raise ValueError(f"{NAME}'s mask is 0 everywhere, so nothing of the picture may change: paint where it "
                             f"may, in Load Image's MaskEditor, or {other}.")
        lower = own.lower if level == OWN else level == "below"
        model = attach(model, SharedFeatures(
            inversion, layers_of(layers, model, own.layers), start, end, parse_features(features or own.features),
            own.everything if tokens == OWN else tokens == "all", lower, mask, roles(null_too)))
        return io.NodeOutput(model if mask is None else attach(model, KeptBackground(inversion, mask, lower)))
