"""How the host's executor runs nodes, for files whose every test needs it."""
import pytest
import torch


@pytest.fixture(autouse=True)
def executor():
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield
