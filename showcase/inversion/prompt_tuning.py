"""Prompt tuning inversion, shown and measured."""
from ...inversion.prompt_tuning import METHOD
from .. import Example
from ..pictures import HIGH, edits
from ..rows import InversionRow

EXAMPLE = Example(
    "Prompt tuning inversion",
    pages={"PalimpsestPromptTuningInvert": edits("PalimpsestPromptTuningInvert", cfg=HIGH)},
    inversions=(InversionRow("Prompt tuning", METHOD, 90, faithful={"mix": 0.0}),),
    elsewhere="Change a word at high guidance (Null-Text)")
