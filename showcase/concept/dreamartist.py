"""DreamArtist, shown."""
from .. import Example

EXAMPLE = Example("DreamArtist", elsewhere="From one picture its two words do not learn more of the miniature's "
                                           "objects in 300 steps than their first words say.")
