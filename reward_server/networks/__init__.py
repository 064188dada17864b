"""Layers that several networks share, and how they compute: packed, in passes, compiled, in bf16.

Whole networks stand in `estimators` (frozen) and `discriminators` (trained).
"""
