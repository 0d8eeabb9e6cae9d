"""How each technique of blending/ is shown and measured."""
