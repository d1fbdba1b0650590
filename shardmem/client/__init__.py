"""Ways in: an engine inside a program, and one that another process runs."""
