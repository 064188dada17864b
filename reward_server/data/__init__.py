"""Which clips a path names, and the manifest of a data folder.

What is done with the clips stands elsewhere: decoding in `decoding`, views to train on in `training`.
"""
