"""How each technique of concept/ is shown and measured."""
