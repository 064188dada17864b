"""Defines the keys of the queue in Redis, and describes what each key holds and how long it lives.

All keys begin with `motion-reward:{profile}:`. The class has only those that Python uses itself. If the doors require
API keys, <run> is a full name (protos.results.owned_run), and the id of a job begins with the id of its API key.

Jobs:
    queue              stream of {job}, with a consumer group that was created at 0: the jobs that workers hold, and
                       the next few. An entry lives exactly until its job is done. The stream is not trimmed
    waiting:<owner>:<n>:<run>:<line>  list of the jobs of a run that wait for their turn to enter a line: the queue, if
                       <line> is empty, or the lane of a version (lua/shared/turns.lua). Lives while it has jobs
    turns:<line>       list of the API keys that have waiting jobs, the next one first
    turns-of:<owner>:<line>  list of a key's runs that have waiting jobs, the next one first
    lane:<version>     a stream as `queue`, for jobs of a version that workers bring, after a worker without it has
                       read them from the queue. Lives a day after the latest heartbeat of a worker with the version,
                       and until its last job is due
    lanes              set of the versions that have a lane
    job:<id>           hash: state, entry, attempts, token of the claim, context, cost, times, version, and what holds
                       the version (`bound:`); then the outcome. Lives until result_ttl_s after the end. Every
                       unfinished job is in `due` and ends by then
    payload:<id>       the clip's bytes. Lives until the end of the job, or until a minute after its time in `due`. A
                       large one is stored before its job is admitted, and lives admission.STAGE_S until then
    trace:<id>         the `traceparent` of the call that submitted the job, if it was traced. Lives until the end of
                       the job, at most job_ttl_s
    due                sorted set of unfinished jobs by the time they must end: their deadline, else job_ttl_s
    ages               sorted set of unfinished jobs by the time of their admission, for the metrics
    idempotency:<owner>:<n>:<run>:<key>  hash: job, fingerprint. <owner> is the id of an API key or empty, and n the
                       number of characters of <run>. Lives as long as its job
    finished           stream of {job, number, ...} that wakes waiters: the last 16384 entries. Lives result_ttl_s
                       after the latest entry
    run:<run_id>       stream of {job, outcome} in the order the jobs ended (protos/results.py), without explanations.
                       Entries live at least result_ttl_s, and at most twice as long
    group:<n>:<run>:<group>  the discriminator version that scores the group; n is the number of bytes of <run>,
                       which may be empty. Lives job_ttl_s and result_ttl_s after the group's latest admission
    base               the version that workers have loaded, by the latest heartbeat
    dead               stream of dead letters {job, run, attempts, letter, media, context}: the last 1024. Entries live
                       dead_letter_ttl_s
    dead-payload:<id>  the clip of a dead letter. Lives dead_letter_ttl_s, and until the clips of later letters need the
                       room (dead_letter_max_bytes)
    depth, counts      hashes of integers: unfinished jobs with their cost and bytes; all counters since `began_ms`.
                       A new `began_ms` tells readers that Redis was emptied
    owned:<owner>      hash: the unfinished jobs of an API key, their cost and bytes. Lives until the last of them ends
    staged             sorted set of requests whose payloads are on their way to Redis, with their bytes, by the time at
                       which they are forgotten. Lives admission.STAGE_S after the latest
    workers            sorted set of live workers. A worker counts as live for lease_s after a heartbeat
    models, loaded     hashes from live workers to their models, and to the names of the versions that they have loaded

Clips and versions of a run, for its refreshes (run_motion.py, run_store.py):
    kept-clips:<origin>:<run>  hash from job to the first part of its packed motion, at most feature_max_clips and, with
                               kept-more, feature_max_bytes. reservoir.lua says which are kept. All keys of the
                               reservoir live feature_ttl_s after the run's latest clip of that origin, or its latest
                               sign of life
    kept-more:<origin>:<run>   the same for the other parts, by the part's digit and the job
    kept-sizes:<origin>:<run>  hash from the part's digit and the job to the bytes of each part that is kept as a file:
                               the two hashes above then hold only a reference to it (features.py)
    feature-folder     name of the folder of these files, a random id. Lives for ever, as what it names
    kept-newer:<origin>:<run>  sorted set of the parts of clips since the latest refresh, by what they are worth
    kept-older:<origin>:<run>  the same for earlier clips
    kept-bytes:<origin>:<run>  hash: the bytes of both
    kept-scored:<origin>:<run>  sorted set of the clips scored since the latest refresh, by the time: the last 131072
    anchor:<origin>:<run>      hash from a clip's name to the first part of its motion, or a reference to it: the run's
                               anchor set, the clips that its first large enough refresh held out. Lives as long as
                               the run's versions
    missing:<origin>:<run>     sorted set of jobs that were scored, but whose motion found no room or was lost, by the
                               time: the last 1024. Lives feature_ttl_s after the latest
    versions:<run>             list of the run's versions, at most versions_kept; the first scores new clips: the
                               latest, or another one that the run was rolled back to, also the base version
    version:<version>          hash: digest, number within its run, run, base version, preprocessing digest of the
                               workers that can load it (`fits`), time of publication, its training (`record`), digest
                               of its file that is trained further, and
                               `retired` once it has left the list. Nothing else of it ever changes
    discriminators:<version>   list of chunks: the file a worker scores with (the averaged weights)
    training:<version>         the same for the weights that are trained further. All four live version_ttl_s after
                               the run's latest clip or refresh
    restoring:<token>:<file>   the same for a version that is being restored. Lives STAGE_S after the latest chunk
    bound:<version>            sorted set of what is bound to the version, by the time until which it keeps it at the
                               longest: unfinished jobs, and `group:` keys until result_ttl_s after the latest end of
                               a job of theirs. It keeps discriminators:, version: and itself alive, also after the
                               version has left the list; the last one to go takes them with it

Refreshes:
    refresh:<id>       hash: state, run, request, token of the claim, due_ms; then version and response, or code and
                       message. Lives result_ttl_s after the end or the deadline
    refreshing:<run>   id of the run's only unfinished refresh. Lives until its end or its deadline
    refreshes          sorted set of unfinished ids by the end of their lease. Lives as long as the longest of them
    refresh-news       stream that wakes workers and waiters. Lives a day after the latest entry
    last-refresh       the version that was published last, of any run, for the metrics. Lives version_ttl_s
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

    def lane(self, version: str) -> str:
        return f"{self.prefix}:lane:{version}"

    @property
    def finished(self) -> str:
        return f"{self.prefix}:finished"

    @property
    def dead(self) -> str:
        return f"{self.prefix}:dead"

    def dead_payload(self, job_id: str) -> str:
        return f"{self.prefix}:dead-payload:{job_id}"

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

    def trace(self, job_id: str) -> str:
        return f"{self.prefix}:trace:{job_id}"

    def run(self, run_id: str) -> str:
        return results_key(self.profile, run_id)

    def clips(self, origin: str, run_id: str) -> str:
        return self.kept("clips", origin, run_id)

    def kept(self, kind: str, origin: str, run_id: str) -> str:
        """A key of a run's reservoir."""
        return f"{self.prefix}:kept-{kind}:{origin}:{run_id}"

    def part(self, member: str, origin: str, run_id: str) -> tuple[str, str]:
        """The hash and the field of a part of a kept clip, as in lua/shared/reservoir.lua."""
        if member[0] == "0":
            return self.clips(origin, run_id), member[17:]
        return self.kept("more", origin, run_id), member[0] + member[17:]

    @property
    def feature_folder(self) -> str:
        return f"{self.prefix}:feature-folder"

    def anchor(self, origin: str, run_id: str) -> str:
        return f"{self.prefix}:anchor:{origin}:{run_id}"

    def missing(self, origin: str, run_id: str) -> str:
        return f"{self.prefix}:missing:{origin}:{run_id}"

    def versions(self, run_id: str) -> str:
        return f"{self.prefix}:versions:{run_id}"

    def version(self, version: str) -> str:
        return f"{self.prefix}:version:{version}"

    def discriminators(self, version: str) -> str:
        return f"{self.prefix}:discriminators:{version}"

    def restoring(self, token: str, file: str) -> str:
        return f"{self.prefix}:restoring:{token}:{file}"

    def bound(self, version: str) -> str:
        return f"{self.prefix}:bound:{version}"

    def training(self, version: str) -> str:
        return f"{self.prefix}:training:{version}"

    @property
    def refresh_news(self) -> str:
        return f"{self.prefix}:refresh-news"
