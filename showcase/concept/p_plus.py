"""P+, shown."""
from .. import Example

EXAMPLE = Example("P+ / Extended Textual Inversion", elsewhere="Learning takes minutes.")
