"""DCO, shown."""
from .. import Example

EXAMPLE = Example("DCO", elsewhere="Put your subject into a picture (Custom-Edit)")
