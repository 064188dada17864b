"""How good the rewards are: the sanity ladder, real against generated, the plots and the statistics.

It scores clips, in this process or over a server, and trains nothing. Speed is measured here too (`bench`, `load`).
"""
