"""Trains the discriminators: `pretrain` from folders of clips, `adversarial` for a refresh during RL training.

The networks themselves are in `discriminators`. Claiming a refresh and publishing its result is in `worker`.
"""
