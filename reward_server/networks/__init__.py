"""Layers that several networks share, and how they compute: packed weights, passes, torch.compile, bf16, exact fp32.

Whole networks are in `estimators` (frozen) and `discriminators` (trained).
"""
