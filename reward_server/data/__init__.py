"""Finds the clips that a path names, and reads and writes the manifest of a data folder.

Decoding clips is in `decoding`. Drawing views to train on is in `training`.
"""
