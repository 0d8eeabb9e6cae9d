"""Textual Inversion, shown."""
from .. import Example

EXAMPLE = Example("Textual Inversion", elsewhere="Learning takes minutes.")
