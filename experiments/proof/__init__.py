"""The proof: SHIFT on a toy model that trains on a laptop, with known rewards and with learned ones.

plan.md says what is claimed and how it is judged, RESULTS.md what came out; docs/proof.md is the short account.
`python -m experiments.proof mechanism | rewards | motion | seeds` runs it; measures and verdicts are pure functions.
"""
