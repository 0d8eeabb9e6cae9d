"""Imagic, shown."""
from .. import Example

EXAMPLE = Example("Imagic", elsewhere="Learning takes minutes.")
