"""Tests SHIFT on a toy model that trains on a laptop, with known rewards and with learned ones.

plan.md states the claims and how they are judged. RESULTS.md records the results; docs/proof.md is a short account.
`python -m experiments.proof mechanism | rewards | motion | seeds` runs it. Measures and verdicts are pure functions.
"""
