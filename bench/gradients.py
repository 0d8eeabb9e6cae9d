"""Memory of a gradient run, by arithmetic: what autograd keeps of one forward at real sizes.

    python tools/dev.py bench gradients

The host's networks of SD1.5 and SDXL are built of fake tensors, which compute nothing, and run once on one row. Weights
are fp16. The forward runs in the dtype that host/gradients.py chooses for their size.
Counted are the weights, every distinct storage that autograd saves (with the fp32 casts of the weights), and the
largest single tensor, as an allowance for what a backward needs. The result is a count of bytes, the same on any
device.
"""
import json
from pathlib import Path

import comfy.ldm.modules.diffusionmodules.openaimodel as openai
import comfy.ops
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..host.gradients import FP32, pytorch_attention

RESULTS = Path(__file__).parent / "results" / "gradients.json"
COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2,
          "use_spatial_transformer": True, "legacy": False, "use_checkpoint": False}
SHAPES = {
    "SD1.5": {
        **COMMON, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 768,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]},
    "SDXL": {
        **COMMON, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "num_head_channels": 64, "context_dim": 2048,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
        "num_classes": "sequential", "adm_in_channels": 2816}}
NETWORKS = {"SD1.5, 512 px": ("SD1.5", 64), "SDXL, 1024 px": ("SDXL", 128)}


class Largest(TorchDispatchMode):
    """Records the largest storage that an operation makes."""
    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.untyped_storage().nbytes())
        return out


def count(shape, side) -> dict:
    config, pooled = SHAPES[shape], SHAPES[shape].get("adm_in_channels")
    with FakeTensorMode():
        network = openai.UNetModel(**config, dtype=torch.float16, operations=comfy.ops.manual_cast)
        for p in network.parameters():
            p.requires_grad_(False)
        weights, saved = sum(p.numel() * p.element_size() for p in network.parameters()), {}
        compute = torch.float32 if weights <= FP32 else torch.bfloat16

        def keep(t):
            saved[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            return t

        embedding = torch.zeros(1, 77, config["context_dim"], requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), Largest() as largest:
            network(torch.zeros(1, 4, side, side, dtype=compute), torch.zeros(1), context=embedding.to(compute),
                    y=None if pooled is None else torch.zeros(1, pooled, dtype=compute),
                    transformer_options={"optimized_attention_override": pytorch_attention})
    found = {"weights": weights, "saved": sum(saved.values()), "largest": largest.size}
    return {"computed in": str(compute), **found, "all": weights + found["saved"] + 3 * largest.size}


def main():
    table = {}
    for name, network in NETWORKS.items():
        table[name] = count(*network)
        sizes = (f"{key} {value if isinstance(value, str) else f'{value / 2 ** 30:.2f} GB'}"
                 for key, value in table[name].items())
        print(name, ", ".join(sizes), flush=True)
    RESULTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
