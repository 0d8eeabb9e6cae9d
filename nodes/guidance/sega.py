"""SEGA Guidance and SEGA Regions."""
import torch
from comfy_api.latest import io, ui

from ...editing.editor import editor_of
from ...editing.masks import covered, picture_mask
from ...editing.run import attach
from ...guidance.ledits import LEDITS
from ...guidance.sega import SEGA, Concept, read_regions
from ...host.sampling import check_family
from ...metrics.drawing import heat_rows, sheet
from ..checks import check_concept, check_prompt_alone
from ..search import aliases
from ..widgets import InversionType, concept_inputs


class PalimpsestSEGAGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSEGAGuidance", display_name="SEGA Guidance", category="palimpsest/guidance",
            description="Adds a concept to the sampled picture, or removes it, where the model sees it (Brack et al. "
                        "2023). Works on any MODEL, with or without an inversion. Chain one node per concept.",
            **aliases("semantic guidance", "SEGA", "add glasses", "add smile", "add beard", "add concept",
                      "remove concept", "slider", "change age", "concept slider", "attribute edit"),
            inputs=[
                *concept_inputs(io.Conditioning.Input("concept", tooltip=(
                    "What to add or remove, as its own prompt: \"glasses\", "
                    "\"a red hat\".")), scale=5.0, warmup=0.2, threshold=0.9),
                io.Float.Input("weight", default=1.0, min=0.0, max=10.0, step=0.05,
                               tooltip="The concept's weight in the sum and the momentum of all concepts. Paper: 1."),
                io.Float.Input("momentum", default=0.1, min=0.0, max=0.99, step=0.01,
                               tooltip="How much of the past guidance is added. All concepts share one value. Paper: "
                                       "0.1, 0.3 for faces."),
                io.Float.Input("beta", default=0.4, min=0.0, max=0.99, step=0.01,
                               tooltip="How slowly the past guidance fades. All concepts share one value. Paper: 0.4, "
                                       "0.6 for faces."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, concept, direction, scale, warmup, cooldown, threshold, weight, momentum,
                beta) -> io.NodeOutput:
        check_concept("SEGA Guidance", scale * weight, warmup, cooldown)
        check_prompt_alone("SEGA Guidance's concept", concept)
        before = editor_of(model, SEGA)
        if before and (before.momentum, before.beta) != (momentum, beta):
            raise ValueError("The concepts on a MODEL share one momentum and beta. The SEGA Guidance before has "
                             f"{before.momentum:g} with beta {before.beta:g}, this one {momentum:g} with {beta:g}: "
                             "give both the same.")
        added = Concept(concept, -scale if direction == "remove" else scale, warmup, cooldown, threshold, weight)
        editor = SEGA((*(before.concepts if before else ()), added), momentum, beta)
        return io.NodeOutput(attach(model, editor, replacing=before))


class PalimpsestSEGARegions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSEGARegions", display_name="SEGA Regions", category="palimpsest/guidance",
            description="Shows where each concept on the MODEL acts in an inverted picture. One mask per concept, in "
                        "the chain's order.",
            **aliases("semantic guidance mask", "mask of concept", "where a concept acts"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL from SEGA Guidance or LEDITS++. Other editors on it are "
                                                "ignored."),
                InversionType.Input("inversion"),
                io.Conditioning.Input("negative", tooltip="The negative prompt that you sample with."),
                io.Image.Input("image", tooltip="The picture that was inverted."),
            ],
            outputs=[io.Mask.Output()],
            is_output_node=True)

    @classmethod
    def execute(cls, model, inversion, negative, image) -> io.NodeOutput:
        check_family(model, inversion)
        editor = editor_of(model, SEGA) or editor_of(model, LEDITS)
        if editor is None:
            raise ValueError("SEGA Regions shows the concepts on its MODEL, but this MODEL has none: connect SEGA "
                             "Guidance's.")
        window = covered(image.shape[1:3], tuple(inversion.shape[-2:]))
        regions = read_regions(model, editor, inversion, negative)
        pictures = [heat_rows(image[i % len(image)][window],
                              {f"concept {n + 1}": r for n, r in enumerate(regions[:, i])})
                    for i in range(inversion.batch)]
        size = [s.stop - s.start for s in window]
        mask = torch.nn.functional.interpolate(regions.flatten(0, 1)[:, None], size, mode="nearest")[:, 0]
        return io.NodeOutput(picture_mask(mask, image.shape[1:3]),
                             ui=ui.PreviewImage(sheet(sum(pictures, [])), cls=cls))
