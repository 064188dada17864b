<<<<<<< HEAD
"""How good the rewards are: the sanity ladder, real against generated, the plots and the statistics.

It scores clips, in this process or over a server, and trains nothing. Speed is measured here too (`bench`, `load`).
=======
"""Scores clips from the command line and measures how good the rewards are: `score`, `sanity`, `evaluate`, `bench`.

The statistics are in `stats`, the motion faults in `faults`, and finding the clips of a path in `data`.
>>>>>>> words1
"""
