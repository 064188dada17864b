"""Makes the training data of the shipped weights from packages that anyone can fetch.

The data are camera clips from packages and simulated scenes, whose textures are partly cut from photographs. No still
picture is among the real clips: a camera that glides over a photograph is the fault `gliding`.
`python -m experiments.recipe clips | scenes` makes them. `motion-reward pretrain` does the training.
"""
