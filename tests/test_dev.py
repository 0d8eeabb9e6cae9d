"""The set-up tool: what it reuses, what it notices and what it says, without network."""
from pathlib import Path

import palimpsest


def test_the_pack_has_one_name_whatever_its_folder_is_called():
    assert Path(palimpsest.__file__) == Path(__file__).resolve().parents[1] / "__init__.py"
