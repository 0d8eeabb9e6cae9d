"""Concept Decomposition, shown."""
from .. import Example

EXAMPLE = Example("Concept Decomposition", elsewhere="Learning takes minutes.")
