"""Names of the keys that Python touches itself; what they hold: jobs.py, refreshes.py, run_store.py."""

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
