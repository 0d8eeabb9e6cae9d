"""How each technique of guidance/ is shown and measured."""
