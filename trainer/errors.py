"""Defines the errors by which the trainer itself ends a run.

    TrainerError
    ├─ ConfigError          a key, a value or a combination of values that training cannot use
    ├─ DataError            no clips, or too many clips that cannot be read
    ├─ MixedVersions        rewards to be compared come from different discriminator versions
    ├─ MissingRewards       more clips than allowed ended without a reward
    ├─ WeakSignal           rewards within groups differ by less than their own noise, and signal.on_weak is stop
    ├─ VersionLost          the server no longer has the discriminators that score this run, nor has the run
    ├─ ClipsLost            the server no longer has the clips that a refresh trains on
    ├─ GateFailed           a refresh failed the server's gate, and refresh.on_gate is stop
    ├─ RewardsSilent        the reward server gave no outcome within the allowed time
    ├─ Diverged             a gradient is not finite
    ├─ CheckpointError      a checkpoint is incomplete or belongs to another run
    └─ PolicyError          a base model, or an input to it, cannot be used (policies/protocol.py)

A request that the reward server refuses raises a RewardClientError (protos/client/errors.py).
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all trainer errors. The message names the value, the limit and the next step."""


class ConfigError(TrainerError):
    pass


class DataError(TrainerError):
    pass


class MixedVersions(TrainerError):
    pass


class MissingRewards(TrainerError):
    pass


class WeakSignal(TrainerError):
    pass


class VersionLost(TrainerError):
    pass


class ClipsLost(TrainerError):
    pass


class GateFailed(TrainerError):
    pass


class RewardsSilent(TrainerError):
    pass


class Diverged(TrainerError):
    pass


class CheckpointError(TrainerError):
    pass
