"""Sends mutated inputs through decoding and through both doors, and counts what is the server's fault.

`python -m benchmarks.fuzz` runs it. mutate.py changes bytes, decoding.py and doors.py send them.
"""
