"""DreamArtist, shown."""
from .. import Example

EXAMPLE = Example("DreamArtist", elsewhere="Learning takes minutes.")
