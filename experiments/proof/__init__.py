"""The proof on a laptop: SHIFT on a toy base, with rewards whose optimum is known, and learned ones.

plan.md says what is claimed, RESULTS.md what was found. The method itself stands in `trainer`.
"""
