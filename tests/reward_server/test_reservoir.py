"""Tests which clips a run keeps for its refreshes: a sample over all groups that does not depend on the order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from redis.asyncio import Redis

from protos.types import Origin
from reward_server.queue.keys import Keys
from reward_server.queue.reservoir import Drawn, KeptClip, chosen
from reward_server.queue.run_store import RunStore, Version
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reward_server.test_refresh import QUICK, RESPONSE, claimed

KEYS = Keys(profile="embedded")
NUM_GROUPS, PER_GROUP = 20, 3
CLIPS = [(group, at) for group in range(NUM_GROUPS) for at in range(PER_GROUP)]


async def keep(store: RunStore, clips: Iterable[tuple[int, int]], run_id: str = "r", prefix: str = "") -> None:
    """Keep rollouts of three parts, of 8, 4 and 2 bytes."""
    for group, at in clips:
        key = f"{prefix}{group}/{at}"
        parts = [key.encode().ljust(size, b".")[:size] for size in (8, 4, 2)]
        await store.motion.keep_clip(
            run_id, Origin.ROLLOUT, f"job-{key}", parts, group_id=f"{prefix}{group}", clip_key=key
        )


def keys_of(clips: Sequence[KeptClip]) -> list[str]:
    return [clip.parts[0].decode().rstrip(".") for clip in clips]


def groups_of(clips: Sequence[KeptClip]) -> Counter[str]:
    return Counter(key.partition("/")[0] for key in keys_of(clips))


async def test_the_kept_clips_are_one_of_every_group_in_any_order(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    """The newest clips were kept: of 5,120 rollouts those of the last 4 first frames."""
    found = []
    for seed in range(3):
        await redis.flushall()
        store = (await open_queue(make_settings(feature_max_bytes=8 * NUM_GROUPS))).worker.store
        order = random.Random(seed).sample(CLIPS, len(CLIPS))
        await keep(store, order)
        await keep(store, order[:7])  # redelivered: other jobs for the same clips
        found.append(await store.motion.clips("r", Origin.ROLLOUT))
        assert await redis.hlen(KEYS.clips("rollout", "r")) == NUM_GROUPS
    assert groups_of(found[0]) == {str(group): 1 for group in range(NUM_GROUPS)}
    assert keys_of(found[0]) == keys_of(found[1]) == keys_of(found[2])
    assert {key.partition("/")[2] for key in keys_of(found[0])} == {"0", "1", "2"}  # which of a group is drawn


async def test_a_group_of_more_clips_than_ranks_is_kept(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    """Regression: a new clip moved all those of the last rank, and Lua cannot pass so many to one command."""
    store = (await open_queue(make_settings(feature_max_clips=2048))).worker.store
    names = [f"{at:04d}" for at in range(1200)]
    random.Random(0).shuffle(names)
    for name in names:
        await store.motion.keep_clip("r", Origin.ROLLOUT, f"job-{name}", [b"part"], group_id="one", clip_key=name)
    assert len(await store.motion.clips("r", Origin.ROLLOUT)) == len(names)


async def test_less_room_means_fewer_groups_and_more_room_more_parts(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    kept = {}
    for room in (8 * 5, 8 * NUM_GROUPS * 2, 8 * len(CLIPS) + 4 * 9 + 2, 14 * len(CLIPS)):
        store = (await open_queue(make_settings(feature_max_bytes=room))).worker.store
        await keep(store, CLIPS, run_id=f"run-{room}")
        clips = await store.motion.clips(f"run-{room}", Origin.ROLLOUT)
        kept[room] = Counter(len(clip.parts) for clip in clips)
        assert sum(len(part) for clip in clips for part in clip.parts) <= room
    assert list(kept.values()) == [{1: 5}, {1: 40}, {1: 51, 2: 9}, {3: 60}]


async def test_clips_beyond_the_largest_number_are_not_kept(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    store = (await open_queue(make_settings(feature_max_clips=NUM_GROUPS + 1))).worker.store
    await keep(store, CLIPS)
    clips = await store.motion.clips("r", Origin.ROLLOUT)
    assert sorted(groups_of(clips).values()) == [1] * (NUM_GROUPS - 1) + [2]
    assert await store.motion.num_scored("r", Origin.ROLLOUT, await store.now_ms()) == len(CLIPS)
    assert await store.motion.clips("r", Origin.REAL) == await store.motion.clips("other", Origin.ROLLOUT) == []
    assert await redis.hlen(KEYS.kept("more", "rollout", "r")) == 2 * (NUM_GROUPS + 1)


async def publish(queue: Queue, cut_ms: int) -> None:
    refresh = await claimed(queue, QUICK)
    await queue.worker.store.stage("v", b"discriminators", b"training")
    version = Version(name="v", digest="d", number=1)
    assert await queue.worker.refreshes.publish(refresh, version, RESPONSE, cut_ms=cut_ms)


async def test_earlier_buffers_keep_a_share_of_the_room_and_of_the_clips(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await open_queue(make_settings(feature_max_bytes=8 * 20, feature_older_share=0.25, refresh_min_clips=2))
    store = queue.worker.store
    for seed in range(2):
        await store.motion.keep_clip("run-1", Origin.REAL, f"real-{seed}", (b"motion",))
    await keep(store, CLIPS, run_id="run-1")
    await publish(queue, await store.now_ms())
    assert await store.motion.num_scored("run-1", Origin.ROLLOUT, await store.now_ms()) == 0
    first = await store.motion.clips("run-1", Origin.ROLLOUT)
    assert len(first) == 20 and all(clip.older for clip in first)  # nothing new: a refresh goes on with these
    await keep(store, CLIPS, run_id="run-1", prefix="later-")
    clips = await store.motion.clips("run-1", Origin.ROLLOUT)
    assert Counter(clip.older for clip in clips) == {False: 15, True: 5}
    assert [clip.name for clip in clips[15:]] == [clip.name for clip in first[:5]]
    assert all(clip.startswith("later-") for clip in keys_of(clips[:15])) and len(groups_of(clips[:15])) == 15
    assert await redis.hlen(KEYS.clips("rollout", "run-1")) == 20
    held = {key: await redis.ttl(key) for key in await redis.keys("*kept*")}
    assert held and all(0 < ttl <= 86400 for ttl in held.values())


async def test_a_sign_of_life_keeps_motion_and_versions(open_queue: OpenQueue, redis: Redis) -> None:
    """A run that trained on a buffer for longer than feature_ttl_s died of `unknown_run`."""
    queue = await open_queue()
    for origin in Origin:
        for seed in range(2):
            await queue.worker.store.motion.keep_clip("run-1", origin, f"{origin}-{seed}", (b"motion", b"more"))
    await publish(queue, await queue.worker.store.now_ms())
    keys = [key.decode() for key in await redis.keys()]
    keys = [key for key in keys if "run-1" in key or key.endswith(":v")]
    for key in keys:
        await redis.expire(key, 5)
    await queue.worker.store.touch("run-1")
    assert len(keys) >= 12 and all([await redis.ttl(key) > 5 for key in keys if ":refresh" not in key])


def test_a_refresh_takes_older_clips_up_to_their_share() -> None:
    newer, older = [f"n{at}" for at in range(9)], [f"o{at}" for at in range(9)]
    take = partial(chosen, share=0.25, at_least=2)
    assert take(newer, older, most=0) == (newer, older[:3])
    assert take(newer, older, most=4) == (newer[:3], older[:1])
    assert take(newer[:1], older, most=0) == (newer[:1], older)
    assert take(newer[:1], older, most=4) == (newer[:1], older[:3])
    assert take(newer, older[:1], most=20) == (newer, older[:1])
    assert chosen(newer, older, most=0, share=0.0, at_least=2) == (newer, [])


def test_a_real_clip_and_the_rollouts_of_its_group_are_drawn_together() -> None:
    real, rollout = (Drawn.of("run", job, "group", key) for job, key in (("a", "g/0"), ("b", "g/1")))
    assert real.group == rollout.group != Drawn.of("other run", "a", "group", "g/0").group
    assert real.name != rollout.name and real.name.endswith("a")
