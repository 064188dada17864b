<<<<<<< HEAD
"""Frozen motion estimators, one file per profile; each turns a clip and its queries into a `Motion`.

Nothing here is trained and nothing judges: that is `discriminators`. Shared layers stand in `networks`.
=======
"""Frozen motion estimators: classical tracks and flow for `embedded`, CoTracker3 and SEA-RAFT for the shift profiles.

The layers that these networks share with the discriminators are in `networks`. A profile (`profiles`) turns what
the estimators return into a `Motion`.
>>>>>>> words1
"""
