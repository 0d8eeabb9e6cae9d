"""Custom Diffusion, shown."""
from .. import Example

EXAMPLE = Example("Custom Diffusion", elsewhere="Keep the class as a subject is learned (DreamBooth)")
