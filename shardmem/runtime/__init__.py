"""The processes that move events: producers and workers. Imports numpy and the standard library, nothing else."""
