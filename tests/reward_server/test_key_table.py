"""The table of keys and lifetimes in docs/operations.md agrees with a Redis that has served a bit of everything."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from redis.asyncio import Redis

from protos.types import Origin, OutcomeKind
from reward_server.queue import keys
from reward_server.queue.feature_folder import make_folder
from reward_server.queue.run_store import Version
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reward_server.test_bindings import KEYS
from tests.reward_server.test_jobs import ok, submission
from tests.reward_server.test_lanes import NEW, OLD, announce
from tests.reward_server.test_refresh import QUICK, RESPONSE, claimed
from tests.reward_server.test_worker import outcomes_of
from tests.run_clips import fill

TABLE = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"^\| `([a-z-]+(?::<[a-z]+>)*)` \| [^|]+ \| (never|always|after the end) \|", re.MULTILINE)
# These never expire, and stay.
AT_REST = {"queue", "lanes", "base", "depth", "counts", "workers", "models", "loaded", "feature-folder"}

# This test makes no such keys: test_reservoir, test_gate, test_restore and test_tracing do.
ELSEWHERE = {
    "kept-older:<origin>:<run>",
    "anchor:<origin>:<run>",
    "restoring:<token>:<file>",
    "trace:<id>",
    "staged",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    expires: str

    def fits(self, key: str) -> bool:
        return re.fullmatch(re.sub("<[a-z]+>", ".*", self.name), key, re.DOTALL) is not None


ROWS = [Row(name=name, expires=expires) for name, expires in ROW.findall(TABLE.read_text())]


def wrong(found: dict[str, int], *, at_end: bool) -> list[str]:
    """What is wrong with the keys and their seconds to live (-1: no end)."""
    told = []
    for key, left_s in found.items():
        rows = [row for row in ROWS if row.fits(key)]
        if len(rows) != 1:
            told.append(f"{key} is in {len(rows)} rows")
        elif rows[0].expires == "never":
            told += [f"{key} expires"] * (left_s != -1) + [f"{key} stays"] * (at_end and key not in AT_REST)
        elif left_s == -1 and (at_end or rows[0].expires == "always"):
            told.append(f"{key} never expires")
    return told


def test_a_key_without_a_row_or_against_its_row_is_told() -> None:
    assert wrong({"job:1": 5, "run:r": 5, "queue": -1}, at_end=True) == [] == wrong({"job:1": -1}, at_end=False)
    assert wrong({"surprise:1": 5}, at_end=False) == ["surprise:1 is in 0 rows"]
    assert wrong({"run:r": -1}, at_end=False) == ["run:r never expires"]
    assert wrong({"job:1": -1, "queue": 7, "due": -1}, at_end=True) == [
        "job:1 never expires",
        "queue expires",
        "due stays",
    ]


def test_the_table_and_the_list_of_keys_name_the_same_keys() -> None:
    listed = re.findall(r"^    ([a-z][a-z-]+(?::<[a-z_]+>)*(?:, [a-z]+)*)  +\S", keys.__doc__ or "", re.MULTILINE)
    names = {name.replace("run_id", "run") for line in listed for name in line.split(", ")}
    assert names == {row.name for row in ROWS}


async def test_every_key_in_redis_is_in_the_table_and_lives_as_it_says(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis, tmp_path: Path
) -> None:
    settings = make_settings(lease_s=1000, max_attempts=1, refresh_min_clips=2, feature_dir=tmp_path)
    make_folder(settings)
    queue = await open_queue(settings)
    await announce(queue, OLD, NEW)
    seen = set[str]()

    async def look(*, at_end: bool = False) -> None:
        names = [key.decode() for key in await redis.keys("*")]
        found = {name.removeprefix(f"{KEYS.prefix}:"): await redis.ttl(name) for name in names}
        seen.update(row.name for row in ROWS if any(row.fits(key) for key in found))
        assert wrong(found, at_end=at_end) == []

    job_ids = []
    for number in range(20):
        given = {"run_id": "run-1", "group_id": f"g{number}", "idempotency_key": f"k{number}", "origin": Origin.REAL}
        job_ids += await queue.door.admit([submission(**given)], owner="aaaa")
    job_ids += await queue.door.admit([submission(discriminator_version="pixels-1", idempotency_key="k")])
    await look()
    await dead_letter(queue, redis)
    await refreshed(queue)
    await look()
    job_ids += await queue.door.admit([submission(run_id="run-1", group_id="later")] * 6)
    for model in (NEW, OLD, NEW, OLD):
        while jobs := await queue.worker.claim("w", count=8, wait_ms=0, model=model, abandoned=False):
            await look()
            for job in jobs:
                await queue.worker.finish(job, ok(job))
    assert {outcome.kind for outcome in await outcomes_of(queue.door, job_ids)} <= {OutcomeKind.OK, OutcomeKind.FAILED}
    await look(at_end=True)
    assert {row.name for row in ROWS} - seen == ELSEWHERE


async def dead_letter(queue: Queue, redis: Redis) -> None:
    """A worker takes a job and dies, and another finds that its attempts are used up."""
    [job] = await queue.worker.claim("dying", count=1, wait_ms=0, model=NEW, abandoned=False)
    await redis.xclaim(KEYS.queue, "workers", "dying", 0, [job.entry], idle=10**7)
    held = await queue.worker.claim("next", count=1, wait_ms=0, model=NEW)  # ends it, and takes another
    await queue.worker.hand_back("next", held)
    assert await redis.xlen(KEYS.dead) == 1


async def refreshed(queue: Queue) -> None:
    """A refresh that is published, one that is running, and a clip for which there was no room."""
    await fill(queue.worker.store, "run-1", num=2)
    await queue.worker.store.motion.miss_clip("run-1", Origin.REAL, "missed")
    refresh = await claimed(queue, QUICK)
    await queue.worker.store.stage("v", b"discriminators", b"training")
    version = Version(name="v", digest="0", number=1, base="pixels-2", preprocessing_digest="none")
    assert await queue.worker.refreshes.publish(refresh, version, replace(RESPONSE, discriminator_version="v"))
    await claimed(queue, QUICK)
