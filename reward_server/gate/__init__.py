"""Decides which clips pass, for scripts and CI: `motion-reward check`.

A rule gives the lowest value that passes, and a gold file holds a set of clips with their verdicts, so that new
discriminators can be compared with those of the file. `report` shows the clips; scoring them is done by `evaluation`.
"""
