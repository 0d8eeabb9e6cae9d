"""SVDiff, shown."""
from .. import Example

EXAMPLE = Example("SVDiff", elsewhere="Put your subject into a picture (Custom-Edit)")
