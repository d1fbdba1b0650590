"""Keyed state of a handler: values and timers by key, in memory and as they are saved."""
