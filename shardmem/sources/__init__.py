"""What feeds an engine from outside: one contract, one loop that drives it, and the sources that keep to it."""
