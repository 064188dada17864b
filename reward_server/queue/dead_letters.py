"""Lists, replays and drops dead letters: jobs that were given up because too many workers died while they held them.

The job itself has ended as failed, and that outcome is final. A replay submits its clip again, as a new job with the
same context, so it is judged by the same group's version and appears in the same run's outcomes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from protos.types import Context, Media, Submission
from reward_server.errors import UnknownJob
from reward_server.queue import scripts
from reward_server.queue.admission import Admission
from reward_server.queue.keys import Keys
from reward_server.queue.records import unpack_context
from reward_server.queue.redis_link import Entry, RedisLink

MAX_LETTERS = 1024  # as in lua/give_up.lua


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A job that was given up."""

    entry: str  # in the stream of dead letters
    job_id: str
    run_id: str
    attempts: int  # claims, the last one included, which gave it up
    reason: str
    ended_s: float  # since the epoch, on Redis's clock
    media: Media
    context: Context
    num_bytes: int  # of its clip; 0: the clip is not kept any more, and the job cannot be replayed


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The new jobs by the jobs that they repeat, and the jobs whose clips are not kept any more."""

    jobs: dict[str, str]
    gone: tuple[str, ...]


class DeadLetters:
    """The dead letters of a queue. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys, admission: Admission) -> None:
        self._link, self._keys, self._admission = link, keys, admission

    async def letters(self, run_id: str = "") -> list[DeadLetter]:
        """Those of a run, or all of them, the oldest first."""
        found = await self._link.page(self._keys.dead, after="", count=MAX_LETTERS)
        entries = [entry for entry in found if "context" in entry.fields]  # earlier releases kept no context
        payloads = [self._keys.dead_payload(entry.fields["job"].decode()) for entry in entries]
        sizes = await self._link.sizes(payloads)
        letters = [_letter(entry, size) for entry, size in zip(entries, sizes, strict=True)]
        return [letter for letter in letters if run_id in ("", letter.run_id)]

    async def chosen(self, job_ids: Sequence[str]) -> list[DeadLetter]:
        """Those of the named jobs, in this order. Raises UnknownJob if one has none."""
        known = {letter.job_id: letter for letter in await self.letters()}
        if missing := [job_id for job_id in job_ids if job_id not in known]:
            raise UnknownJob(
                f"no dead letter of job {', '.join(missing[:8])}: it did not die, was replayed or dropped, or its time "
                "is over; `motion-reward jobs list` names those that are kept"
            )
        return [known[job_id] for job_id in job_ids]

    async def replay(self, letters: Iterable[DeadLetter]) -> Replayed:
        """Submit the clips again, one by one, and drop their letters.

        Raises what Admission.admit raises. Then the letters that were not replayed yet are still there.
        """
        jobs, gone = {}, []
        for letter in letters:
            payload = await self._link.get(self._keys.dead_payload(letter.job_id))
            if payload is None:
                gone.append(letter.job_id)
                continue
            # Without its idempotency key, which belongs to the outcome that its submitter got. The id is always the
            # same, so that a replay which is cut off before its letter is dropped can be repeated.
            context = replace(letter.context, idempotency_key="")
            submission = Submission(payload=payload, media=letter.media, context=context)
            jobs[letter.job_id] = await self._admission.admit_as(_replay_id(letter.job_id), submission)
            await self.drop([letter])
        return Replayed(jobs=jobs, gone=tuple(gone))

    async def drop(self, letters: Iterable[DeadLetter]) -> int:
        """Remove letters and their clips. Returns how many there still were."""
        pairs = [part for letter in letters for part in (letter.entry, letter.job_id)]
        return int(await self._link.run(scripts.DROP_LETTERS, *pairs)) if pairs else 0


def _replay_id(job_id: str) -> str:
    """The id of a job's replay. It begins with the id of the same API key, if the job's does."""
    owner, dash, _ = job_id.rpartition("-")
    return owner + dash + hashlib.sha256(f"replay of {job_id}".encode()).hexdigest()[:32]


def _letter(entry: Entry, num_bytes: int) -> DeadLetter:
    fields = {name: value.decode() for name, value in entry.fields.items() if name != "context"}
    return DeadLetter(
        entry=entry.id,
        job_id=fields["job"],
        run_id=fields["run"],
        attempts=int(fields["attempts"]),
        reason=fields["letter"],
        ended_s=int(entry.id.partition("-")[0]) / 1000,
        media=Media(fields["media"]),
        context=unpack_context(entry.fields["context"]),
        num_bytes=num_bytes,
    )
