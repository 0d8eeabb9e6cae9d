"""Replay Inversion, shown."""
from .. import Example
from ..pictures import back_and_edited

EXAMPLE = Example("Replay Inversion", pages={"PalimpsestReplay": back_and_edited})
