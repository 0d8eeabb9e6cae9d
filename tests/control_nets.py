"""A small ControlNet of the host on a case's prompts."""
import comfy.cldm.cldm
import comfy.controlnet
import comfy.samplers
import torch

import nodes as host
import tiny
from runs import kept
from watching import case


@kept
def control_net(family):
    """A small ControlNet of the host, shaped like the family's U-Net."""
    config = dict(case(family).model.model.model_config.unet_config, dtype=torch.float32)
    with torch.inference_mode():
        net = tiny.fill(comfy.cldm.cldm.ControlNet(hint_channels=3, **config))
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def hint(case):
    height, width = case.latent.shape[-2:]
    return torch.rand(1, height * 8, width * 8, 3, generator=torch.Generator().manual_seed(4))


def plainly(case, positive=None, negative=None, strength=0.7):
    """(positive, negative) of Apply ControlNet on the target. The host gives the ControlNet to the null prompt too."""
    positive, = host.ControlNetApply().apply_controlnet(positive or case.target, control_net(case.family), hint(case),
                                                        strength)
    return positive, negative or case.null
