"""The proof on a laptop: SHIFT on a toy base, with rewards whose optimum is known, and learned ones. See plan.md."""
