"""Files in ComfyUI's output folder."""
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
