"""Reward guidance, shown and measured."""
from .. import Example

EXAMPLE = Example("Reward guidance (DCO)", elsewhere="Learn one picture and let it lead (SINE)",
                  unmeasured="It draws in a learned concept, which SceneBench has none of.")
