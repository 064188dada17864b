"""Writes a run's report, `run.html`: curves of its figures, and sample clips. It reads only what the run has written.

The file needs no other file and no network. TensorBoard and metrics.jsonl hold every figure.
"""
