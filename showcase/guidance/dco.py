"""Reward guidance, shown and measured."""
from .. import Example

EXAMPLE = Example("Reward guidance (DCO)", elsewhere="It needs a learned concept.",
                  unmeasured="It draws in a learned concept, which SceneBench has none of.")
