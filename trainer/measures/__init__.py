"""Measures of rollouts: dynamics, tracks, and the comparison of two sets of clips.

`evaluate.py` uses them; nothing here trains.
"""
