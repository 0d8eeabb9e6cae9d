"""Inject Composite: TF-ICON."""
from comfy_api.latest import io

from ...attention.tf_icon import Composite, Donor
from ...editing.masks import latent_mask
from ...editing.run import attach
from ...host.network import require_attention
from ...metrics.masks import grow as grown
from ..checks import check_trajectory
from ..search import aliases
from ..widgets import InversionType


class PalimpsestInjectComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestInjectComposite", display_name="Inject Composite", category="palimpsest/blending",
            description="Places an object from one inverted picture into another (TF-ICON, Lu et al. 2023). The start "
                        "is composed of both noises, and both pictures share one self-attention.",
            **aliases("TF-ICON", "paste object", "insert object", "place object into photo", "combine two images",
                      "compositing", "harmonize", "photomontage", "collage"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion", tooltip="Inversion of the main picture. Connect it to Replay too."),
                InversionType.Input("reference", tooltip="Inversion of the picture with the object, in the same steps. "
                                                         "Its size is the main picture's, with the object in its new "
                                                         "place."),
                io.Mask.Input("mask", tooltip="1 where the object is."),
                io.Int.Input("margin", default=1, min=0, max=32,
                             tooltip="Latent cells (8 pixels on SD) around the object that are regenerated to blend it "
                                     "in. The paper uses the object's bounding box."),
                io.Float.Input("attention_end", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="Both pictures' self-attention is composed up to this share of the schedule. "
                                       "Paper: 0.4."),
                io.Float.Input("blend_end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="The main picture is restored outside object and margin up to this share. "
                                       "Paper: 0.8."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Seed of the margin's noise."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, reference, mask, margin, attention_end, blend_end, seed) -> io.NodeOutput:
        require_attention(model, "Inject Composite")
        for given in (inversion, reference):
            check_trajectory(model, given, "Inject Composite")
        if inversion.shape != reference.shape:
            raise ValueError(f"The main picture's latent is {list(inversion.shape)}, but the reference's is "
                             f"{list(reference.shape)}: put the reference on a canvas of the main picture's size "
                             "before inverting it.")
        place = (latent_mask(mask, tuple(inversion.shape[-2:])) > 0.5).float()
        if not place.flatten(1).any(1).all():
            raise ValueError("The MASK of the object is empty: draw 1 where the object is in the reference.")
        donor = Donor(reference, attention_end)
        return io.NodeOutput(attach(attach(model, donor), Composite(
            inversion, attention_end, donor, place, grown(place, margin), blend_end, seed)))
