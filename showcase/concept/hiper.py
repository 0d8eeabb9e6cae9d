"""HiPer, shown."""
from .. import Example

EXAMPLE = Example("HiPer", elsewhere="Learning takes minutes.")
