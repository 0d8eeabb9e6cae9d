"""Concept Decomposition, shown."""
from .. import Example

EXAMPLE = Example("Concept Decomposition", elsewhere="Learn a word from four pictures (Textual Inversion)")
