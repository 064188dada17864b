"""Measures rollouts: dynamic degree, motion along point tracks, and the comparison of two sets of clips.

`evaluate.py` and `board.py` use them. Nothing here trains.
"""
