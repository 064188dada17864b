"""How good the rewards are: the sanity ladder, real against generated, the plots and the statistics."""
