"""Decodes a submission's bytes into windows of frames. Limits are checked before and during decoding.

Finding clips on disk is in `data`. Measuring motion in the frames is in `estimators`.
"""
