"""Lego, shown."""
from .. import Example

EXAMPLE = Example("Lego", elsewhere="Learning takes minutes.")
