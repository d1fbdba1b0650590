"""The one document about an engine, read from shared memory."""
