"""The training data of the shipped weights: real camera clips and photographs out of packages, and simulated scenes.

Training on that data is the server's own (`reward_server/training`); nothing of this is installed.
"""
