"""NeTI, shown."""
from .. import Example

EXAMPLE = Example("NeTI", elsewhere="Learning takes minutes.")
