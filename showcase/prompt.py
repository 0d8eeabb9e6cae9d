"""Prompt Edit, shown."""
from . import Example
from .pictures import back_and_edited

EXAMPLE = Example("Prompt Edit", pages={"PalimpsestPromptEdit": back_and_edited})
