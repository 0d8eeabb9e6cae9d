"""ProSpect, shown."""
from .. import Example

EXAMPLE = Example("ProSpect", elsewhere="Learn a word from four pictures (Textual Inversion)")
