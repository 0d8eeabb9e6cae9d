"""DisenBooth, shown."""
from .. import Example

EXAMPLE = Example("DisenBooth", elsewhere="It needs CLIP's image encoder, which the miniature does not have.")
