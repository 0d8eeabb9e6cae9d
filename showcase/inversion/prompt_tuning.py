"""Prompt tuning inversion, shown and measured."""
from ...nodes.inversion.prompt_tuning import PalimpsestPromptTuningInvert
from .. import Example
from ..pictures import HIGH, edits
from ..rows import InversionRow

EXAMPLE = Example(
    "Prompt tuning inversion",
    pages={"PalimpsestPromptTuningInvert": edits("PalimpsestPromptTuningInvert", cfg=HIGH)},
    inversions=(InversionRow("Prompt tuning", PalimpsestPromptTuningInvert, 90, faithful={"mix": 0.0}),),
    elsewhere="Edit at high guidance (null-text)")
