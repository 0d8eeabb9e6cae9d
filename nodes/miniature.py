"""The embedded text-to-image model, and scenes whose edits have a known exact picture."""
import torch
from comfy_api.latest import io, ui

from ..miniature.hard import an_edit
from ..miniature.model import load_flow_miniature, load_miniature
from ..miniature.scenes import EDIT_KINDS, render
from ..miniature.subjects import SEEN, UNSEEN, subject, subject_scenes
from .search import aliases

MODELS = {"SD": load_miniature, "Flux": load_flow_miniature}


class PalimpsestLoadMiniature(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLoadMiniature",
            display_name="Load Miniature",
            category="palimpsest/miniature",
            description="A small text-to-image model included in the pack. 128 px pictures of simple scenes: 'a "
                        "photo of a red striped star on a grass background'. ComfyUI treats it as an SD model, or as "
                        "a Flux.",
            **aliases("tiny model", "test model", "demo model", "try without checkpoint", "small checkpoint",
                      "no download", "flow model"),
            inputs=[
                io.Combo.Input("model", options=list(MODELS), default="SD", optional=True, tooltip=(
                    "SD: a U-Net that predicts noise. Flux: a transformer that predicts velocity (a flow model). "
                    "Both read the same texts and share the VAE.")),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, model="SD") -> io.NodeOutput:
        return io.NodeOutput(*MODELS[model]())


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
                io.Boolean.Input("hard", default=False, optional=True, tooltip=(
                    "Scenes that show what their text does not say: a second colour, a mark, a face, arms, a cast "
                    "shadow, another object that is equal. The exact target keeps all of it.")),
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
    def execute(cls, seed, kind, hard=False) -> io.NodeOutput:
        edit = an_edit(seed, kind, hard)
        source, target, mask = (torch.from_numpy(a)[None] for a in (edit.source_image, edit.target_image, edit.mask))
        return io.NodeOutput(source, edit.source_text, edit.target_text, target, mask,
                             ui=ui.PreviewImage(torch.cat([source, target]), cls=cls))


class PalimpsestMiniatureSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestMiniatureSubject",
            display_name="Miniature Subject",
            category="palimpsest/miniature",
            **aliases("training images", "example photos", "demo subject"),
            description="Pictures of one object with looks that the miniature has no words for, to learn as a concept.",
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=2 ** 32 - 1, control_after_generate=True,
                             tooltip="Chooses the subject. Equal seeds give equal pictures everywhere."),
                io.Int.Input("count", default=4, min=1, max=64,
                             tooltip="How many pictures, each in a scene of its own."),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.String.Output(display_name="captions", tooltip="One a picture, with * where the subject stands."),
                io.String.Output(display_name="noun", tooltip="Its class."),
                io.String.Output(display_name="new caption", tooltip="A caption with a ground that the pictures do not "
                                                                     "have."),
            ],
        )

    @classmethod
    def execute(cls, seed, count) -> io.NodeOutput:
        one, scenes = subject(seed), subject_scenes(seed, count)
        pictures = torch.stack([torch.from_numpy(render(scene)) for scene in scenes])
        captions = "\n".join(one.caption(SEEN[i % len(SEEN)]) for i in range(count))
        return io.NodeOutput(pictures, captions, one.noun, one.caption(UNSEEN[-1]),
                             ui=ui.PreviewImage(pictures, cls=cls))
