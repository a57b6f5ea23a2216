"""Which eps: the sweep, the choice and what it is worth."""
