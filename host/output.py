"""Files in ComfyUI's folders."""
import os
from pathlib import Path

import folder_paths

NAME = "palimpsest"  # where a prefix names none


def free_path(prefix: str, suffix: str) -> Path:
    """The path of a new file there, as the host numbers those of a prefix. It counts from anew where one ends in a sign
    that is no part of a name, as "cats/" does."""
    plain = os.path.normpath(prefix.strip()) if prefix.strip() else "."
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        NAME if plain == "." else plain, folder_paths.get_output_directory())
    while os.path.exists(path := Path(os.path.realpath(folder), f"{name}_{counter:05}_{suffix}")):
        counter += 1
    return path


def named(path: Path) -> str:
    """What a node calls a file of the output folder."""
    return f"{path.relative_to(os.path.realpath(folder_paths.get_output_directory())).as_posix()} [output]"


def put(path: Path, data: bytes):
    """Write a file, at once or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
