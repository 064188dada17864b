"""The one queue between doors and workers: what Redis keeps, and every step a Lua script that is one transaction.

`DoorQueue` is the doors' side, `WorkerQueue` the workers'. Decoding, scoring, training and transports stand elsewhere.
"""
