"""The training data of the shipped weights: real camera clips and photographs out of packages, and simulated scenes."""
