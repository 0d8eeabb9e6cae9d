"""The host's U-Nets (SD1.x, SD2.x, SDXL): where their attention is, and what computes it."""
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample


def resolutions(unet) -> dict:
    """{(section, block, depth) of every transformer block: the side of its grid over the latent's}."""
    found, resolution = {}, 1.0
    for section, blocks in (("input", unet.input_blocks), ("middle", [unet.middle_block]),
                            ("output", unet.output_blocks)):
        for i, block in enumerate(blocks):
            for module in block:
                if isinstance(module, Downsample):
                    resolution /= 2
                elif isinstance(module, Upsample):
                    resolution *= 2
                elif isinstance(module, SpatialTransformer):
                    found.update({(section, i, depth): resolution for depth in range(len(module.transformer_blocks))})
    return found


def host_attention(q, k, v, extra_options):
    """The host's attention, as its U-Net calls it."""
    return optimized_attention(q, k, v, extra_options["n_heads"], attn_precision=extra_options["attn_precision"],
                               transformer_options=extra_options)


def require_unet(model, node):
    """These edits know the U-Nets of SD1.x, SD2.x and SDXL; another family is an error before the first model call."""
    network = model.model.diffusion_model
    if not isinstance(network, UNetModel):
        raise ValueError(f"{node} edits the attention of U-Nets (SD1.x, SD2.x, SDXL), this MODEL is "
                         f"{type(model.model).__name__} ({type(network).__name__}): choose a checkpoint of those "
                         "families.")
