"""SuDe, shown."""
from .. import Example

EXAMPLE = Example("FaceChain-SuDe", elsewhere="Put your subject into a picture (Custom-Edit)")
