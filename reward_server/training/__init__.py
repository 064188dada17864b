"""Training the discriminators: `pretrain` from folders of clips, `adversarial` for a refresh.

The discriminators themselves stand in `discriminators`; a refresh is claimed and published by `worker`.
"""
