"""The one queue between doors and workers: Redis Streams, every transition a transaction.

Who submits stands in `doors`, who scores in `worker`. No clip is looked into here: payloads are bytes.
"""
