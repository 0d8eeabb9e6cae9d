"""Self-Guidance."""
from comfy_api.latest import io

from ...editing.run import attach
from ...editing.word_maps import nearest_resolution, word_layers_of
from ...guidance.self_guidance import SelfGuidance, SourceFeatures, SourceMaps, map_sites
from ...host.network import head_tokens, require_words, resolutions
from ...host.sampling import check_family
from ..search import aliases
from ..widgets import InversionType


class PalimpsestSelfGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSelfGuidance", display_name="Self-Guidance", category="palimpsest/guidance",
            description="Moves and resizes the object that the words name, guided by cross-attention maps (Epstein et "
                        "al. 2023). Keeps its appearance and the other objects. Sample with Prompt Edit's target and "
                        "Replay.",
            **aliases("move object", "resize object", "bigger object", "smaller object", "drag object",
                      "shift position", "rearrange", "object size", "drag diffusion"),
            inputs=[
                io.Model.Input("model"),
                InversionType.Input("inversion"),
                io.String.Input("words", default="", tooltip="Words of the object that both prompts have: 'heart', or "
                                                             "better all of them, 'purple, heart'. 'heart#2' is the "
                                                             "second heart."),
                io.Float.Input("move_x", default=0.0, min=-1.0, max=1.0, step=0.01,
                               tooltip="Move to the right, as a share of the picture's width. Below 0 moves left."),
                io.Float.Input("move_y", default=0.0, min=-1.0, max=1.0, step=0.01,
                               tooltip="Move down, as a share of the picture's height. Below 0 moves up."),
                io.Float.Input("resize", default=1.0, min=0.1, max=10.0, step=0.05,
                               tooltip="Factor on its width and height."),
                io.String.Input("others", default="", tooltip="Words of other objects that should stay in place."),
                io.Float.Input("scale", default=1000.0, min=1.0, max=100000.0, step=10.0,
                               tooltip="Strength of the guidance. Too high breaks the picture up, too low leaves the "
                                       "object in place."),
                io.Float.Input("appearance", default=0.05, min=0.0, max=10.0, step=0.01,
                               tooltip="Weight of the objects' appearance, against 1 for their shapes. Higher makes "
                                       "the object harder to move. Untuned on transformers."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where it begins."),
                io.Float.Input("end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the schedule where it ends."),
                io.Float.Input("resolution", default=0.5, min=0.0, max=1.0, step=0.0625,
                               tooltip="Grid whose maps are read, as a share of the latent's side, or the model's next "
                                       "coarser one. 0.5 is 32² tokens of a 64² latent. Authors: 0.25 on SDXL."),
                io.Float.Input("shape", default=1.0, min=0.0, max=10.0, step=0.05, optional=True,
                               tooltip="Weight of the moved and resized shape. 0 leaves the shape free, to guide "
                                       "position or size alone."),
                io.Float.Input("position", default=0.0, min=0.0, max=100.0, step=0.05, optional=True,
                               tooltip="Weight of the moved centroid: where the object is, whatever its shape."),
                io.Float.Input("size", default=0.0, min=0.0, max=100.0, step=0.05, optional=True,
                               tooltip="Weight of the resized area: how much of the picture the object covers."),
                InversionType.Input("looks", optional=True, tooltip=(
                    "Inversion of another picture, in the same steps and size. The object takes its appearance from "
                    "there, weighted by appearance.")),
                io.String.Input("looks_words", default="", optional=True,
                                tooltip="Words of the object in that picture's prompt. Empty: the same words."),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, inversion, words, move_x, move_y, resize, others, scale, appearance, start, end,
                resolution, shape=1.0, position=0.0, size=0.0, looks=None, looks_words="") -> io.NodeOutput:
        require_words(model, "Self-Guidance", "leave it out")
        layers = word_layers_of(model)
        check_family(model, inversion)
        if looks is not None:
            check_family(model, looks)
        if not (shape or position or size or appearance or others.strip()):
            raise ValueError("Self-Guidance has shape, position, size and appearance at 0 and no others, so "
                             "nothing is guided: give one of them a weight (shape 1 moves the object).")
        if looks is not None and not appearance:
            raise ValueError("Self-Guidance has looks of another picture, but appearance is 0, so they have no "
                             "effect: raise appearance (0.05 works well), or disconnect looks.")
        if not words.strip():
            raise ValueError("Self-Guidance moves an object, but no word names one: write the object's words, as "
                             "in 'purple, heart'.")
        if start >= end:
            raise ValueError(f"Self-Guidance starts at {start:g} and ends at {end:g}, so no step is left: lower start "
                             "or raise end (0 and 0.8 work well).")
        sites = layers or map_sites(resolutions(model.model.diffusion_model), nearest_resolution(model, resolution))
        tokens = head_tokens(model.model.diffusion_model, tuple(inversion.shape[1:]))
        features = SourceFeatures(inversion, start, end, tokens=tokens) if appearance else None
        donor, donor_features = None, None
        if looks is not None:
            donor = SourceMaps(looks, sites, start, end, lends=True)
            donor_features = SourceFeatures(looks, start, end, lends=True, tokens=tokens)
        for reader in filter(None, (features, donor, donor_features)):
            model = attach(model, reader)
        return io.NodeOutput(attach(model, SelfGuidance(
            inversion, sites, start, end, words=words, others=others, move=(move_x, move_y), resize=resize, scale=scale,
            appearance=appearance, shape=shape, position=position, size=size, features=features, donor=donor,
            donor_features=donor_features, donor_words=looks_words)))
