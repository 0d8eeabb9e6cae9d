"""Inversions saved to empty folders of the host, loaded, and compared bit for bit."""
import folder_paths
import pytest
import torch
from palimpsest.inversion.trajectory import Theta
from palimpsest.nodes.inversion.storage import PalimpsestLoadInversion, PalimpsestSaveInversion


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The host's output and input folder, empty."""
    for name in ("output", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path / "output", tmp_path / "input"


def saved(inversion, prefix="cats/tabby"):
    return PalimpsestSaveInversion.execute(inversion, prefix).result[0]


def loaded(file):
    assert PalimpsestLoadInversion.validate_inputs(file) is True
    return PalimpsestLoadInversion.execute(file).result[0]


def same(a, b):
    """Whether two values are equal bit for bit, also in their types."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Theta):
        return same(a.tensor, b.tensor) and (a.axis, a.applied_by) == (b.axis, b.applied_by)
    if hasattr(a, "items"):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
