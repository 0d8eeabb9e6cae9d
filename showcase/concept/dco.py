"""DCO, shown."""
from .. import Example

EXAMPLE = Example("DCO", elsewhere="Learning takes minutes.")
