"""The U-Nets of SD1.5 and SDXL without weights."""
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel


def network(channels, depth, middle, out):
    with torch.device("meta"):
        return UNetModel(image_size=32, in_channels=4, out_channels=4, model_channels=32,
                         num_res_blocks=[2] * len(channels),
                         channel_mult=channels, transformer_depth=depth, transformer_depth_middle=middle,
                         transformer_depth_output=out, context_dim=32, use_spatial_transformer=True, num_heads=2,
                         legacy=False,
                         operations=comfy.ops.disable_weight_init)


def sd15():
    return network([1, 2, 4, 4], [1, 1, 1, 1, 1, 1, 0, 0], 1, [1] * 9 + [0] * 3)


def sdxl():
    return network([1, 2, 4], [0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10])
