"""A submission's bytes -> windows of frames, under limits held before and while decoding."""
