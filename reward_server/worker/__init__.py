"""Runs a worker: it claims jobs, decodes clips, scores them in batches, and trains a run's discriminators on request.

It scores with a `scorer.Scorer`. The queue in Redis is in `queue`.
"""
