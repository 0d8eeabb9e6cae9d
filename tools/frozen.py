"""What saved workflows depend on: each node's inputs and outputs in their order, in tests/data/nodes/<id>.json.

Run as a script it writes the files of new nodes. Change an existing file by hand, and only append to it: a saved
workflow holds widgets by their order and outputs by their number. COMFYUI_PATH names the host.
"""
import json
import logging
import sys

from canvas import declared
from locales import infos
from pack import ROOT, load_pack

FOLDER = ROOT / "tests" / "data" / "nodes"


def contracts() -> dict:
    """{node id: its inputs and outputs} of the current nodes."""
    return {info["name"]: {"inputs": [name for name, *_ in declared(info)], "outputs": list(info["output"])}
            for info in infos()}


def frozen() -> dict:
    """The same, as the files have it."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def main() -> int:
    logging.disable(logging.WARNING)
    load_pack()
    FOLDER.mkdir(exist_ok=True)
    for node, contract in contracts().items():
        path = FOLDER / f"{node}.json"
        if not path.exists():
            path.write_text(json.dumps(contract, indent=1) + "\n", encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
