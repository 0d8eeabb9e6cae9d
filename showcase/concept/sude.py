"""SuDe, shown."""
from .. import Example

EXAMPLE = Example("FaceChain-SuDe", elsewhere="Learning takes minutes.")
