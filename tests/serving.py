"""The host's server with every node registered."""
import folder_paths
import pytest

import workflow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The host's server object with every node registered. What nodes write goes to a folder of the test."""
    before = {kind: getattr(folder_paths, f"get_{kind}_directory")() for kind in ("output", "temp")}
    for kind in before:
        getattr(folder_paths, f"set_{kind}_directory")(str(tmp_path_factory.mktemp(kind)))
    made = workflow.host_nodes()
    made.client_id, made.send_sync = None, lambda *args: None  # nobody is connected
    yield made
    for kind, folder in before.items():
        getattr(folder_paths, f"set_{kind}_directory")(folder)
