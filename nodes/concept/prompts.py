"""Save and Load Conditioning."""
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ...host.output import free_path, named
from ...inversion.prompt_storage import SUFFIX, load_prompt, save_prompt
from ..inversion.storage import KNOWN, FromFile, inside, size_in_words
from ..search import aliases


class PalimpsestSaveConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSaveConditioning", display_name="Save Conditioning", category="palimpsest/concept",
            **aliases("save prompt", "store embedding", "keep learned prompt", "export conditioning"),
            description="Saves an encoded prompt to the output folder, exact to the bit, such as one that Imagic, "
                        "Forgedit or HiPer learned.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="Without ControlNets and hooks."),
                io.String.Input("filename_prefix", default="conditionings/prompt", tooltip=(
                    "Folder and name inside the output folder. A number is added. Nothing is overwritten.")),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name that Load Conditioning lists.")],
            is_output_node=True)

    @classmethod
    def execute(cls, conditioning, filename_prefix) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        inside(os.path.join(output, filename_prefix), output)  # before the host makes a folder
        path = inside(free_path(filename_prefix, SUFFIX), output)
        save_prompt(path, conditioning, KNOWN)
        text = named(Path(path))
        return io.NodeOutput(text, ui=ui.PreviewText(f"{text}, {size_in_words(path)}"))


class PalimpsestLoadConditioning(FromFile, io.ComfyNode):
    suffixes, what = (SUFFIX,), "an encoded prompt"

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLoadConditioning", display_name="Load Conditioning", category="palimpsest/concept",
            **aliases("load prompt", "open conditioning", "import learned prompt"),
            description="Loads an encoded prompt from Save Conditioning. It goes with checkpoints of the family that "
                        "it was encoded for.",
            inputs=[cls.file_input()],
            outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        found = load_prompt(cls.path(file), KNOWN)
        rows, width = found[0][0].shape[1:]
        return io.NodeOutput(found, ui=ui.PreviewText(f"{rows} rows of {width}"))
