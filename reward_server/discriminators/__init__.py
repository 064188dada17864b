"""The two trained discriminators: `residual_vit` (instantaneous) and `track_vit` (long-term).

The layers that they share with the frozen networks are in `networks`. Loading their weights for a profile is in
`profiles/discriminators.py`, training them in `training`.
"""
