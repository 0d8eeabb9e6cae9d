"""DreamBooth, shown."""
from .. import Example

EXAMPLE = Example("DreamBooth", elsewhere="Learning takes minutes.")
