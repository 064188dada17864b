<<<<<<< HEAD
"""The networks that judge motion: one on residual maps (instantaneous), one on tracks (long-term).

Each turns motion into one logit; real motion is high. Layers that they share with the estimators stand in `networks`,
their training in `training`, and reading and writing their weights in `profiles`.
=======
"""The two trained discriminators: `residual_vit` (instantaneous) and `track_vit` (long-term).

The layers that they share with the frozen networks are in `networks`. Loading their weights for a profile is in
`profiles/discriminators.py`, training them in `training`.
>>>>>>> words1
"""
