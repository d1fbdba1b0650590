"""Snapshots of partitions where other hosts find them: a shared directory, or an object store."""
