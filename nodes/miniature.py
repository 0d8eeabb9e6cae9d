"""The embedded text-to-image model, and scenes whose edits have a known exact picture."""
import torch
from comfy_api.latest import io, ui

from ..miniature.model import load_miniature
from ..miniature.scenes import EDIT_KINDS, held_out_edit
from .search import aliases


class PalimpsestLoadMiniature(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLoadMiniature",
            display_name="Load Miniature",
            category="palimpsest/miniature",
            description="A small text-to-image model included in the pack. 128 px pictures of simple scenes: 'a "
                        "photo of a red striped star on a grass background'. ComfyUI treats it as an SD model.",
            **aliases("tiny model", "test model", "demo model", "try without checkpoint", "small checkpoint",
                      "no download"),
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_miniature())


class PalimpsestMiniatureScene(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMiniatureScene",
            display_name="Miniature Scene",
            category="palimpsest/miniature",
            description="A scene that the miniature never saw in training, an edit of it in words, and the exact "
                        "result of that edit.",
            **aliases("example picture", "test picture", "demo image", "sample scene"),
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=2 ** 32 - 1, control_after_generate=True,
                             tooltip="Chooses the scene and its edit. Equal seeds give equal pictures everywhere."),
                io.Combo.Input("kind", options=list(EDIT_KINDS), default="colour", tooltip=(
                    "What the target text changes. Object, colour, material, background and style: one word. Pose: "
                    "adds or drops a word. Add and delete: a whole object.")),
            ],
            outputs=[
                io.Image.Output(display_name="source"),
                io.String.Output(display_name="source text"),
                io.String.Output(display_name="target text"),
                io.Image.Output(display_name="exact target"),
                io.Mask.Output(display_name="edit mask", tooltip="1 where source and exact target differ."),
            ],
        )

    @classmethod
    def execute(cls, seed, kind) -> io.NodeOutput:
        edit = held_out_edit(seed, kind)
        source, target, mask = (torch.from_numpy(a)[None] for a in (edit.source_image, edit.target_image, edit.mask))
        return io.NodeOutput(source, edit.source_text, edit.target_text, target, mask,
                             ui=ui.PreviewImage(torch.cat([source, target]), cls=cls))
