"""KV inversion, shown and measured."""
from ...inversion.kv import METHOD
from .. import Example
from ..pictures import HIGH, edits
from ..rows import InversionRow

EXAMPLE = Example(
    "KV inversion",
    pages={"PalimpsestKVInvert": edits("PalimpsestKVInvert", edit="pose", seed=0, cfg=HIGH)},
    inversions=(InversionRow("KV inversion", METHOD, 110),),
    elsewhere="Change a word at high guidance (Null-Text)")
