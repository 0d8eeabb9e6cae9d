"""SuDe, shown."""
from .. import Example

EXAMPLE = Example("FaceChain-SuDe", elsewhere="Keep the class as a subject is learned (DreamBooth)")
