"""Defines the keys of the queue in Redis, and describes what each key holds and how long it lives.

All keys begin with `motion-reward:{profile}:`. The class has only those that Python uses itself.

Jobs:
    queue              stream of {job}, with a consumer group that was created at 0. An entry lives exactly until its
                       job is done. The stream is not trimmed
    job:<id>           hash: state, entry, attempts, token of the claim, context, cost, times; then the outcome.
                       Lives until result_ttl_s after the end. Every unfinished job is in `due` and ends by then
    payload:<id>       the clip's bytes. Lives admission.STAGE_S before admission, then until the end of the job, or
                       until a minute after its time in `due`
    due                sorted set of unfinished jobs by the time they must end: their deadline, else job_ttl_s
    idempotency:<key>  hash: job, fingerprint. Lives as long as its job
    finished           stream of {job, number, ...} that wakes waiters: the last 16384 entries. Lives result_ttl_s
                       after the latest entry
    run:<run_id>       stream of {job, outcome} in the order the jobs ended (protos/results.py). Entries live
                       result_ttl_s
    group:<n>:<run>:<group>  the discriminator version that scores the group; n is the number of characters of <run>.
                       Lives result_ttl_s or job_ttl_s, whichever is longer, after the group's latest admission
    base               the version that workers have loaded, by the latest heartbeat
    dead               stream of {job, attempts, letter}: the last 1024 entries, without expiry, for people to read
    depth, counts      hashes of integers: unfinished jobs with their cost and bytes; all counters since `began_ms`.
                       A new `began_ms` tells readers that Redis was emptied
    workers, models    sorted set and hash of live workers. A worker counts as live for lease_s after a heartbeat

Clips and versions of a run, for its refreshes (run_store.py):
    clips:<origin>:<run>       hash from job to packed motion, at most feature_max_clips and feature_max_bytes: the
                               oldest clips are removed first. Lives feature_ttl_s after the run's latest clip of
                               that origin
    clip-order:<origin>:<run>  list of those jobs, oldest first
    clip-bytes:<origin>:<run>  sum of their bytes
    versions:<run>             list of the run's versions, latest first, at most versions_kept
    version:<version>          hash: digest, number within its run
    discriminators:<version>   list of chunks: the file a worker scores with (the averaged weights)
    training:<version>         the same for the weights that are trained further. All four live version_ttl_s after
                               the run's latest clip or refresh

Refreshes:
    refresh:<id>       hash: state, run, request, token of the claim, due_ms; then version and response, or code and
                       message. Lives result_ttl_s after the end or the deadline
    refreshing:<run>   id of the run's only unfinished refresh. Lives until its end or its deadline
    refreshes          sorted set of unfinished ids by the end of their lease. Lives as long as the longest of them
    refresh-news       stream that wakes workers and waiters. Lives a day after the latest entry
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.results import results_key


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of one profile. The braces in the prefix keep them in one slot of a Redis cluster."""

    profile: str

    @property
    def prefix(self) -> str:
        return f"motion-reward:{{{self.profile}}}"

    @property
    def queue(self) -> str:
        return f"{self.prefix}:queue"

    @property
    def finished(self) -> str:
        return f"{self.prefix}:finished"

    @property
    def dead(self) -> str:
        return f"{self.prefix}:dead"

    @property
    def workers(self) -> str:
        return f"{self.prefix}:workers"

    @property
    def depth(self) -> str:
        return f"{self.prefix}:depth"

    @property
    def counts(self) -> str:
        return f"{self.prefix}:counts"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}"

    def payload(self, job_id: str) -> str:
        return f"{self.prefix}:payload:{job_id}"

    def run(self, run_id: str) -> str:
        return results_key(self.profile, run_id)

    def clips(self, origin: str, run_id: str) -> str:
        return f"{self.prefix}:clips:{origin}:{run_id}"

    def clip_order(self, origin: str, run_id: str) -> str:
        return f"{self.prefix}:clip-order:{origin}:{run_id}"

    def versions(self, run_id: str) -> str:
        return f"{self.prefix}:versions:{run_id}"

    def version(self, version: str) -> str:
        return f"{self.prefix}:version:{version}"

    def discriminators(self, version: str) -> str:
        return f"{self.prefix}:discriminators:{version}"

    def training(self, version: str) -> str:
        return f"{self.prefix}:training:{version}"

    @property
    def refresh_news(self) -> str:
        return f"{self.prefix}:refresh-news"
