"""ProSpect, shown."""
from .. import Example

EXAMPLE = Example("ProSpect", elsewhere="Learning takes minutes.")
