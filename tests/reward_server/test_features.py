"""Tests motion features that are files of a shared folder: what is written, read, deleted, and told if it is lost."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from protos.client import AsyncRewardClient, RequestRefused
from protos.types import Origin
from reward_server.errors import NotReady, Overloaded, RefreshFailed, TooFewClips
from reward_server.pipeline import Pipeline
from reward_server.queue import feature_sweep, features, scripts, sweep
from reward_server.queue.feature_folder import FeatureFolder, make_folder
from reward_server.queue.feature_sweep import LEAST_S, FeatureFiles
from reward_server.queue.features import REFERENCE, InFolder, Value
from reward_server.queue.redis_link import Argument, RedisLink
from reward_server.serving.private_redis import PrivateRedis
from reward_server.serving.serve import run_server, run_workers
from reward_server.settings import Settings
from reward_server.worker import kept_clips
from reward_server.worker.worker import run_worker
from tests.conftest import MakeSettings, OpenQueue
from tests.reward_server.test_kept_clips import Packing, clips, warnings
from tests.reward_server.test_refresh import KEYS, QUICK, served
from tests.reward_server.test_reservoir import CLIPS, NUM_GROUPS, keep, publish
from tests.reward_server.test_worker import outcomes_of, working
from tests.run_clips import fill

Filed = Callable[..., Settings]


@pytest.fixture
def filed(make_settings: MakeSettings, tmp_path: Path) -> Filed:
    """Makes settings that keep motion in files, in a folder that a worker has used."""
    make_folder(make_settings(feature_dir=tmp_path / "features"))
    return lambda **fields: make_settings(**{"feature_dir": tmp_path / "features"} | fields)


@pytest.fixture
async def folder(tmp_path: Path, filed: Filed, redis: Redis) -> Path:
    """Where the files of the embedded profile and of this Redis are."""
    await redis.set(KEYS.feature_folder, "f" * 32)
    path = tmp_path / "features" / "embedded" / ("f" * 32)
    path.mkdir()
    return path


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".clock")


def names(folder: Path) -> set[str]:
    return {path.name for path in files_of(folder)}


def numbers_and_sizes(paths: Iterable[Path]) -> dict[int, int]:
    return {path.stat().st_ino: path.stat().st_size for path in paths}


def delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def referred(values: Sequence[bytes]) -> set[str]:
    """The names of the files that these values refer to. Every one of them refers to a file."""
    return {found[1].decode() for value in values if (found := REFERENCE.fullmatch(value)) or pytest.fail(repr(value))}


async def kept_values(redis: Redis, run_id: str, origin: str = "rollout") -> list[bytes]:
    return [value for kind in ("clips", "more") for value in await redis.hvals(KEYS.kept(kind, origin, run_id))]


def name_of(value: bytes) -> str:
    [name] = referred([value])
    return name


# --- what is kept, and what makes room --------------------------------------------------------------


async def test_files_hold_the_same_sample_and_redis_only_refers_to_it(
    open_queue: OpenQueue, make_settings: MakeSettings, filed: Filed, folder: Path, redis: Redis
) -> None:
    """What the reservoir removes is deleted, so the folder keeps to feature_max_bytes, which bounded Redis."""
    for room in (8 * 5, 8 * NUM_GROUPS * 2, 8 * len(CLIPS) + 4 * 9 + 2, 14 * len(CLIPS)):
        found, run_id = [], f"run-{room}"
        for settings in (make_settings(feature_max_bytes=room), filed(feature_max_bytes=room)):
            await redis.delete(*await redis.keys("*:kept-*"), "none")
            store = (await open_queue(settings)).worker.store
            await keep(store, CLIPS, run_id=run_id)
            await keep(store, CLIPS[:7], run_id=run_id)  # redelivered
            found.append(await store.motion.clips(run_id, Origin.ROLLOUT))
        assert found[0] == found[1] and found[0]
        assert referred(await kept_values(redis, run_id)) == names(folder)
        sizes = await redis.hvals(KEYS.kept("sizes", "rollout", run_id))
        held = await redis.hgetall(KEYS.kept("bytes", "rollout", run_id))
        assert (
            sum(map(int, sizes)) == int(held[b"newer"]) == sum(len(p) for clip in found[1] for p in clip.parts) <= room
        )
        delete(files_of(folder))


async def test_clips_of_earlier_buffers_give_room_by_the_bytes_of_their_files(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis: Redis
) -> None:
    queue = await open_queue(filed(feature_max_bytes=8 * 20))
    store = queue.worker.store
    for seed in range(2):
        await store.motion.keep_clip("run-1", Origin.REAL, f"real-{seed}", (b"motion",))
    await keep(store, CLIPS, run_id="run-1")
    await publish(queue, await store.now_ms())
    held = await redis.hgetall(KEYS.kept("bytes", "rollout", "run-1"))
    assert (int(held[b"newer"]), int(held[b"older"])) == (0, 160)
    await keep(store, CLIPS, run_id="run-1", prefix="later-")
    assert [clip.older for clip in await store.motion.clips("run-1", Origin.ROLLOUT)] == [False] * 15 + [True] * 5
    assert len(names(folder)) == 20 + 2


async def test_the_anchor_set_keeps_its_files_and_the_rest_of_its_clips_goes(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis: Redis
) -> None:
    store = (await open_queue(filed())).worker.store
    await keep(store, CLIPS[:6])
    before = await store.motion.clips("r", Origin.ROLLOUT)
    await store.motion.freeze_anchor("r", [clip.name for clip in before[:2]])
    assert sorted(await store.motion.anchor("r", Origin.ROLLOUT)) == sorted(clip.parts[0] for clip in before[:2])
    anchored = referred(await redis.hvals(KEYS.anchor("rollout", "r")))
    assert names(folder) == anchored | referred(await kept_values(redis, "r")) and len(names(folder)) == 2 + 4 * 3
    await store.motion.freeze_anchor("r", [clip.name for clip in before[2:]])  # a run that has a set keeps it
    assert len(names(folder)) == 2 + 4 * 3


async def test_every_key_of_a_run_expires_also_if_only_later_clips_are_files(
    open_queue: OpenQueue, make_settings: MakeSettings, filed: Filed, redis: Redis
) -> None:
    for settings, clip in ((make_settings(), CLIPS[0]), (filed(), CLIPS[1])):
        await keep((await open_queue(settings)).worker.store, [clip])
    held = {key: await redis.ttl(key) for key in await redis.keys("*kept*")}
    assert KEYS.kept("sizes", "rollout", "r").encode() in held and all(0 < ttl <= 86400 for ttl in held.values())


async def test_a_full_redis_leaves_no_file(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (await open_queue(filed())).worker.store
    put = InFolder.put

    async def and_fill_redis(self: InFolder, *args: object) -> list[Value]:
        await redis.config_set("maxmemory", 1)
        return await put(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(InFolder, "put", and_fill_redis)
    try:
        with pytest.raises(Overloaded):
            await keep(store, CLIPS[:1])
    finally:
        await redis.config_set("maxmemory", 0)
    assert names(folder) == set()


async def test_redis_refers_to_a_file_once_it_is_on_the_disk(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power Redis referred to files that were empty or not there."""
    store = (await open_queue(filed())).worker.store
    synced: dict[int, int] = {}  # three files and their folder
    sync, run = os.fsync, RedisLink.run

    def and_note(opened: int) -> None:
        sync(opened)
        synced[os.fstat(opened).st_ino] = os.fstat(opened).st_size

    async def after_the_disk(self: RedisLink, script: scripts.Script, *args: Argument) -> object:
        if script is scripts.KEEP_CLIP:
            assert numbers_and_sizes(files_of(folder)).items() <= synced.items() and len(synced) == 3 + 1
        return await run(self, script, *args)

    monkeypatch.setattr(os, "fsync", and_note)
    monkeypatch.setattr(RedisLink, "run", after_the_disk)
    await keep(store, CLIPS[:1])
    assert referred(await kept_values(redis, "r")) == names(folder)


