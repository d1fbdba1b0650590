"""NATS JetStream as a source: partitions of a stream, shared among hosts. Needs `shardmem[nats]`."""
