"""Uploads clips to the reward server in a separate thread, and keeps each until its outcome is in.

A clip's idempotency key is made from its id, so sending it twice creates one job. Call the methods from one thread
only, the trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from protos.client import RequestRefused
from protos.codec import clip_to_tensor
from protos.error_codes import ErrorCode
from protos.types import Clip, Context, Media, Origin, Outcome, Submission
from trainer.rewards.patient_client import PatientClient
from trainer.rewards.source import ClipGroup


@dataclass
class Waiting:
    """A clip whose outcome is not in yet."""

    submission: Submission
    key: str  # idempotency key of the first attempt
    sent_s: float  # on time.monotonic()
    attempt: int = 0
    job_id: str = ""  # empty until the upload has finished
    upload: Future[str] | None = field(default=None, repr=False)


class Uploads:
    """The clips that wait for an outcome, by id."""

    def __init__(self, server: PatientClient, run_id: str) -> None:
        self._server, self._run_id = server, run_id
        self._waiting: dict[str, Waiting] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, clip_id: str) -> Waiting:
        return self._waiting[clip_id]

    @property
    def job_ids(self) -> list[str]:
        """Job ids of the clips that are uploaded."""
        return [waiting.job_id for waiting in self._waiting.values() if waiting.job_id]

    def send(self, clip_id: str, group: ClipGroup, at: int, *, forgotten: int = 0) -> None:
        """Send clip number `at` of a group; the real clip is 0.

        `forgotten` is how often a missing reward of the clip was forgotten. Each time makes it another job.
        """
        key = f"{self._run_id}/{clip_id}" + (f"/again-{forgotten}" if forgotten else "")
        origin = Origin.ROLLOUT if at else Origin.REAL
        context = Context(
            group_id=group.key,
            run_id=self._run_id,
            origin=origin if group.trains else None,  # without one, the server does not keep the clip's motion
            idempotency_key=key,
            policy_version=group.policy_version,
            discriminator_version=group.discriminator_version,
        )
        clip: Clip = group.clips[at]
        submission = Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=context)
        self._waiting[clip_id] = Waiting(submission=submission, key=key, sent_s=time.monotonic())
        self.repeat(clip_id)

    def repeat(self, clip_id: str) -> None:
        """Send the same job again, in case the server lost it. A request holds one clip, to stay within its limit."""
        waiting = self._waiting[clip_id]
        waiting.job_id = ""
        waiting.upload = self._thread.submit(self._upload, waiting.submission)

    def repeat_all(self) -> None:
        """Send all uploaded clips again. Jobs that the server still knows are not scored twice."""
        for clip_id, waiting in self._waiting.items():
            if waiting.job_id:
                self.repeat(clip_id)

    def retry(self, clip_id: str) -> None:
        """Send a clip as another job: for a known idempotency key the server would repeat the outcome."""
        waiting = self._waiting[clip_id]
        waiting.attempt += 1
        context = replace(waiting.submission.context, idempotency_key=f"{waiting.key}/{waiting.attempt}")
        waiting.submission = replace(waiting.submission, context=context)
        self.repeat(clip_id)

    def land(self) -> None:
        """Note the job ids of finished uploads. Raises RequestRefused if the server refuses an upload for good."""
        for clip_id, waiting in list(self._waiting.items()):
            if waiting.upload is None or not waiting.upload.done():
                continue
            upload, waiting.upload = waiting.upload, None
            try:
                waiting.job_id = upload.result()
            except RequestRefused as error:
                if error.code != ErrorCode.IDEMPOTENCY_CONFLICT:
                    raise
                self.retry(clip_id)  # decoding again after a restart gave other bits, so it is another job

    def clip_of(self, outcome: Outcome) -> str | None:
        """The waiting clip of an outcome, or None. An outcome may arrive before its upload returns, hence the key."""
        for clip_id, waiting in self._waiting.items():
            key = waiting.submission.context.idempotency_key
            if outcome.context.idempotency_key == key or (outcome.job_id and outcome.job_id == waiting.job_id):
                return clip_id
        return None

    def settle(self, clip_ids: Iterable[str]) -> None:
        """Remove clips whose outcomes are stored."""
        for clip_id in clip_ids:
            del self._waiting[clip_id]

    def close(self) -> None:
        """Stop sending."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _upload(self, submission: Submission) -> str:
        (job_id,) = self._server.ask(lambda client: client.submit([submission]))
        return job_id
