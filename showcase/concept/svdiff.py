"""SVDiff, shown."""
from .. import Example

EXAMPLE = Example("SVDiff", elsewhere="Keep the class as a subject is learned (DreamBooth)")
