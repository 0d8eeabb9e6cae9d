"""NeTI, shown."""
from .. import Example

EXAMPLE = Example("NeTI", elsewhere="Learn a word from four pictures (Textual Inversion)")
