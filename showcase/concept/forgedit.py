"""Forgedit, shown."""
from .. import Example

EXAMPLE = Example("Forgedit", elsewhere="Learning takes minutes.")
