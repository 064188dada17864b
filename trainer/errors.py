"""Every error that ends a training run by its own decision, as one tree.

    TrainerError
    ├─ ConfigError          a key, a value or two values together that cannot be trained with
    ├─ DataError            no clips, or too many that cannot be read
    ├─ MixedVersions        a group's clips were scored by different discriminator versions
    ├─ MissingRewards       more clips than allowed ended without a reward
    ├─ VersionLost          the server has lost the discriminators that the run is judged by
    ├─ RewardsSilent        the reward server gave no outcome for longer than we wait
    ├─ Diverged             a gradient that is not finite
    ├─ CheckpointError      a checkpoint that is incomplete or belongs to another run
    └─ PolicyError          a base model, or what it was given, cannot be used (policies/protocol.py)

What the reward server refuses is a RewardClientError (protos/client/errors.py).
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all. The message names the value, the limit and the next step."""


class ConfigError(TrainerError):
    pass


class DataError(TrainerError):
    pass


class MixedVersions(TrainerError):
    pass


class MissingRewards(TrainerError):
    pass


class VersionLost(TrainerError):
    pass


class RewardsSilent(TrainerError):
    pass


class Diverged(TrainerError):
    pass


class CheckpointError(TrainerError):
    pass
