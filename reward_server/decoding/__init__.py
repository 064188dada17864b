"""A submission's bytes -> windows of frames, under limits held before and while decoding.

Finding clips on disk stands in `data`; what is seen in the frames is the business of `estimators`.
"""
