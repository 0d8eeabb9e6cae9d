"""Edit Report on large pictures: processor seconds and memory on one core.

    python tools/dev.py bench report [--sides 1024 2048 4096]

Everything that the node can measure is connected. Memory is the largest sum of tensors that are alive at once, without
the pictures.
"""
import argparse
import json
import time
from pathlib import Path

import torch

from ..metrics.edits import edit_numbers
from ..nodes.edit_report import check, draw
from .cost import peak

RESULTS = Path(__file__).parent / "results" / "report.json"


def pictures(side: int) -> dict:
    source = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, side, side)
    mask[:, side // 4:side // 2, side // 4:side // 2] = 1
    return dict(source=source, edited=.9 * source, reconstruction=.95 * source, target=.8 * source, mask=mask)


def main():
    parser = argparse.ArgumentParser(prog="bench report", description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096])
    sides, table = parser.parse_args().sides, {}
    torch.set_num_threads(1)
    for side in sides:
        given, seconds = check(**pictures(side)), []

        def report():
            began = time.process_time()
            draw(given, edit_numbers(**given))
            seconds.append(time.process_time() - began)

        report()
        table[side] = {"seconds": round(seconds[0], 2), "pictures": sum(t.nbytes for t in given.values()),
                       "beside": peak(report)}
        print(f"{side} x {side}: {table[side]['seconds']} s, {table[side]['beside'] / 2 ** 20:.0f} MB beside the "
              f"pictures' {table[side]['pictures'] / 2 ** 20:.0f} MB", flush=True)
    RESULTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
