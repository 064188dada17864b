"""An attack on a server of real processes: kills, stops, floods and bad clips, while clips come in over both doors.

`python -m benchmarks.faults` runs it. traffic.py sends the clips, chaos.py does the harm, and accounts.py counts.
"""
