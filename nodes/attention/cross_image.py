"""Cross-Image Attention."""
import torch
from comfy_api.latest import io

from ...attention.cross_image import CrossImage, two_finest
from ...editing.masks import latent_mask
from ...editing.run import attach
from ...host.network import require_attention, resolutions
from ..checks import check_span, check_trajectory
from ..search import aliases
from ..widgets import InversionType, layers_input, layers_of, share_input


class PalimpsestCrossImageAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestCrossImageAttention", display_name="Cross-Image Attention",
            category="palimpsest/attention",
            description="Transfers the appearance of one inverted picture to the structure of another, part to "
                        "matching part. Both show the same kind of object (Alaluf et al. 2024).",
            **aliases("swap appearance", "appearance transfer", "texture transfer", "mix two images",
                      "zebra to giraffe", "structure and appearance"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("appearance", tooltip="The picture that gives colours and textures. The structure "
                                                          "is the picture that Replay's LATENT starts from."),
                share_input("start", 0.1, "Share of the schedule where the transfer begins. Paper: step 10 of 100."),
                share_input("end", 0.9, "Share where it ends on the finest grid. Paper: step 90."),
                share_input("coarse_end", 0.7, "Share where it ends on the other grids. Paper: step 70."),
                share_input("adain_start", 0.2, "From this share on, the predicted picture takes each channel's mean "
                                                "and deviation from the appearance (AdaIN). 1: never. Paper: step 20."),
                io.Float.Input("swap_guidance", default=3.5, min=1.0, max=20.0, step=0.1, tooltip=(
                    "Guidance scale of the transfer. It falls to half by the end of the run. Over 1 adds one row to "
                    "the batch. Paper: 3.5.")),
                io.Float.Input("contrast", default=1.67, min=1.0, max=10.0, step=0.01, tooltip=(
                    "Contrast of the attention maps. Higher attends to fewer places. 1: off, no map is made. Paper: "
                    "1.67.")),
                layers_input("the two finest grids of the up section (SD1.x and SD2.x: u3-8; SDXL: u), on transformers "
                             "the latter half of the last kind of block (ours, untuned)"),
                io.Mask.Input("structure_mask", optional=True, tooltip=(
                    "1 on the object of the structure picture. AdaIN acts only there.")),
                io.Mask.Input("appearance_mask", optional=True, tooltip=(
                    "1 on the object of the appearance picture. AdaIN takes its statistics only there.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, appearance, start, end, coarse_end, adain_start, swap_guidance, contrast, layers,
                structure_mask=None, appearance_mask=None) -> io.NodeOutput:
        node = "Cross-Image Attention"
        require_attention(model, node)
        check_trajectory(model, appearance, node)
        check_span(node, start, max(end, coarse_end), "0.1 and 0.9")
        size = tuple(appearance.shape[-2:])
        given = {"structure_mask": structure_mask, "appearance_mask": appearance_mask}
        masks = [torch.ones(1, *size) if m is None else latent_mask(m, size).round() for m in given.values()]
        for name, mask in zip(given, masks):
            if not mask.any((1, 2)).all():
                raise ValueError(f"{name} has {int((~mask.any((1, 2))).sum())} of {len(mask)} masks without an object, "
                                 "but AdaIN takes statistics of the object: paint where it is.")
        if adain_start == 1 and any(m is not None for m in given.values()):
            raise ValueError(f"{node} has masks for AdaIN, but adain_start 1 turns AdaIN off: lower adain_start "
                             "(paper: 0.2) or disconnect the masks.")
        chosen, known = layers_of(layers, model, two_finest), resolutions(model.model.diffusion_model)
        finest = max(known[address] for address in chosen)
        structure, appearing = masks
        return io.NodeOutput(attach(model, CrossImage(
            appearance, chosen, start, end, fine=frozenset(address for address in chosen if known[address] == finest),
            coarse_end=coarse_end, contrast=contrast, guidance=swap_guidance, adain_start=adain_start,
            structure=structure, appearance=appearing)))
