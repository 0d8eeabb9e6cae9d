"""LoRA, shown."""
from .. import Example

EXAMPLE = Example("LoRA", elsewhere="Learning takes minutes.")
