"""A worker: claims jobs, decodes, scores in batches, trains a run's discriminators when asked.

What it scores with is a `scorer.Scorer`; what Redis keeps stands in `queue`.
"""
