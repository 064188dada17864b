"""The queue between doors and workers. It is kept in Redis, and each step is a Lua script, which is one transaction.

`DoorQueue` is the doors' side and `WorkerQueue` the workers' side. Decoding, scoring and training are elsewhere.
"""
