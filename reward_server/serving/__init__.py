"""Starts and ends processes: the server, its workers and a private Redis. Handles signals.

The code that these processes run is in `doors` and `worker`.
"""
