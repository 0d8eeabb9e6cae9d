"""Custom Diffusion, shown."""
from .. import Example

EXAMPLE = Example("Custom Diffusion", elsewhere="Learning takes minutes.")
