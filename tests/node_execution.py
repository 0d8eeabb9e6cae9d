"""The host executor's mode for nodes, for files whose every test needs it."""
import pytest
import torch


@pytest.fixture(autouse=True)
def executor():
    """Runs each test as the host's executor runs nodes."""
    with torch.inference_mode():
        yield
