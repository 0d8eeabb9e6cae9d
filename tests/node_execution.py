"""As the host's executor runs nodes."""
import pytest
import torch


@pytest.fixture(autouse=True)
def executor():
    """Runs each test as the host's executor runs nodes."""
    with torch.inference_mode():
        yield


def in_lists(node, *values, **named):
    """What a node that takes lists gives for one value an input. None stands for nothing connected."""
    named |= dict(zip((one.id for one in node.define_schema().inputs), values))
    return node.execute(**{name: [value] for name, value in named.items() if value is not None})