async def test_nobody_else_may_read_the_files(
    open_queue: OpenQueue, filed: Filed, redis: Redis, tmp_path: Path
) -> None:
    await keep((await open_queue(filed())).worker.store, CLIPS[:1])
    made = [path for path in (tmp_path / "features").rglob("*") if path.name != ".clock"]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o700, 0o600, 0o600, 0o600]
    assert (tmp_path / "features").stat().st_mode & 0o777 == 0o700


# --- files that are gone ------------------------------------------------------------------------------


async def test_a_refresh_names_the_clips_whose_files_are_gone_or_damaged(
    open_queue: OpenQueue, filed: Filed, folder: Path, small_pipeline: Pipeline, redis: Redis
) -> None:
    store = (await open_queue(filed())).worker.store
    await fill(store, "run-1", num=5)
    gone, damaged = [await redis.hget(KEYS.clips("rollout", "run-1"), f"rollout-{seed}") for seed in (1, 3)]
    more = await redis.hget(KEYS.kept("more", "real", "run-1"), "1real-2")
    assert gone and damaged and more
    for value in (gone, more):
        (folder / name_of(value)).unlink()
    path = folder / name_of(damaged)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    async with served(filed(), small_pipeline) as doors:
        first = await doors.service.refresh(replace(QUICK, steps=1))
        second = await doors.service.refresh(replace(QUICK, steps=1))
        text = await doors.service.metrics_text()
    assert (first.num_real, first.num_rollouts, first.scored_real, first.scored_rollouts) == (4, 3, 5, 5)
    assert (first.missing_real, sorted(first.missing_rollouts)) == (("real-2",), ["rollout-1", "rollout-3"])
    assert (second.missing_real, second.missing_rollouts) == ((), ())  # each is named once
    assert "motion_reward_clips_not_kept_total 3.0" in text
    kept = [value for origin in Origin for value in await kept_values(redis, "run-1", origin.value)]
    assert names(folder) == referred(kept)  # the other files of the lost clips went too


