"""The networks that judge motion: one on residual maps (instantaneous), one on tracks (long-term).

Each turns motion into one logit; real motion is high. Layers that they share with the estimators stand in `networks`,
their training in `training`, and reading and writing their weights in `profiles`.
"""
