"""The proof on a laptop: SHIFT on a toy base, with rewards whose optimum is known and with learned ones. See plan.md."""