async def test_too_few_clips_after_a_loss_are_refused_with_the_reason(
    open_queue: OpenQueue, filed: Filed, folder: Path, small_pipeline: Pipeline
) -> None:
    """The trainer has the buffer measured again after these errors."""
    await fill((await open_queue(filed())).worker.store, "run-1", num=4)
    delete(files_of(folder))
    told = r"unknown_run: .* are kept: for 8 that were scored .* their files are gone; submit"
    async with served(filed(), small_pipeline) as doors, AsyncRewardClient(doors.grpc_url) as client:
        for _ in range(2):  # found lost by a worker, then known at admission
            with pytest.raises(RequestRefused, match=told):
                await client.refresh(QUICK)


async def test_other_clips_take_the_places_of_lost_ones(
    open_queue: OpenQueue, filed: Filed, folder: Path, small_pipeline: Pipeline, redis: Redis
) -> None:
    """With max_real=2 two lost clips of six left none, and the refresh was refused for too few clips."""
    store = (await open_queue(filed())).worker.store
    await fill(store, "run-1", num=6)
    for clip in await store.motion.clips("run-1", Origin.REAL, 2):
        value = await redis.hget(KEYS.clips("real", "run-1"), clip.name[16:])
        assert value
        (folder / name_of(value)).unlink()
    async with served(filed(), small_pipeline) as doors:
        done = await doors.service.refresh(replace(QUICK, steps=1, max_real=2))
    assert (done.num_real, len(done.missing_real)) == (2, 2)


async def test_a_small_limit_is_not_told_as_a_loss(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=3)
    async with served(make_settings(), small_pipeline) as doors:
        with pytest.raises(TooFewClips, match="1 real clips of 1 and 3 rollouts of 3 share their length"):
            await doors.service.refresh(replace(QUICK, steps=1, max_real=1))


