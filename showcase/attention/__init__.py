"""How each technique of attention/ is shown and measured."""
