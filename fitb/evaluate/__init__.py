"""How well a model fills masked positions, with intervals."""
