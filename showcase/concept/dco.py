"""DCO, shown."""
from .. import Example

EXAMPLE = Example("DCO", elsewhere="Keep the class as a subject is learned (DreamBooth)")
