"""Uni-Edit Guidance."""
from comfy_api.latest import io

from ...editing.editor import editor_of
from ...editing.run import attach
from ...guidance.uni_edit import UniEdit
from ..checks import check_prompt_alone
from ..search import aliases


class PalimpsestUniEditGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestUniEditGuidance", display_name="Uni-Edit Guidance", category="palimpsest/guidance",
            description="Goes along what the target prompt says otherwise than the source prompt, most where the two "
                        "differ most (UniEdit-Flow, Jiao et al. 2025). Needs no mask. Made for Uni-Inv and CFG 1; on "
                        "flow models and others.",
            **aliases("uniedit", "uniedit flow", "flux edit", "SD3 edit", "edit without mask", "keep background",
                      "region aware", "velocity fusion"),
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("source", tooltip=(
                    "The prompt that says what the picture shows. The target prompt goes to the sampler.")),
                io.Float.Input("omega", default=5.0, min=0.0, max=20.0, step=0.1, tooltip=(
                    "How strongly the difference of both prompts is followed: this many times where they agree, twice "
                    "that and once more where they differ most. Higher changes more. Paper: 5.")),
            ],
            outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, source, omega) -> io.NodeOutput:
        check_prompt_alone("Uni-Edit Guidance's source", source)
        if editor_of(model, UniEdit):
            raise ValueError("The MODEL carries Uni-Edit Guidance already, and a second one would multiply the first: "
                             "use one of the two.")
        return io.NodeOutput(attach(model, UniEdit(source, omega)))
