"""The one queue between doors and workers: Redis Streams, every transition a transaction."""
