"""Frozen motion estimators, one file per profile; each turns a clip and its queries into a `Motion`.

Nothing here is trained and nothing judges: that is `discriminators`. Shared layers stand in `networks`.
"""
