"""How each technique of inversion/ is shown and measured."""
