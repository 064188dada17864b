"""Tests the refresh gate: what it refuses, and that the anchor set of a run stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from protos.client import AsyncRewardClient, RequestRefused
from protos.types import Anchor, DiscriminatorRefresh, Origin, Separation
from reward_server.errors import GateFailed
from reward_server.pipeline import Pipeline
from reward_server.queue.keys import Keys
from reward_server.settings import Settings
from reward_server.worker.gate import check_gate
from tests.conftest import MakeSettings, OpenQueue
from tests.reward_server.test_refresh import QUICK, served
from tests.run_clips import fill, packed

KEYS = Keys(profile="embedded")
GOOD = Anchor(
    before=Separation(auc=0.9, logit_gap=2.0),
    after=Separation(auc=0.8, logit_gap=1.0),
    drift=0.1,
    saturation_before=0.0,
    saturation_after=0.4,
)
BAD = {
    "gate_max_auc_drop": replace(GOOD, after=Separation(auc=0.7, logit_gap=1.0)),
    "gate_max_gap_drop": replace(GOOD, after=Separation(auc=0.8, logit_gap=-0.1)),
    "gate_max_drift": replace(GOOD, drift=0.6),
    "gate_max_saturation": replace(GOOD, saturation_after=0.6),
    "gate_max_copies_drop": replace(GOOD, copies_before=0.9, copies_after=0.6),
    "gate_min_amount": replace(GOOD, amount_rollouts_before=-0.2, amount_rollouts_after=-0.7),
}
SMALL = {
    "a small gap that turns": replace(
        GOOD, before=Separation(auc=0.5, logit_gap=0.2), after=Separation(auc=0.49, logit_gap=-0.1)
    ),
    "copies that fell a little": replace(GOOD, copies_before=0.9, copies_after=0.7),
    "rewards that come to follow motion": replace(GOOD, amount_rollouts_before=-0.8, amount_rollouts_after=0.9),
    "a parent that paid less motion nearly as much": replace(GOOD, amount_real_before=-0.6, amount_real_after=-0.75),
    "a parent that is as saturated": replace(GOOD, saturation_before=0.9, saturation_after=0.9),
    "no separation at all": replace(
        GOOD, before=Separation(auc=0.3, logit_gap=-3), after=Separation(auc=0.3, logit_gap=-3)
    ),
}


def report(anchor: Anchor | None) -> dict[str, DiscriminatorRefresh]:
    same = Separation(auc=0.5, logit_gap=0.0)
    return {
        name: DiscriminatorRefresh(losses=(), before=same, after=same, anchor=anchor if name == "long_term" else GOOD)
        for name in ("instantaneous", "long_term")
    }


@pytest.mark.parametrize("setting", BAD)
def test_each_limit_refuses_what_passes_it_and_tells_the_figures(setting: str) -> None:
    with pytest.raises(GateFailed, match=rf"long_term: .*\({setting}\)") as refused:
        check_gate(report(BAD[setting]), Settings())  # type: ignore[arg-type]
    told = str(refused.value)
    assert told.count("(gate_") == 1 and "instantaneous: AUC 0.900 -> 0.800, gap 2 -> 1, drift 0.100" in told
    wide = Settings(
        gate_max_auc_drop=1,
        gate_max_gap_drop=99,
        gate_max_drift=99,
        gate_max_saturation=1,
        gate_max_copies_drop=1,
        gate_min_amount=-1,
    )
    check_gate(report(BAD[setting]), wide)  # type: ignore[arg-type]


@pytest.mark.parametrize("anchor", [GOOD, None, *SMALL.values()], ids=["good", "none", *SMALL])
def test_what_is_no_worse_than_its_parent_passes(anchor: Anchor | None) -> None:
    check_gate(report(anchor), Settings())  # type: ignore[arg-type]


async def test_a_run_keeps_its_anchor_set_and_a_failed_gate_keeps_the_version(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue, redis: Redis
) -> None:
    settings = make_settings(gate_min_clips=2)
    store = (await open_queue()).worker.store
    await fill(store, "run-1", num=16)
    async with served(settings, small_pipeline) as doors, AsyncRewardClient(doors.grpc_url) as client:
        first = await client.refresh(replace(QUICK, steps=1))
        anchored = [await redis.hgetall(KEYS.anchor(origin.value, "run-1")) for origin in Origin]
        assert [len(clips) for clips in anchored] == [2, 2] == [first.anchor_real, first.anchor_rollouts]
        assert first.long_term.anchor and first.long_term.anchor.after == first.long_term.after  # it was just held out
        assert [await redis.hlen(KEYS.clips(origin.value, "run-1")) for origin in Origin] == [14, 14]

        for seed in range(20, 24):
            await store.motion.keep_clip("run-1", Origin.REAL, f"new-{seed}", packed(Origin.REAL, seed))
        second = await client.refresh(replace(QUICK, steps=1))
        assert [await redis.hgetall(KEYS.anchor(origin.value, "run-1")) for origin in Origin] == anchored
        assert (second.anchor_real, second.num_real, second.older_real) == (2, 5, 1)
        assert second.long_term.anchor and second.long_term.anchor.before != second.long_term.before
        shown = (await doors.service.history.version(second.discriminator_version)).training
        assert shown.instantaneous.anchor == second.instantaneous.anchor and shown.instantaneous.anchor

    strict = make_settings(gate_min_clips=2, gate_max_drift=1e-9)
    async with served(strict, small_pipeline) as doors, AsyncRewardClient(doors.grpc_url) as client:
        with pytest.raises(RequestRefused, match=r"gate_failed: .*gate_max_drift.*AUC .* -> .*saturation"):
            await client.refresh(replace(QUICK, steps=1))
        assert (await client.model("run-1")).discriminator_version == second.discriminator_version
        assert 'motion_reward_refreshes_failed_total{code="gate_failed"} 1.0' in await doors.service.metrics_text()
