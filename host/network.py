"""The network that is edited, whatever its family: where its attention and its features are, and what reaches them.

Each family has a door of its own. The U-Nets' is unet.py, with what is added to their inputs in unet_inputs.py. The
engine, papers and nodes ask here, so that none of them knows which family it is.
"""
from .unet import (
    Attention,
    attentions,
    group_norms,
    head,
    host_attention,
    require_unet,
    residual_branch,
    resolutions,
    shape_of,
    with_attention,
)
from .unet_inputs import with_added, with_value_inputs, with_widths_measured

__all__ = ["Attention", "attentions", "group_norms", "head", "host_attention", "require_unet", "residual_branch",
           "resolutions", "shape_of", "with_added", "with_attention", "with_value_inputs", "with_widths_measured"]
