"""Save and Load Inversion, in the host's output and input folders."""
import os
from pathlib import Path

import comfy.latent_formats
import folder_paths
import torch
from comfy_api.latest import io, ui

from ...editing.inverting import source_conditioning
from ...host.canvas import log
from ...host.output import free_path, named
from ...host.sampling import Fingerprint
from ...host.tokens import Tokens, Word
from ...inversion.storage import load, save
from ..search import aliases
from ..widgets import InversionType

SUFFIX = ".inversion.safetensors"
KNOWN = Fingerprint, Tokens, Word
THUMBNAIL = 128  # pixels or more on the longer side


def inside(path, folder) -> str:
    """The real path, with links and ".." resolved. ValueError if it is not in the folder."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    if os.path.splitdrive(path)[0] != os.path.splitdrive(folder)[0] or os.path.commonpath((path, folder)) != folder:
        raise ValueError(f"{path} lies outside {folder}, the only folder that is allowed: give a name inside it.")
    return path


def find(file, suffixes, what) -> str:
    """The path of a name such as "palimpsest/cat_00001_.inversion.safetensors [output]" or "… [input]"."""
    folders = {" [output]": folder_paths.get_output_directory(), " [input]": folder_paths.get_input_directory()}
    mark = next((m for m in folders if file.endswith(m)), None)
    if mark is None or not file.removesuffix(mark).endswith(suffixes) or "\0" in file:
        raise ValueError(f"{file!r} is not {what} in the output or input folder: choose a file named "
                         f"…{' or …'.join(suffixes)} from the list.")
    path = inside(os.path.join(folders[mark], file.removesuffix(mark)), folders[mark])
    if not os.path.isfile(path):
        raise ValueError(f"{file} no longer exists: choose another file, or save it again.")
    return path


def listed(suffixes) -> list:
    """The files of some kinds in the output and the input folder, newest first."""
    found = []
    folders = {"output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory()}
    for mark, folder in folders.items():
        found += [(p.stat().st_mtime, f"{p.relative_to(folder).as_posix()} [{mark}]")
                  for suffix in suffixes for p in Path(folder).rglob(f"*{suffix}") if p.is_file()]
    return [name for _, name in sorted(found, reverse=True)]


class FromFile:
    """A node that loads a file of the output or the input folder.

    suffixes: how its name may end.
    what: it holds, for messages.
    """
    suffixes: tuple[str, ...] = ()
    what = ""

    @classmethod
    def file_input(cls):
        return io.Combo.Input("file", options=listed(cls.suffixes), tooltip=(
            f"Files named …{' or …'.join(cls.suffixes)} in the output and input folders, newest first. Press R to "
            "refresh."))

    @classmethod
    def path(cls, file) -> str:
        return find(file, cls.suffixes, cls.what)

    @classmethod
    def validate_inputs(cls, file):
        try:
            cls.path(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file):
        state = os.stat(cls.path(file))
        return state.st_mtime_ns, state.st_size


def size_in_words(path) -> str:
    return f"{os.path.getsize(path) / 2 ** 20:.1f} MiB"


def shown(inversion, text, cls) -> dict:
    """What a node shows: a text, and the clean latents' pictures by the host's quick preview."""
    known = vars(comfy.latent_formats).get(inversion.fingerprint.latent_format)
    known = known if isinstance(known, type) and issubclass(known, comfy.latent_formats.LatentFormat) else None
    factors = known().latent_rgb_factors if known else None
    parts = ui.PreviewText(text).as_dict()
    if factors is None or inversion.latents is None:
        return parts
    if len(factors) != inversion.shape[0] or inversion.latents[-1].ndim < 4:
        return parts
    bias = torch.tensor(known().latent_rgb_factors_bias or [0.0] * 3)
    clean = inversion.latents[-1].flatten(2, -3)[:, :, 0] if inversion.latents[-1].ndim > 4 else inversion.latents[-1]
    picture = torch.einsum("bchw,cd->bhwd", clean, torch.tensor(factors)) + bias
    times = -(-THUMBNAIL // max(clean.shape[-2:]))
    picture = (picture / 2 + 0.5).clamp(0, 1).repeat_interleave(times, 1).repeat_interleave(times, 2)
    return parts | ui.PreviewImage(picture, cls=cls).as_dict()


class PalimpsestSaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestSaveInversion", display_name="Save Inversion", category="palimpsest/inversion",
            description="Saves an inversion to the output folder, for Load Inversion. The safetensors file holds "
                        "the trajectory, the source prompt and what was learned, exact to the bit.",
            **aliases("export inversion", "store noise", "keep trajectory", "save inverted latents"),
            inputs=[
                InversionType.Input("inversion"),
                io.String.Input("filename_prefix", default="palimpsest/inversion",
                                tooltip="Folder and name inside the output folder, as in Save Image. A number is "
                                        "added. Nothing is overwritten."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name that Load Inversion lists.")],
            is_output_node=True)

    @classmethod
    def execute(cls, inversion, filename_prefix) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        inside(os.path.join(output, filename_prefix), output)  # before the host makes a folder
        path = inside(free_path(filename_prefix, SUFFIX), output)
        save(path, inversion, KNOWN)
        text = named(Path(path))
        log.info("Saved %s, %s.", text, size_in_words(path))
        return io.NodeOutput(text, ui=shown(inversion, f"{text}, {size_in_words(path)}", cls))


class PalimpsestLoadInversion(FromFile, io.ComfyNode):
    suffixes, what = (SUFFIX,), "an inversion"

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestLoadInversion", display_name="Load Inversion", category="palimpsest/inversion",
            description="Loads an inversion from Save Inversion. Its latents are read from the file when they are "
                        "needed.",
            **aliases("import inversion", "open inversion", "load inverted latents", "reuse inversion"),
            inputs=[cls.file_input()],
            outputs=[InversionType.Output(display_name="inversion")])

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path = cls.path(file)
        inversion = load(path, KNOWN)
        source_conditioning(inversion.conditioning, inversion.batch)
        text = f"{inversion.method}, {inversion.schedule}, {size_in_words(path)}"
        return io.NodeOutput(inversion, ui=shown(inversion, text, cls))