async def test_a_part_that_was_removed_while_it_was_read_is_not_lost(
    open_queue: OpenQueue, filed: Filed, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (await open_queue(filed())).worker.store
    narrow = (await open_queue(filed(feature_max_bytes=8 * 4))).worker.store
    await keep(store, [(group, 0) for group in range(4)])
    get = InFolder.get

    async def after_a_removal(self: InFolder, values: Sequence[bytes]) -> list[bytes | None]:
        monkeypatch.undo()
        await keep(narrow, [(0, 1)])
        return await get(self, values)

    monkeypatch.setattr(InFolder, "get", after_a_removal)
    assert sum(len(clip.parts) for clip in await store.motion.clips("r", Origin.ROLLOUT)) == 4
    assert await store.motion.missing("r", Origin.ROLLOUT) == () and await redis.hlen(KEYS.clips("rollout", "r")) == 4


@pytest.mark.parametrize("origin", Origin)
async def test_an_anchor_set_of_which_too_few_files_are_left_is_dropped_with_a_warning(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis: Redis, origin: Origin
) -> None:
    """What was left of it went on as the set, or none was, and nobody was told that the gate was off."""
    store = (await open_queue(filed(gate_min_clips=2))).worker.store
    await fill(store, "run-1", num=4)
    held = {each: await store.motion.clips("run-1", each) for each in Origin}
    await store.motion.freeze_anchor("run-1", [clip.name for clips in held.values() for clip in clips])

    async def lose(*numbers: int) -> None:
        for number in numbers:
            value = await redis.hget(KEYS.anchor(origin.value, "run-1"), held[origin][number].name)
            assert value
            (folder / name_of(value)).unlink()

    await lose(0)
    with structlog.testing.capture_logs() as logs:
        assert len(await store.motion.anchor("run-1", origin)) == 3
    assert "anchor set" not in str(logs)
    await lose(1, 2)
    with structlog.testing.capture_logs() as logs:
        assert await store.motion.anchor("run-1", origin) == []
    assert [log["run_id"] for log in logs if "no anchor set any more" in log["event"]] == ["run-1"]
    assert [await store.motion.anchor("run-1", each) for each in Origin] == [[], []]
    assert len(await store.motion.missing("run-1", origin)) == 3
    await fill(store, "run-1", num=5)
    await store.motion.freeze_anchor(
        "run-1", [clip.name for each in Origin for clip in await store.motion.clips("run-1", each)]
    )
    assert [len(await store.motion.anchor("run-1", each)) for each in Origin] == [5, 5]


# --- folders that are refused, and workers with different ones ------------------------------------------


@pytest.mark.parametrize("start", [lambda s: run_server(s, 1), lambda s: run_workers(s, 1, end_with_parent=False)])
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(
    make_settings: MakeSettings, tmp_path: Path, start: Callable[[Settings], None]
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "features"
    with pytest.raises(NotReady, match=rf"{place}/embedded \(Not a directory\).*MOTION_REWARD_FEATURE_DIR"):
        start(make_settings(feature_dir=place))


async def test_a_clip_whose_file_cannot_be_written_gets_its_reward_and_is_told(
    open_queue: OpenQueue, filed: Filed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_clips, "FULL_PAUSES_S", (0.0, 0.01))
    queue = await open_queue(filed())

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features, "_private", no_room)
    job_ids = await queue.door.admit(clips(2))
    async with working(filed(), Packing()):
        outcomes = await outcomes_of(queue.door, job_ids)
    assert [warnings(outcome) for outcome in outcomes] == [["not_kept"]] * 2 and outcomes[0].reward
    told = outcomes[0].reward.provenance.warnings[0].message
    assert f"to {folder.parent}: No space left on device; free its disk" in told and names(folder) == set()
    assert sorted(await queue.door.store.motion.missing("run-1", Origin.REAL)) == sorted(job_ids)


async def test_a_worker_with_a_folder_reads_what_others_kept_in_redis_and_the_others_say_what_they_need(
    open_queue: OpenQueue, make_settings: MakeSettings, filed: Filed, folder: Path
) -> None:
    with_folder, without = [(await open_queue(settings)).worker.store for settings in (filed(), make_settings())]
    await keep(without, CLIPS[:2])
    await keep(with_folder, CLIPS[2:4])
    assert [len(clip.parts) for clip in await with_folder.motion.clips("r", Origin.ROLLOUT)] == [3] * 4
    with pytest.raises(RefreshFailed, match=r"MOTION_REWARD_FEATURE_DIR to the same folder for all workers"):
        await without.motion.clips("r", Origin.ROLLOUT)
    assert len(names(folder)) == 6 and await without.motion.missing("r", Origin.ROLLOUT) == ()


async def test_files_that_cannot_be_read_fail_the_refresh_and_stay(
    open_queue: OpenQueue, filed: Filed, folder: Path
) -> None:
    """They may be there again later, so their clips are not lost."""
    store = (await open_queue(filed())).worker.store
    await keep(store, CLIPS[:1])
    for path in files_of(folder):
        path.unlink()
        path.mkdir()
    with pytest.raises(RefreshFailed, match=rf"in {folder.parent} cannot be read \(Is a directory\)"):
        await store.motion.clips("r", Origin.ROLLOUT)
    assert await store.motion.missing("r", Origin.ROLLOUT) == ()


async def test_a_worker_with_another_folder_loses_no_clip_and_does_not_start(
    open_queue: OpenQueue, filed: Filed, folder: Path, tmp_path: Path
) -> None:
    """It took every file for gone: one refresh dropped all clips of the run."""
    elsewhere = filed(feature_dir=tmp_path / "elsewhere")
    make_folder(elsewhere)
    store, lost = [(await open_queue(settings)).worker.store for settings in (filed(), elsewhere)]
    await keep(store, CLIPS[:3])
    with pytest.raises(RefreshFailed, match=r"lacks the folder 'f{32}' of this Redis.* the same folder"):
        await lost.motion.clips("r", Origin.ROLLOUT)
    assert await lost.motion.missing("r", Origin.ROLLOUT) == ()
    assert len(await store.motion.clips("r", Origin.ROLLOUT)) == 3
    with pytest.raises(NotReady, match=r"elsewhere/embedded \(it lacks the folder 'f{32}' of this Redis"):
        await run_worker(elsewhere, Packing(), asyncio.Event())


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_folder_that_vanishes_loses_no_clip_and_gets_no_new_file(
    open_queue: OpenQueue, filed: Filed, folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """As when a network file system is no longer mounted: what is left is an empty folder."""
    store = (await open_queue(filed())).worker.store
    await keep(store, CLIPS[:3])
    mounted, read = folder.parents[1], features._read
    away = mounted.with_name("away")

    def unmount() -> None:
        mounted.rename(away)
        mounted.mkdir()

    def after_unmounting(folder: Path, value: bytes) -> bytes | None:
        if not away.exists():
            unmount()
        return read(folder, value)

    monkeypatch.setattr(features, "_read", after_unmounting)
    if when == "before":
        unmount()
    with pytest.raises(RefreshFailed, match="lacks the folder"):
        await store.motion.clips("r", Origin.ROLLOUT)
    with pytest.raises(OSError, match="lacks the folder"):
        await keep(store, CLIPS[3:4])
    assert not list(mounted.iterdir())
    mounted.rmdir()
    away.rename(mounted)
    monkeypatch.undo()
    assert len(await store.motion.clips("r", Origin.ROLLOUT)) == 3
    assert await store.motion.missing("r", Origin.ROLLOUT) == ()


async def test_workers_of_a_new_redis_agree_on_one_folder(open_queue: OpenQueue, filed: Filed) -> None:
    links = [(await open_queue()).worker._link for _ in range(4)]
    home = filed().feature_dir / "embedded"  # type: ignore[operator]
    places = await asyncio.gather(*(FeatureFolder(link, KEYS, home).path() for link in links))
    assert [home / path.name for path in home.iterdir()] == [places[0]] and len(set(places)) == 1


@pytest.mark.parametrize("value", ["", "features"])
def test_a_folder_that_is_no_absolute_path_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MOTION_REWARD_FEATURE_DIR", value)
    with pytest.raises(ValidationError, match=f"'{value or '.'}' is not an absolute path"):
        Settings()


# --- the sweep ------------------------------------------------------------------------------------------


def age(paths: Sequence[Path], age_s: float) -> None:
    for path in paths:
        then = path.lstat().st_mtime - age_s
        os.utime(path, (then, then), follow_symlinks=False)


async def test_the_sweep_deletes_old_files_to_which_no_run_refers_and_no_others(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis: Redis
) -> None:
    queue = await open_queue(filed())
    store = queue.worker.store
    for run_id in ("expired", "live"):
        await keep(store, CLIPS[:3], run_id=run_id)
    await store.motion.freeze_anchor("live", [(await store.motion.clips("live", Origin.ROLLOUT))[0].name])
    live = referred([*await kept_values(redis, "live"), *await redis.hvals(KEYS.anchor("rollout", "live"))])
    assert len(live) == 1 + 2 * 3
    for key in await redis.keys("*:expired"):
        await redis.delete(key)
    cut_short = folder / ("0" * 32)
    cut_short.write_bytes(b'{"run_id": "li')
    age(files_of(folder), 86400 + 60)
    foreign = folder / "notes.txt"
    foreign.write_bytes(b"")
    age([foreign], 10**6)
    place = FeatureFolder(queue.worker._link, KEYS, folder.parent)
    put = await InFolder(place).put("live", "rollout", "0" * 16 + "job", (b"its reference comes later",))
    written = [value for _, value in put]

    files = FeatureFiles(queue.worker._link, KEYS, place, life_s=86400)
    await files.tidy()
    assert names(folder) == live | referred(written) | {"notes.txt"}
    await redis.flushall()  # the folder stays the one of this Redis
    age([folder / name for name in live], 86400 + 60)
    await files.tidy()
    assert names(folder) == referred(written) | {"notes.txt"}


async def test_no_bad_file_stops_the_sweep(
    open_queue: OpenQueue, filed: Filed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these ended every sweep before it deleted anything."""
    queue = await open_queue(filed())
    await keep(queue.worker.store, CLIPS[:1])
    live, name = names(folder), itertools.count(10**31)
    (folder / str(next(name))).mkdir()
    (folder / str(next(name))).symlink_to(folder / str(10**31 + 1))
    os.mkfifo(folder / str(next(name)))
    left = names(folder)
    part = {"run_id": "r", "origin": "rollout", "member": "0" * 17 + "job"}
    for bad in (
        *({**part, key: value} for key in part for value in (1, "\ud800", None)),
        {**part, "member": ""},
        [],
        1,
    ):
        (folder / str(next(name))).write_text(json.dumps(bad) + "\n")
    (folder / str(next(name))).write_bytes(b"[" * 8000)
    (folder / str(next(name))).write_bytes(b"\xff\n")
    refused = folder / str(next(name))
    refused.write_bytes(b"")
    age(files_of(folder), 86400 + 60)
    unlink = Path.unlink

    def unless_of_another_user(path: Path, missing_ok: bool = False) -> None:
        if path == refused:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unless_of_another_user)
    place = FeatureFolder(queue.worker._link, KEYS, folder.parent)
    with structlog.testing.capture_logs() as logs:
        await FeatureFiles(queue.worker._link, KEYS, place, life_s=86400).tidy()
    assert names(folder) == left | {refused.name} and live <= left
    [told] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert str(refused) in told["one"] and told["files"] == 1 and "run all workers as one user" in told["event"]


async def test_a_worker_sweeps_its_folder_from_its_start(
    open_queue: OpenQueue, filed: Filed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep((await open_queue(filed())).worker.store, CLIPS[:1])
    files = files_of(folder)
    unknown = [path.rename(folder / path.name[::-1]) for path in files[:2]]  # Redis does not know these names
    age([unknown[0], files[2]], LEAST_S + 60)
    age([unknown[1]], LEAST_S * 3 / 4)
    swept = asyncio.Event()
    settle = FeatureFiles._settle

    def and_tell(self: FeatureFiles, *args: object) -> int:
        try:
            return settle(self, *args)  # type: ignore[arg-type]
        finally:
            loop.call_soon_threadsafe(swept.set)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(feature_sweep.FeatureFiles, "_settle", and_tell)
    await open_queue(filed(feature_ttl_s=5))  # a file gets an hour at least
    async with asyncio.timeout(20):
        await swept.wait()
    assert names(folder) == {unknown[1].name, files[2].name}


async def test_servers_that_share_a_folder_leave_each_others_files_alone(
    open_queue: OpenQueue, filed: Filed, folder: Path, redis_server: PrivateRedis
) -> None:
    """One with a shorter feature_ttl_s deleted the files of the other."""
    await keep((await open_queue(filed())).worker.store, CLIPS[:1])
    age(files_of(folder), LEAST_S * 3)
    queue = await open_queue(filed(redis_url=SecretStr(redis_server.url.replace("/0", "/1"))))
    await keep(queue.worker.store, CLIPS[1:2])
    place = FeatureFolder(queue.worker._link, KEYS, folder.parent)
    other = await place.path()
    age(files_of(other), LEAST_S * 3)
    await FeatureFiles(queue.worker._link, KEYS, place, life_s=LEAST_S).tidy()
    assert len(names(folder)) == len(names(other)) == 3 and other != folder


async def test_a_sweep_that_failed_is_tried_again_before_its_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lifetime of a day the next try was six hours later."""
    monkeypatch.setattr(sweep, "RETRY_S", 0.01)
    again, num_tries = asyncio.Event(), itertools.count(1)

    async def tidy() -> None:
        if next(num_tries) < 3:
            raise NotReady("Redis is away")
        again.set()

    sweeping = sweep.Sweep("test", tidy, tick_s=3600)
    sweeping.start()
    async with asyncio.timeout(20):
        await again.wait()
    await sweeping.stop()
