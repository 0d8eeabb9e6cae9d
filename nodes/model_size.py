"""Size for the Model."""
from comfy.utils import common_upscale
from comfy_api.latest import io

from ..host.sizes import CELL, cell, fitted, native_side
from .search import aliases


class PalimpsestModelSize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestModelSize",
            display_name="Size for the Model",
            category="palimpsest/image",
            description="Scales a picture of any size to the size that the model was made for, and keeps its shape.",
            **aliases("resize image", "scale photo", "resolution", "512", "1024", "multiple of 8", "fit to model",
                      "image size for checkpoint", "total pixels"),
            inputs=[
                io.Model.Input("model", tooltip="It says the size: 512 px on SD1.x, 768 on SD2.x with v prediction, "
                                                "1024 on SDXL and newer models."),
                io.Image.Input("image"),
                io.Int.Input("side", default=0, min=0, max=8192, step=CELL, tooltip=(
                    "Side in px of a square with as many pixels as the scaled picture. 0: the model's own.")),
                io.Mask.Input("mask", optional=True, tooltip="A mask of the picture, scaled with it."),
            ],
            outputs=[io.Image.Output(), io.Mask.Output()])

    @classmethod
    def execute(cls, model, image, side, mask=None) -> io.NodeOutput:
        height, width = image.shape[1:3]
        size = fitted(height, width, side or native_side(model), cell(model))
        if mask is None:
            mask = image.new_ones(1, *size)
        elif mask.min() == mask.max():  # Load Image gives a small black mask for a picture without one
            mask = mask[:, :1, :1].expand(-1, *size)
        elif mask.shape[-2:] != (height, width):
            raise ValueError(f"The mask is {mask.shape[-1]}x{mask.shape[-2]} and the picture {width}x{height}: connect "
                             "the mask of this picture, as Load Image gives both.")
        else:
            mask = scaled(mask[:, None], size)[:, 0]
        return io.NodeOutput(scaled(image[..., :3].movedim(-1, 1), size).movedim(1, -1), mask)


def scaled(pictures, size):
    """[B, C, H, W] at another (height, width). Equal sizes give the same bytes."""
    if pictures.shape[-2:] == size:
        return pictures
    smaller = size[0] * size[1] < pictures.shape[-2] * pictures.shape[-1]
    return common_upscale(pictures, size[1], size[0], "area" if smaller else "bicubic", "disabled").clamp(0, 1)
