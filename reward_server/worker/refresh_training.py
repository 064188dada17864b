"""Trains a refresh in a thread: the run's clips and weights -> train -> check -> the files of the new version.

`refresher.py` loads the clips and weights and publishes the result. Training can be stopped before each step.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from protos.types import RefreshResponse
from reward_server.errors import RefreshRejected
from reward_server.queue.refreshes import Refresh
from reward_server.queue.reservoir import KeptClip
from reward_server.queue.run_store import RUN_LABEL, Version
from reward_server.scorer import Scorer
from reward_server.settings import Settings
from reward_server.worker.gate import check_gate

if TYPE_CHECKING:
    from torch import Tensor

    from reward_server.profiles.discriminators import Discriminators
    from reward_server.training.adversarial import Candidate, Weights
    from reward_server.training.buffers import Buffers

REPORT_EVERY_S = 10.0

log = structlog.get_logger("refresh")


class Halted(Exception):
    """The refresh was stopped: another worker took it over, it is due, or this worker ends."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The clips and weights of a refresh. The files are None for a run that starts from the loaded discriminators."""

    began_s: float  # on time.monotonic()
    previous: Version | None
    number: int  # of the new version within its run
    average: bytes | None
    training: bytes | None
    cut_ms: int  # on Redis's clock: the clips until then are those that the refresh knows
    scored_real: int  # since the refresh before
    scored_rollouts: int
    missing_real: tuple[str, ...]  # jobs whose clips were scored, but for which there was no room or no file
    missing_rollouts: tuple[str, ...]
    real: Sequence[KeptClip]
    rollouts: Sequence[KeptClip]
    anchor_real: Sequence[bytes] = ()  # the run's anchor set, once it has one
    anchor_rollouts: Sequence[bytes] = ()


@dataclass(frozen=True, kw_only=True)
class Made:
    """A version that is ready to be published: its name, its two files and the response for the caller."""

    version: Version
    discriminators: bytes
    training: bytes
    response: RefreshResponse
    cut_ms: int
    anchors: tuple[str, ...] = ()  # the names of clips that become the run's anchor set


class RefreshTraining:
    """The part of a refresh that runs in a thread."""

    def __init__(self, scorer: Scorer, settings: Settings) -> None:
        self._scorer, self._settings = scorer, settings

    def train(self, refresh: Refresh, start: Start, halt: threading.Event) -> Made:
        """Train and return a version that passed `check_candidate`.

        Raises Halted before the next step once `halt` is set or the refresh is due. Raises RefreshRejected, GateFailed
        and TooFewClips.
        """
        from reward_server.training.adversarial import refresh_discriminators  # noqa: PLC0415 - torch
        from reward_server.training.optimizer_state import in_file  # noqa: PLC0415 - torch

        average = (
            self._scorer.discriminators if start.average is None else self._scorer.discriminators_of(start.average)
        )
        training = average if start.training is None else self._scorer.discriminators_of(start.training)
        candidate = refresh_discriminators(
            self._scorer.profile,
            self._buffers(start),
            refresh.request,
            average=average,
            training=training,
            optimizer=in_file(start.training) if refresh.request.keep_optimizer and start.training else None,
            device=self._settings.device,
            before_step=_Progress(refresh, halt),
            anchor=self._anchor(start),
            freeze_at=self._settings.gate_min_clips,
            bounds=self._scorer.model.bounds,
        )
        check_candidate(candidate)
        check_gate(candidate.report, self._settings)
        return self._packed(refresh, start, candidate, average)

    def _buffers(self, start: Start) -> Buffers:
        from reward_server.profiles.run_clips import read_clip  # noqa: PLC0415 - torch
        from reward_server.training.buffers import Buffers  # noqa: PLC0415 - torch

        real, rollouts = (
            [read_clip(clip.parts, name=clip.name, older=clip.older) for clip in clips]
            for clips in (start.real, start.rollouts)
        )
        return Buffers.of(real, rollouts, at_least=self._settings.refresh_min_clips)

    def _anchor(self, start: Start) -> Buffers | None:
        """The run's anchor set, if it has one."""
        from reward_server.profiles.run_clips import read_clip  # noqa: PLC0415 - torch
        from reward_server.training.buffers import Buffers  # noqa: PLC0415 - torch

        real, rollouts = ([read_clip([data]) for data in clips] for clips in (start.anchor_real, start.anchor_rollouts))
        return Buffers(real=real, rollouts=rollouts) if real and rollouts else None

    def _packed(self, refresh: Refresh, start: Start, candidate: Candidate, parent: Discriminators) -> Made:
        base = self._scorer.model.discriminator_version
        name = version_name(base, refresh.request.run_id, start.number, candidate.name)
        discriminators = self._file(name, candidate.average, parent)
        training = self._file(name, candidate.training, parent, candidate.optimizer)
        version = Version(
            name=name,
            digest=self._scorer.discriminators_of(discriminators).digest,
            training_digest=hashlib.sha256(training).hexdigest(),
            number=start.number,
            base=base,
            preprocessing_digest=self._scorer.model.preprocessing_digest,
        )
        previous = start.previous.name if start.previous else base
        anchor = candidate.anchor
        is_new = anchor is not None and anchor is candidate.held_out
        return Made(
            version=version,
            discriminators=discriminators,
            training=training,
            response=_response(start, candidate, version, previous),
            cut_ms=start.cut_ms,
            anchors=tuple(clip.name for clip in (*anchor.real, *anchor.rollouts)) if anchor and is_new else (),
        )

    def _file(
        self,
        version: str,
        weights: Weights,
        parent: Discriminators,
        optimizer: Mapping[str, Tensor] | None = None,
    ) -> bytes:
        """The weights as a file, in single precision, because half precision would round small steps away.

        They keep the pace terms and the reference table of `parent`, from which they were trained. `optimizer` is the
        state of their optimizers.
        """
        from reward_server.profiles.discriminators import pack_discriminators  # noqa: PLC0415 - torch

        return pack_discriminators(
            profile=self._scorer.profile,
            version=version,
            instantaneous=weights["instantaneous"],
            long_term=weights["long_term"],
            pace_weights=parent.pace_weights,
            inherited=parent.reference,
            beside=optimizer,
        )


def _response(start: Start, candidate: Candidate, version: Version, previous: str) -> RefreshResponse:
    clips, held_out, anchor = candidate.clips, candidate.held_out, candidate.anchor
    return RefreshResponse(
        discriminator_version=version.name,
        weights_digest=version.digest,
        previous_version=previous,
        steps=candidate.steps,
        num_real=len(clips.real),
        num_rollouts=len(clips.rollouts),
        num_held_out=len(held_out.real) + len(held_out.rollouts),
        instantaneous=candidate.report["instantaneous"],
        long_term=candidate.report["long_term"],
        seconds=time.monotonic() - start.began_s,
        missing_real=start.missing_real,
        missing_rollouts=start.missing_rollouts,
        scored_real=start.scored_real,
        scored_rollouts=start.scored_rollouts,
        older_real=sum(clip.older for clip in clips.real),
        older_rollouts=sum(clip.older for clip in clips.rollouts),
        anchor_real=len(anchor.real) if anchor else 0,
        anchor_rollouts=len(anchor.rollouts) if anchor else 0,
    )


def check_candidate(candidate: Candidate) -> None:
    """Check a candidate before it may serve. Raises RefreshRejected if a weight is not finite.

    Losses and held-out logits have been checked during training. What it does on the run's anchor set is gate.py's.
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
