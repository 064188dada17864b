"""Trains a refresh in a thread: the run's clips and weights -> train -> check -> the files of the new version.

`refresher.py` loads the clips and weights and publishes the result. Training can be stopped before each step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from protos.types import RefreshResponse
from reward_server.errors import RefreshRejected
from reward_server.queue.refreshes import Refresh
from reward_server.queue.run_store import Version
from reward_server.scorer import Scorer
from reward_server.settings import Settings

if TYPE_CHECKING:
    from reward_server.training.adversarial import Candidate, Weights

REPORT_EVERY_S = 10.0
RUN_LABEL = 64  # characters of a run's id in the names of its versions

log = structlog.get_logger("refresh")


class Halted(Exception):
    """The refresh was stopped: another worker took it over, it is due, or this worker ends."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The clips and weights of a refresh. The files are None for a run that starts from the loaded discriminators."""

    began_s: float  # on time.monotonic()
    previous: Version | None
    average: bytes | None
    training: bytes | None
    real: Sequence[bytes]
    rollouts: Sequence[bytes]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A version that is ready to be published: its name, its two files and the response for the caller."""

    version: Version
    discriminators: bytes
    training: bytes
    response: RefreshResponse


class RefreshTraining:
    """The part of a refresh that runs in a thread."""

    def __init__(self, scorer: Scorer, settings: Settings) -> None:
        self._scorer, self._settings = scorer, settings

    def train(self, refresh: Refresh, start: Start, halt: threading.Event) -> Made:
        """Train and return a version that passed `check_candidate`.

        Raises Halted before the next step once `halt` is set or the refresh is due. Raises RefreshRejected.
        """
        from reward_server.profiles.run_clips import read_clip  # noqa: PLC0415
        from reward_server.training.adversarial import Buffers, refresh_discriminators  # noqa: PLC0415 - torch

        buffers = Buffers.of(
            [read_clip(data) for data in start.real],
            [read_clip(data) for data in start.rollouts],
            at_least=self._settings.refresh_min_clips,
        )
        average = (
            self._scorer.discriminators if start.average is None else self._scorer.discriminators_of(start.average)
        )
        training = average if start.training is None else self._scorer.discriminators_of(start.training)
        candidate = refresh_discriminators(
            self._scorer.profile,
            buffers,
            refresh.request,
            average=average,
            training=training,
            device=self._settings.device,
            before_step=_Progress(refresh, halt),
        )
        check_candidate(candidate)
        return self._packed(refresh, start, candidate)

    def _packed(self, refresh: Refresh, start: Start, candidate: Candidate) -> Made:
        base = self._scorer.model.discriminator_version
        number = start.previous.number + 1 if start.previous else 1
        name = version_name(base, refresh.request.run_id, number, candidate.name)
        discriminators = self._file(name, candidate.average)
        version = Version(name=name, digest=self._scorer.discriminators_of(discriminators).digest, number=number)
        return Made(
            version=version,
            discriminators=discriminators,
            training=self._file(name, candidate.training),
            response=RefreshResponse(
                discriminator_version=name,
                weights_digest=version.digest,
                previous_version=start.previous.name if start.previous else base,
                steps=refresh.request.steps,
                num_real=candidate.num_real,
                num_rollouts=candidate.num_rollouts,
                num_held_out=candidate.num_held_out,
                instantaneous=candidate.report["instantaneous"],
                long_term=candidate.report["long_term"],
                seconds=time.monotonic() - start.began_s,
            ),
        )

    def _file(self, version: str, weights: Weights) -> bytes:
        """The weights as a file, in single precision, because half precision would round small steps away."""
        from reward_server.profiles.discriminators import pack_discriminators  # noqa: PLC0415 - torch

        return pack_discriminators(
            profile=self._scorer.profile,
            version=version,
            instantaneous=weights["instantaneous"],
            long_term=weights["long_term"],
        )


def check_candidate(candidate: Candidate) -> None:
    """Check a candidate before it may serve. Raises RefreshRejected if a weight is not finite.

    Losses and held-out logits have been checked during training. Further conditions, such as limits on the held-out
    figures of `candidate.report` or on drift, belong here.
    """
    for kind, weights in (("averaged", candidate.average), ("trained", candidate.training)):
        for discriminator, state in weights.items():
            if bad := [name for name, value in state.items() if not bool(value.isfinite().all())]:
                raise RefreshRejected(
                    f"{kind} weights of the {discriminator} discriminator are not finite: {', '.join(bad)[:200]}; "
                    "try a lower learning_rate or fewer steps"
                )


def version_name(base: str, run_id: str, number: int, weights: str) -> str:
    """The name `base+run.number-weights`. `weights` keeps names distinct if Redis lost its data and numbers repeat."""
    return f"{base}+{run_id[:RUN_LABEL]}.{number}-{weights}"


class _Progress:
    """Called before each step: logs every REPORT_EVERY_S, and raises Halted if the refresh must stop."""

    def __init__(self, refresh: Refresh, halt: threading.Event) -> None:
        self._refresh, self._halt = refresh, halt
        self._reported_s = time.monotonic()

    def __call__(self, step: int) -> None:
        if self._halt.is_set() or self._refresh.is_due:
            raise Halted
        now_s = time.monotonic()
        if step == 0 or now_s - self._reported_s >= REPORT_EVERY_S:
            self._reported_s = now_s
            request = self._refresh.request
            log.info("refreshing", refresh_id=self._refresh.id, run_id=request.run_id, step=step, steps=request.steps)
