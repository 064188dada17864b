"""The motion-realism reward server, and what scores clips inside your own process.

    from reward_server import Pipeline, Settings, submission

    outcomes = Pipeline.load(Settings()).score_submissions([submission("clip.mp4")])

`Pipeline` loads when it is first used: the doors run without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protos.submissions import submission
from protos.types import Clip, Context, Outcome, OutcomeKind, Reward, Submission
from reward_server.errors import RewardServerError
from reward_server.settings import Settings

if TYPE_CHECKING:
    from reward_server.pipeline import Pipeline

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
    if name == "Pipeline":
        from reward_server.pipeline import Pipeline  # noqa: PLC0415

        return Pipeline
    raise AttributeError(f"module 'reward_server' has no attribute '{name}'")
