"""Measures how much waiting for rewards slows a training run down, against the same run with rewards at hand.

    python -m benchmarks.overlap --server grpc://127.0.0.1:50051 --redis-url redis://127.0.0.1:6379 --clips FOLDER \
        --config tiny loop.num_buffers=3

The first run uses the server. The second run is the same, bit for bit, but gets the first run's rewards instantly from
memory. The result is the ratio of their times without the first buffer, which is the warm-up. The target is a ratio of
at most 1.05 where the server keeps up. Server and trainer must not share a processor. The output ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trainer.config import Config, load
from trainer.objective import GroupRewards
from trainer.rewards.journal import Journal
from trainer.rewards.source import ClipGroup, Collected, NoRewards
from trainer.run import open_run
from trainer.train import train


class RememberedRewards(NoRewards):
    """Returns the rewards that an earlier run stored, at once. Clips are still encoded, as in that run."""

    def __init__(self, journal: Path, version: str) -> None:
        with Journal(journal) as results:
            self._scored = {clip_id: result.scored for clip_id, result in results.items()}
        self._version = version

    def pin(self) -> str:
        return self._version

    def knows(self, key: str, num_clips: int) -> bool:
        return False

    def submit(self, group: ClipGroup) -> None:
        assert f"{group.key}/0" in self._scored, f"{group.key} is not a group of the first run: the runs differ"

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        groups = [[self._scored[f"{key}/{at}"] for at in range(num_clips)] for key in keys]
        rewards = tuple(GroupRewards(real=real, rollouts=tuple(rollouts)) for real, *rollouts in groups)
        return Collected(groups=rewards, latencies_s=(), errors={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the reward server's grpc://HOST:PORT")
    parser.add_argument("--redis-url", default="", help="the server's Redis; if empty, outcomes come over gRPC")
    parser.add_argument("--clips", required=True, help="folder or manifest of real clips")
    parser.add_argument("--config", default="tiny", help="preset or file")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    given = parser.parse_args()
    where = [f"rewards.server={given.server}", f"rewards.redis_url={given.redis_url!r}", f"data.train=[{given.clips}]"]
    same = [*where, "refresh.enabled=false", "logs.samples_every_buffers=0", "checkpoint.every_steps=0"]
    with tempfile.TemporaryDirectory() as folder:
        remote = load(given.config, [*given.overrides, *same, f"out={folder}/remote"])
        at_hand = load(given.config, [*given.overrides, *same, f"out={folder}/at-hand"])
        with open_run(remote) as run:
            version = train(run).version
        journal = remote.out / "rewards" / "rewards-0.jsonl"
        with open_run(at_hand, rewards=RememberedRewards(journal, version)) as run:
            train(run)
        seconds = {"remote_s": seconds_of(remote), "at_hand_s": seconds_of(at_hand)}
    print(json.dumps({**seconds, "ratio": seconds["remote_s"] / seconds["at_hand_s"], "policy": remote.policy.base}))


def seconds_of(config: Config) -> float:
    """Seconds from the end of the first buffer's filling to the last step."""
    times = [json.loads(line)["time_s"] for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    return float(times[-1] - times[0])


if __name__ == "__main__":
    main()
