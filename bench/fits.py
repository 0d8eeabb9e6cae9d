"""What fits 8, 12, 16 and 24 GB where a concept or a prompt is learned: the arithmetic of the loop's own forecast, at
real sizes.

    python tools/dev.py bench fits

The host's networks of SD1.5, SDXL and Flux are built of fake tensors, which hold no numbers and compute nothing. One
row goes forward and back, since the loop takes the rows of large models one after the other; a step's batch and its
class pictures cost no memory. Counted are the weights in fp16, or in 8 bits where it says so, what learns with its
gradient and AdamW's two means in fp32, and of the pass what editing/forecast.py counts. Text encoders are counted where
they or a new word learn; elsewhere the host may take them off the device. Null-Text Optimize computes no blocks twice.
A card fits where `BESIDE` is left of it. Writes bench/results/fits.json.
"""
import argparse
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_model
import comfy.ldm.flux.model as flux
import comfy.ldm.modules.diffusionmodules.openaimodel as openai
import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..concept.custom_diffusion import KeysAndValues
from ..concept.dreambooth import AllWeights
from ..concept.lora import LoRA
from ..editing.deltas import Deltas, Weights
from ..editing.forecast import GB, allowed
from ..host import gradients
from ..host.memory import counting

RESULTS = Path(__file__).parent / "results" / "fits.json"
CARDS, BESIDE = (8, 12, 16, 24), 1.0  # GB; for the display, CUDA, and what PyTorch reserves
ENCODERS = {"SD1.5": ("sd1_clip_config.json",), "SDXL": ("sd1_clip_config.json", "clip_config_bigg.json")}
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
        "num_classes": "sequential", "adm_in_channels": 2816},
    "Flux": {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
        "theta": 10_000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}}
NETWORKS = {"SD1.5, 512 px": ("SD1.5", 64), "SDXL, 1024 px": ("SDXL", 128), "Flux.1 dev, 512 px, fp8": ("Flux", 64),
            "Flux.1 dev, 1024 px, fp8": ("Flux", 128)}
WORD, NULL = "New Word", "Null-Text Optimize"
SUBJECT = "LoRA on all layers and in the text encoder, rank 8 (Learn a Subject)"
METHODS = {NULL: None, WORD: None, "LoRA on attention, rank 4": LoRA(1),
           SUBJECT: LoRA(1, 8, layers="all"),
           "Custom Diffusion (K, V)": KeysAndValues(1), "DreamBooth (All Weights)": AllWeights(1)}
LARGE = {"LoRA on attention, rank 4": LoRA(1), "LoRA on all layers, rank 8 (Learn a Subject)": LoRA(1, 8, layers="all")}


def network(config, dtype=torch.float16):
    made = openai.UNetModel if "context_dim" in config else flux.Flux
    return made(**config, dtype=dtype, operations=comfy.ops.manual_cast).requires_grad_(False)


def encoders(shape, basis=None) -> tuple[int, int]:
    """(bytes of a family's text encoders in fp16, bytes that a prompt's pass needs and what learns by the basis)."""
    total = needed = 0
    for name in ENCODERS[shape]:
        config = json.loads((Path(comfy.sd1_clip.__file__).parent / name).read_text(encoding="utf-8"))
        with FakeTensorMode():
            encoder = comfy.clip_model.CLIPTextModel(config, torch.float16, None, comfy.ops.manual_cast)
            encoder.requires_grad_(False)
            if basis:
                tokens = torch.zeros(1, 77, dtype=torch.long)
                needed += sum(passed(encoder, basis, lambda n, w: basis.takes_text(w), False, tokens))
        total += held(encoder)
    return total, needed


def held(network) -> int:
    return sum(p.nbytes for p in network.parameters())


def counted(network, config, side, basis, recomputed: bool) -> dict:
    """Bytes that learning needs, by what they are for.

    basis: None where a prompt's embedding learns.
    recomputed: whether blocks are computed again in the backward pass.
    """
    compute = torch.float32 if held(network) <= gradients.FP32 else torch.bfloat16
    tokens, width = (77, config["context_dim"]) if "context_dim" in config else (512, config["context_in_dim"])
    context = torch.zeros(1, tokens, width, dtype=compute, requires_grad=not basis)
    pooled = config.get("adm_in_channels") or config.get("vec_in_dim")
    y = torch.zeros(1, pooled, dtype=compute) if pooled else None
    guidance = {"guidance": torch.zeros(1)} if config.get("guidance_embed") else {}
    kept, learns = passed(network, basis, basis and basis.takes, recomputed,
                          torch.zeros(1, config["in_channels"], side, side, dtype=compute), torch.zeros(1),
                          context=context, y=y, **guidance,
                          transformer_options={"optimized_attention_override": gradients.pytorch_attention})
    return {"network": held(network), "learns": learns, "pass": kept}


def passed(network, basis, takes, recomputed, *args, **kwargs) -> tuple[int, int]:
    """(bytes of a forward and a backward, bytes of what learns with its gradient and AdamW's means)."""
    weights = {name: w.detach() for name, w in network.named_parameters()}
    taken = {n: w for n, w in weights.items() if takes(n, w)} if basis else {}
    parts = [Weights(basis, taken, {}, torch.Generator())] if basis else []

    class Call:
        """As the host calls a network."""
        class_obj = SimpleNamespace(diffusion_model=network)

        def __call__(self, *args, **kwargs):
            return network(*args, **kwargs)

    with gradients._recording(), counting(network) as kept, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fake tensor's address is asked for
        out = gradients._on_stand_ins(
            {f"network.{name}": w for name, w in weights.items()}, lambda: Deltas(parts), lambda: recomputed, False,
            Call(), *args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        out.float().square().mean().backward()
    return allowed(kept), 4 * sum(leaf.nbytes for part in parts for leaf in part.leaves())


def smallest(needed: int) -> str:
    """The smallest card that has so much."""
    return next((f"{card} GB" for card in CARDS if needed <= (card - BESIDE) * GB), "–")


def table(rows) -> str:
    lines = ["| | GB | fits | blocks computed twice | fits |", "|---" * 5 + "|"]
    for name, ways in rows.items():
        sums = [sum(found.values()) for found in ways]
        cells = [cell for needed in sums for cell in (f"{needed / GB:.1f}", smallest(needed))]
        lines.append(f"| {name} | " + " | ".join([*cells, *[""] * (4 - len(cells))]) + " |")
    return "\n".join(lines)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = {}
    for size, (shape, side) in NETWORKS.items():
        for method, basis in (LARGE if shape == "Flux" else METHODS).items():
            for recomputed in (False, True)[:1 if method == NULL else 2]:
                with FakeTensorMode():
                    made = network(SHAPES[shape], torch.float8_e4m3fn if shape == "Flux" else torch.float16)
                    found = counted(made, SHAPES[shape], side, basis, recomputed)
                learns = {SUBJECT: LoRA(1, 8), WORD: LoRA(1, 1)}.get(method)  # about what a word keeps of a pass
                found["text encoder"] = sum(encoders(shape, learns)) if learns else 0
                rows.setdefault(f"{size}: {method}", []).append(found)
    print(table(rows))
    RESULTS.write_text(json.dumps({"beside": BESIDE, "rows": rows}, indent=1) + "\n", encoding="utf-8")
