"""Custom Diffusion, shown."""
from .. import Example

EXAMPLE = Example("Custom Diffusion", elsewhere="Put your subject into a picture (Custom-Edit)")
