"""Gets rewards for the evaluation commands, from a pipeline in this process or from a server.

A missing reward is never replaced by a number. It is an outcome with an error, an empty cell in a report, and NaN in
arithmetic.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from protos.client import RewardClient
from protos.types import DYNAMICS, PERCENTILES, REWARDS, Context, Limits, Model, Outcome, Reward, Submission
from reward_server.decoding.children import DecodePool, decode_pool
from reward_server.decoding.decode import DecodedClip, Sampling, decode
from reward_server.errors import BadRequest, RewardServerError, UnreadableClip, error_outcome
from reward_server.settings import MIB, Settings
from reward_server.stats import Floats

T = TypeVar("T")
Score = Callable[[Sequence[Submission]], list[Outcome]]

CLIPS_PER_REQUEST = 16  # fills the server's batches, and stays within its limits and timeouts
MOST_BYTES = 64 * MIB  # most bytes of clips that are read or sent at once
STANDARD_ERRORS = {reward_name: f"standard_error_{reward_name}" for reward_name in REWARDS}
OUTCOME_COLUMNS = (
    *("outcome", "error_code", "error"),
    *REWARDS,
    *("logit_instantaneous", "logit_long_term", "clipped"),
    *PERCENTILES,
    "nearest",
    *STANDARD_ERRORS.values(),
    *DYNAMICS,
)


@dataclass(frozen=True, kw_only=True)
class RewardSource:
    """A function that scores, the model it serves, where it is ("in-process" or a URL), and the children that decode
    what is not scored as it is; without them this process does."""

    score: Score
    model: Model
    where: str
    children: DecodePool | None = None

    def decode(self, submission: Submission, sampling: Sampling, settings: Settings) -> DecodedClip:
        """Decode a clip within the model's limits. Raises as `decode` and DecodePool do."""
        decode_one = self.children.decode if self.children else decode
        threads = settings.decoder_threads
        return decode_one(submission, sampling, self.limits, settings.max_decode_s, threads=threads)

    @property
    def sampling(self) -> Sampling:
        """The profile's sampling. A clip sampled in this way passes through the profile's decoder unchanged."""
        names = ("fps", "window_frames", "min_frames", "area_px")
        return Sampling(**{name: getattr(self.model.input, name) for name in names})

    @property
    def limits(self) -> Limits:
        return self.model.limits


def comparison(name: str, query_seed: int) -> Context:
    """The context of clips that are compared with each other, whatever a server keeps of earlier comparisons."""
    return Context(group_id=f"{uuid.uuid4().hex[:8]} {name[-200:]}", query_seed=query_seed)


@contextmanager
def open_scorer(settings: Settings, server: str | None) -> Iterator[RewardSource]:
    """Open the server at grpc://HOST:PORT or http://HOST:PORT, or the pipeline in this process if `server` is None.

    Raises BadRequest for another URL or what cannot be a key, and NotReady if the pipeline's weights are missing.
    """
    if server is None:
        from reward_server.pipeline import Pipeline  # noqa: PLC0415 - a client of a server needs no torch

        pipeline = Pipeline.load(settings)
        score, model = pipeline.score_submissions, pipeline.model
        yield RewardSource(score=score, model=model, where="in-process", children=pipeline.children)
    else:
        try:
            key = settings.api_key
            opened = RewardClient(
                server,
                api_key=key.get_secret_value() if key else None,
                ca=settings.ca,
                cert=settings.cert,
                cert_key=settings.cert_key,
            )
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
                children=decode_pool(settings, 1),
            )


def bounded(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Batches of consecutive items: at most `most` items and MOST_BYTES together. A larger item goes alone."""
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
    """Bytes of a clip in a request; 0 for a clip that could not be read and therefore is an outcome already."""
    return len(item.payload) if isinstance(item, Submission) else 0


def failed_outcome(error: RewardServerError | OSError) -> Outcome:
    """The outcome of a clip that could not be read or prepared on this side."""
    if isinstance(error, OSError):
        error = UnreadableClip(
            f"the file cannot be read ({error.strerror or error}); check the path and its permissions"
        )
    return error_outcome("", error, Context())


def without_explanation(outcome: Outcome) -> Outcome:
    """The same without its explanation, which is drawn and not reported, so that many clips fit into memory."""
    reward = outcome.reward
    if reward is None or reward.explanation is None:
        return outcome
    context = replace(outcome.context, explain=False)
    return replace(outcome, reward=replace(reward, explanation=None), context=context)


def rewards_of(outcome: Outcome) -> Floats:
    """The rewards [3] of an outcome, in the order of REWARDS; NaN if it has none."""
    if outcome.reward is None:
        return np.full(len(REWARDS), math.nan)
    return np.array([getattr(outcome.reward, reward_name) for reward_name in REWARDS], dtype=np.float64)


def dynamics_of(outcome: Outcome) -> dict[str, float]:
    """The numbers of an outcome's dynamics by name (DYNAMICS). Empty without a reward, or from an older server."""
    found = outcome.reward and outcome.reward.dynamics
    return {name: getattr(found, name) for name in DYNAMICS} if found else {}


def outcome_row(outcome: Outcome) -> dict[str, object]:
    """The values of OUTCOME_COLUMNS for one outcome; None (an empty cell, a JSON null) if a value is absent."""
    reward, error = outcome.reward, outcome.error
    row: dict[str, object] = dict.fromkeys(OUTCOME_COLUMNS)
    row["outcome"] = outcome.kind.value
    if error is not None:
        row.update(error_code=error.code, error=error.message)
    if reward is not None:
        row.update({reward_name: getattr(reward, reward_name) for reward_name in REWARDS})
        row.update(logit_instantaneous=reward.logits.instantaneous, logit_long_term=reward.logits.long_term)
        row["clipped"] = reward.clipped
        row.update(_about(reward))
    row.update(dynamics_of(outcome))
    return row


def _about(reward: Reward) -> dict[str, object]:
    """Percentiles, nearest rung and standard errors by column, as far as the reward has them."""
    found: dict[str, object] = {}
    if reward.standing:
        found = {name: getattr(reward.standing, name) for name in PERCENTILES}
        found["nearest"] = reward.standing.nearest or None
    if reward.standard_error:
        found |= {column: getattr(reward.standard_error, name) for name, column in STANDARD_ERRORS.items()}
    return found


def count_outcomes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count the outcomes that are ok and those with each error code."""
    return dict(Counter(outcome.error.code if outcome.error else "ok" for outcome in outcomes))


def derived_seed(seed: int, *parts: object) -> int:
    """A seed in 0..2^32-1 that depends only on `seed` and `parts`, and is the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:4], "big")
