"""Measures speed, memory and agreement with the official networks. Each module is a command. Not installed.

Each prints a table and ends with one JSON line. Only tests import a benchmark.
"""
