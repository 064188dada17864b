"""Measures on how many of the scored clips a refresh trains, at the sizes of a real profile's motion, without networks.

    python -m benchmarks.refresh_clips [--profile shift] [--groups 640] [--rollouts 8] [--buffers 2] [--mib 2048]
                                       [--files]

It stores packed motion of the profile's sizes, of which every value is 0, in the run store of a private Redis, buffer
by buffer, as workers do. The real clip of one group in eight has the copies of the gate (pipeline/copies.py). With
`--files` the motion is in files (feature_dir). `newest` is what the same room held before: the newest clips, with all
of their tracks. `redis_mib` is what the run's kept clips take in Redis. The last line of the output is one JSON
document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import SecretStr
from redis import Redis
from safetensors.torch import save

from protos.types import DiscriminatorRefresh, Origin, RefreshRequest, RefreshResponse, Separation
from reward_server.pipeline.copies import KINDS, ONE_IN
from reward_server.profiles.packed import CHANNEL_SCALE
from reward_server.profiles.run_clips import ABOUT, COPY, GROUP, UNKNOWN, read_clip, split
from reward_server.queue import scripts
from reward_server.queue.feature_folder import make_folder
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink, connect
from reward_server.queue.refreshes import RefreshRequests, RefreshWork
from reward_server.queue.run_store import RunStore, Version
from reward_server.serving.private_redis import PrivateRedis
from reward_server.settings import MIB, Settings

CHANNELS = 1024
SHAPES = {"shift": (24, 320, 576), "shift-wan": (49, 480, 832)}  # frames, height and width in pixels


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The clips of the benchmark."""

    profile: str
    groups: int
    rollouts: int
    buffers: int


def packed_zeros(profile: str, num_tracks: int, num_pairs: int) -> dict[str, torch.Tensor]:
    """A clip's packed motion, of zeros."""
    frames, height, width = SHAPES[profile]
    return {
        "tracks": torch.zeros(num_tracks, frames, 2),
        "state": torch.zeros(num_tracks, frames, 2, dtype=torch.float16),
        "correlation": torch.zeros(num_tracks, frames, CHANNELS, dtype=torch.int8),
        CHANNEL_SCALE: torch.zeros(CHANNELS),
        "maps": torch.zeros(num_pairs, 2, height, width, dtype=torch.uint8),
        ABOUT: UNKNOWN.tensor(),
    }


def parts_of(profile: str, settings: Settings, *, copies: int = 0) -> tuple[bytes, ...]:
    """The parts of a clip with so many copies."""
    packed = packed_zeros(profile, settings.feature_tracks, settings.feature_pairs)
    packed |= {GROUP: torch.zeros(8, dtype=torch.uint8)}
    for at in range(copies):
        copy = packed_zeros(profile, settings.feature_min_tracks, 1)
        packed |= {f"{COPY}{at}.{name}": tensor for name, tensor in copy.items()}
    return tuple(save(part) for part in split(packed, min_tracks=settings.feature_min_tracks, seed=0))


async def fill(store: RunStore, plan: Plan, parts: Sequence[bytes], copied: Sequence[bytes], buffer: int) -> None:
    """Score a buffer: the real clip and the rollouts of each group. `copied` are the parts of a clip with copies."""
    for group in range(plan.groups):
        for at in range(1 + plan.rollouts):
            origin, job_id = Origin.ROLLOUT if at else Origin.REAL, f"{buffer}-{group}-{at}"
            given = parts if at or group % ONE_IN else copied
            await store.motion.keep_clip("bench", origin, job_id, given, group_id=f"{buffer}-{group}")


async def rows_of(store: RunStore) -> list[dict[str, Any]]:
    """What a refresh would train on now."""
    until_ms = await store.now_ms()
    rows = []
    for origin in Origin:
        kept = await store.motion.clips("bench", origin)
        read = [read_clip(clip.parts) for clip in kept]
        newer = [clip.name[16:].split("-") for clip in kept if not clip.older]
        rows.append(
            {
                "origin": origin.value,
                "scored": await store.motion.num_scored("bench", origin, until_ms),
                "trained_on": len(newer),
                "groups": len({group for _, group, _ in newer}),
                "older": len(kept) - len(newer),
                "tracks": statistics.median(clip.num_tracks for clip in read),
                "pairs": statistics.median(clip.num_pairs for clip in read),
                "mib": round(sum(map(len, [part for clip in kept for part in clip.parts])) / MIB, 1),
            }
        )
    return rows


