"""Break-A-Scene, shown."""
from .. import Example

EXAMPLE = Example("Break-A-Scene", elsewhere="Learning takes minutes.")
