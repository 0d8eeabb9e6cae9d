"""P+, shown."""
from .. import Example

EXAMPLE = Example("P+ / Extended Textual Inversion", elsewhere="Learn a word from four pictures (Textual Inversion)")