async def measured(plan: Plan, settings: Settings) -> dict[str, Any]:
    """The rows of each buffer, the mebibytes that were sent of those that were scored, and the seconds it took."""
    link: Any = Counting(connect(settings))
    keys = Keys(profile=settings.profile)
    store, parts = RunStore(link, keys, settings), parts_of(plan.profile, settings)
    copied = parts_of(plan.profile, settings, copies=len(KINDS))
    started, buffers, in_redis = time.perf_counter(), [], []
    for buffer in range(plan.buffers):
        await fill(store, plan, parts, copied, buffer)
        in_redis.append(redis_mib(settings))
        buffers.append(await rows_of(store))
        await refreshed(RefreshRequests(link, keys, settings), RefreshWork(link, keys, settings), store)
    size = sum(map(len, parts))
    scored = plan.buffers * plan.groups * (1 + plan.rollouts)
    newest = min(settings.feature_room // size, plan.groups * plan.rollouts)
    await link.close()
    return {
        "clip_mib": round(size / MIB, 2),
        "newest": newest,
        "newest_groups": -(-newest // plan.rollouts),
        "buffers": buffers,
        "redis_mib": in_redis,
        "sent_mib": round(link.sent / MIB),
        "scored_mib": round(scored * size / MIB),
        "seconds": round(time.perf_counter() - started, 1),
    }


def redis_mib(settings: Settings) -> float:
    """The mebibytes that the run's kept clips take in Redis."""
    assert settings.redis_url
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        sizes: list[Any] = [redis.memory_usage(key, samples=0) for key in redis.scan_iter(match="*:kept-*")]
    return round(float(sum(sizes)) / MIB, 3)


async def refreshed(requests: RefreshRequests, work: RefreshWork, store: RunStore) -> None:
    """Publish a version without training, which makes the clips those of an earlier buffer."""
    await requests.admit(RefreshRequest(run_id="bench", steps=1))
    refresh = await work.claim()
    assert refresh is not None, "it was just admitted"
    await store.stage(refresh.id, b"scoring", b"training")
    same = Separation(auc=0.5, logit_gap=0.0)
    head = DiscriminatorRefresh(losses=(), before=same, after=same)
    response = RefreshResponse(
        discriminator_version=refresh.id,
        weights_digest="",
        previous_version="",
        steps=1,
        num_real=0,
        num_rollouts=0,
        num_held_out=0,
        instantaneous=head,
        long_term=head,
        seconds=0.0,
    )
    version = Version(name=refresh.id, digest="", number=1)
    await work.publish(refresh, version, response, cut_ms=await store.now_ms())


class Counting:
    """A link that counts the bytes that are kept through it."""

    def __init__(self, link: RedisLink) -> None:
        self._link, self.sent = link, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    async def run(self, script: Any, *args: Any) -> Any:
        if script is scripts.KEEP_CLIP:
            self.sent += sum(len(arg) for arg in args if isinstance(arg, bytes))
        return await self._link.run(script, *args)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", choices=tuple(SHAPES), default="shift")
    parser.add_argument("--groups", type=int, default=640, help="real clips of a buffer")
    parser.add_argument("--rollouts", type=int, default=8, help="of each real clip")
    parser.add_argument("--buffers", type=int, default=2)
    parser.add_argument("--mib", type=int, default=2048, help="room for each origin")
    parser.add_argument("--files", action="store_true", help="keep the motion in files")
    args = parser.parse_args(argv)
    plan = Plan(profile=args.profile, groups=args.groups, rollouts=args.rollouts, buffers=args.buffers)
    with tempfile.TemporaryDirectory() as folder:
        data_dir, feature_dir = Path(folder), Path(folder) / "features" if args.files else None
        settings = Settings(
            profile=args.profile, data_dir=data_dir, feature_max_bytes=args.mib * MIB, feature_dir=feature_dir
        )
        make_folder(settings)
        with PrivateRedis(settings) as redis:
            result = asyncio.run(measured(plan, settings.model_copy(update={"redis_url": SecretStr(redis.url)})))
    print(f"a clip has {result['clip_mib']} MiB; the newest {result['newest']} of each origin fitted, so rollouts of")
    print(f"{result['newest_groups']} first frames. Sent to Redis: {result['sent_mib']} of {result['scored_mib']} MiB;")
    print(f"kept there at the end of each buffer: {', '.join(map(str, result['redis_mib']))} MiB.")
    columns = ("origin", "scored", "trained_on", "groups", "older", "tracks", "pairs", "mib")
    print(" ".join(f"{name:>10}" for name in ("buffer", *columns)))
    for number, rows in enumerate(result["buffers"]):
        for row in rows:
            print(" ".join(f"{value:>10}" for value in (number, *(row[name] for name in columns))))
    print(json.dumps(vars(args) | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
