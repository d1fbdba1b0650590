"""Shared memory: the only importer of the C extension, and the only place that knows how segments are named."""
