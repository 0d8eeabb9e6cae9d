"""ReVersion, shown."""
from .. import Example

EXAMPLE = Example("ReVersion", elsewhere="Learning takes minutes.")
