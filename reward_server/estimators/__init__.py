"""Frozen motion estimators: classical tracks and flow for `embedded`, CoTracker3 and SEA-RAFT for the shift profiles.

The layers that these networks share with the discriminators are in `networks`. A profile (`profiles`) turns what
the estimators return into a `Motion`.
"""
