"""Defines the Python values of the contract: what a client submits and what it gets back.

Every value is frozen and checked when it is made, so that other code need not check it again. The server and its
clients both use these values. `codec` converts them to messages and bytes.
"""

from protos.error_codes import ContractError
from protos.types.clip import END_OF_SEEDS, MAX_CHARACTERS, Clip, Context, Media, Origin, Submission
from protos.types.model import REFRESH_STEP_S, REFRESH_TIMEOUT_S, SCORE_TIMEOUT_S, Input, Limits, Model
from protos.types.outcome import Error, Outcome, OutcomeKind
from protos.types.refresh import (
    END_OF_COUNTS,
    MAX_CLIPS_PER_STEP,
    MAX_LEARNING_RATE,
    MAX_STEPS,
    Anchor,
    DiscriminatorRefresh,
    RefreshRequest,
    RefreshResponse,
    Separation,
    VersionHeader,
)
from protos.types.reward import (
    DISCRIMINATORS,
    DYNAMICS,
    PERCENTILES,
    REWARDS,
    SHARES,
    Bounds,
    ClipWarning,
    DiscriminatorName,
    Dynamics,
    Logits,
    Provenance,
    Reward,
    Source,
    StandardError,
    Standing,
    Timings,
    WindowLogits,
)

__all__ = [
    "DISCRIMINATORS",
    "DYNAMICS",
    "END_OF_COUNTS",
    "END_OF_SEEDS",
    "MAX_CHARACTERS",
    "MAX_CLIPS_PER_STEP",
    "MAX_LEARNING_RATE",
    "MAX_STEPS",
    "PERCENTILES",
    "REFRESH_STEP_S",
    "REFRESH_TIMEOUT_S",
    "REWARDS",
    "SCORE_TIMEOUT_S",
    "SHARES",
    "Anchor",
    "Bounds",
    "Clip",
    "ClipWarning",
    "Context",
    "ContractError",
    "DiscriminatorName",
    "DiscriminatorRefresh",
    "Dynamics",
    "Error",
    "Input",
    "Limits",
    "Logits",
    "Media",
    "Model",
    "Origin",
    "Outcome",
    "OutcomeKind",
    "Provenance",
    "RefreshRequest",
    "RefreshResponse",
    "Reward",
    "Separation",
    "Source",
    "StandardError",
    "Standing",
    "Submission",
    "Timings",
    "VersionHeader",
    "WindowLogits",
]
