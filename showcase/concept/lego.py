"""Lego, shown."""
from .. import Example

EXAMPLE = Example("Lego", elsewhere="Learn a word from four pictures (Textual Inversion)")
