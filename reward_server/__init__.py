"""The motion-realism reward server, and what scores clips inside your own process.

    from reward_server import Pipeline, Settings, submission

    outcomes = Pipeline.load(Settings()).score_submissions([submission("clip.mp4")])

Names load when they are first used: the doors run without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protos.client import submission
    from protos.types import Clip, Context, Outcome, OutcomeKind, Reward, Submission
    from reward_server.errors import RewardServerError
    from reward_server.pipeline import Pipeline
    from reward_server.settings import Settings

_HOMES = {
    "Clip": "protos.types",
    "Context": "protos.types",
    "Outcome": "protos.types",
    "OutcomeKind": "protos.types",
    "Pipeline": "reward_server.pipeline",
    "Reward": "protos.types",
    "RewardServerError": "reward_server.errors",
    "Settings": "reward_server.settings",
    "Submission": "protos.types",
    "submission": "protos.client",
}

__all__ = [
    "Clip",
    "Context",
    "Outcome",
    "OutcomeKind",
    "Pipeline",
    "Reward",
    "RewardServerError",
    "Settings",
    "Submission",
    "submission",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reward_server' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
