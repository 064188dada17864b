"""Measurements of speed, memory and agreement with the official networks; each module is a command. Not installed.

Each prints a table and ends with one JSON line. Nothing imports a benchmark but its test.
"""
