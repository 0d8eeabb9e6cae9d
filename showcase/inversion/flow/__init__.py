"""How each technique of inversion/flow/ is shown and measured."""
