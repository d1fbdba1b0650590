"""Brokers that tests start: librdkafka's mock cluster, and Apache Kafka from its jars."""
