"""SVDiff, shown."""
from .. import Example

EXAMPLE = Example("SVDiff", elsewhere="Learning takes minutes.")
