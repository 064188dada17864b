"""Where `sanity`, `evaluate` and `bench` get their rewards: one function type, in this process or from a server.

A missing reward stays missing: it is an outcome with an error, a row in the tables and NaN inside the
arithmetic, and never becomes a number in a report.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from protos.client import RewardClient
from protos.types import Context, Limits, Model, Outcome, Submission
from reward_server.decoding.decode import Sampling
from reward_server.errors import BadRequest, RewardServerError, UnreadableClip, error_outcome
from reward_server.settings import MIB, Settings
from reward_server.stats import Floats

T = TypeVar("T")
Score = Callable[[Sequence[Submission]], list[Outcome]]

REWARDS = ("combined", "instantaneous", "long_term")
CLIPS_PER_REQUEST = 16  # enough to fill the server's batches, few enough to stay within its limits and timeouts
MOST_BYTES = 64 * MIB  # of clips read, or sent, at once
OUTCOME_COLUMNS = (
    *("outcome", "error_code", "error"),
    *REWARDS,
    *("logit_instantaneous", "logit_long_term", "clipped"),
)


@dataclass(frozen=True, kw_only=True)
class RewardSource:
    """Something that scores, what it serves, and where it is ("in-process" or a URL)."""

    score: Score
    model: Model
    where: str

    @property
    def sampling(self) -> Sampling:
        """How the profile decodes, so that a clip prepared here passes its decoder unchanged."""
        names = ("fps", "window_frames", "min_frames", "area_px")
        return Sampling(**{name: getattr(self.model.input, name) for name in names})

    @property
    def limits(self) -> Limits:
        return self.model.limits


@contextmanager
def open_scorer(settings: Settings, server: str | None) -> Iterator[RewardSource]:
    """The pipeline in this process, or the server at grpc://HOST:PORT or http://HOST:PORT; else BadRequest."""
    if server is None:
        from reward_server.pipeline import Pipeline  # noqa: PLC0415  (torch loads only where it scores)

        pipeline = Pipeline.load(settings)
        yield RewardSource(score=pipeline.score_submissions, model=pipeline.model, where="in-process")
    else:
        try:
            opened = RewardClient(server)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        with opened as client:
            model = client.model()
            most = min(CLIPS_PER_REQUEST, model.limits.max_clips_per_request)
            yield RewardSource(
                score=lambda clips: [
                    outcome for request in bounded(clips, payload_bytes, most) for outcome in client.score(request)
                ],
                model=model,
                where=server,
            )


def bounded(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Consecutive items, at most `most` and MOST_BYTES of them together, or a larger one alone."""
    batch: list[T] = []
    num_bytes = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == most or num_bytes + size > MOST_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(item)
        num_bytes += size
    if batch:
        yield batch


def payload_bytes(item: Submission | Outcome) -> int:
    """What a clip weighs in a request; nothing, where it could not be read and is an outcome already."""
    return len(item.payload) if isinstance(item, Submission) else 0


def failed_outcome(error: RewardServerError | OSError) -> Outcome:
    """What a clip that could not be read or prepared on this side becomes."""
    if isinstance(error, OSError):
        error = UnreadableClip(f"cannot be read: {error.strerror or error}; check the path and its permissions")
    return error_outcome("", error, Context())


def rewards_of(outcome: Outcome) -> Floats:
    """[3] rewards in the order of REWARDS; NaN where there is none."""
    if outcome.reward is None:
        return np.full(len(REWARDS), math.nan)
    return np.array([getattr(outcome.reward, reward_name) for reward_name in REWARDS], dtype=np.float64)


def outcome_row(outcome: Outcome) -> dict[str, object]:
    """OUTCOME_COLUMNS of one outcome; None (an empty cell, a JSON null) where it holds no such thing."""
    reward, error = outcome.reward, outcome.error
    row: dict[str, object] = dict.fromkeys(OUTCOME_COLUMNS)
    row["outcome"] = outcome.kind.value
    if error is not None:
        row.update(error_code=error.code, error=error.message)
    if reward is not None:
        row.update({reward_name: getattr(reward, reward_name) for reward_name in REWARDS})
        row.update(logit_instantaneous=reward.logits.instantaneous, logit_long_term=reward.logits.long_term)
        row["clipped"] = reward.clipped
    return row


def count_outcomes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many came out ok, and how many with each error code."""
    return dict(Counter(outcome.error.code if outcome.error else "ok" for outcome in outcomes))


def derived_seed(seed: int, *parts: object) -> int:
    """A seed in 0..2^32-1 that depends on `seed` and `parts` only: the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:4], "big")
