"""SINE, shown."""
from .. import Example

EXAMPLE = Example("SINE", elsewhere="Learning takes minutes.", unmeasured="It learns each picture for minutes.")
