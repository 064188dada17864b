"""The keys of the queue: the names that Python uses itself, and what each key holds and for how long.

All stand under `motion-reward:{profile}:`.

Jobs:
    queue              stream of {job}, with a consumer group that was created at 0. An entry lives until its job is
                       done, never longer, and is never trimmed
    job:<id>           hash: state, entry, attempts, token of the claim, context, cost, times; then the outcome.
                       Until result_ttl_s after the end; every unfinished job is in `due` and ends when it is due
    payload:<id>       the clip's bytes. admission.STAGE_S until admitted, then until the end, or a minute past `due`
    due                sorted set of unfinished jobs by the time they must end: their deadline, else job_ttl_s
    idempotency:<key>  hash: job, fingerprint. As long as its job
    finished           stream of {job, number, ...}, wakes waiters; the last 16384, result_ttl_s after the latest
    run:<run_id>       stream of {job, outcome} in the order they ended (protos/results.py); entries as old as
                       result_ttl_s
    group:<n>:<run>:<group>  the discriminator version that judges the group, n: characters of <run>; result_ttl_s
                       after the group's latest admission
    base               the version that workers have loaded, by the latest heartbeat
    dead               stream of {job, attempts, letter}, the last 1024; no lifetime, for people to read
    depth, counts      hashes of integers: unfinished jobs, cost, bytes; everything counted since `began_ms`, which
                       tells readers an emptied Redis from the one they knew
    workers, models    sorted set and hash of live workers; lease_s after a worker's last heartbeat

What a run keeps for its refreshes (run_store.py):
    clips:<origin>:<run>       hash of job to packed motion, within feature_max_clips and feature_max_bytes, the
                               oldest make room; feature_ttl_s after the run's latest clip of that origin
    clip-order:<origin>:<run>  list of those jobs, oldest first
    clip-bytes:<origin>:<run>  their bytes together
    versions:<run>             list of the run's versions, latest first, versions_kept at most
    version:<version>          hash: digest, number within its run
    discriminators:<version>   list of chunks: the file a worker scores with (the average)
    training:<version>         the same of the weights that are trained further. All four live for version_ttl_s
                               after the run's latest clip or refresh

Refreshes:
    refresh:<id>       hash: state, run, request, token of the claim, due_ms; then version and response, or code and
                       message. result_ttl_s after the end or the deadline
    refreshing:<run>   id of the run's only unfinished refresh; until its end or its deadline
    refreshes          sorted set of unfinished ids by the end of their lease; as long as the longest of them
    refresh-news       stream that wakes workers and waiters; a day after the latest entry
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.results import results_key


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The braces keep a profile's keys in one cluster slot."""

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
