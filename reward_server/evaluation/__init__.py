"""Scores clips from the command line and measures how good the rewards are: `score`, `sanity`, `attack`,
`evaluate` and `bench`.

The statistics are in `stats`, the motion faults in `faults`, and finding the clips of a path in `data`.
"""
