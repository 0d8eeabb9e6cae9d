"""ReVersion, shown."""
from .. import Example

EXAMPLE = Example("ReVersion", elsewhere="Learn a word from four pictures (Textual Inversion)")
