"""Tests the training of a refresh: it learns, is deterministic, holds out whole groups and refuses bad inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from protos.types import DISCRIMINATORS, Origin, RefreshRequest
from reward_server.discriminators import track_statistics
from reward_server.discriminators.residual_vit import ResidualViT
from reward_server.discriminators.track_vit import TrackViT
from reward_server.errors import RefreshRejected, TooFewClips
from reward_server.pipeline import Pipeline
from reward_server.profiles.run_clips import RunClip, read_clip
from reward_server.training import adversarial
from reward_server.training.adversarial import Candidate, refresh_discriminators
from reward_server.training.buffers import Buffers
from reward_server.worker.refresh_training import check_candidate
from tests.run_clips import packed

REQUEST = RefreshRequest(run_id="r", steps=8, learning_rate=1e-3, ema=0.5, clips_per_step=3)


def clips(origin: Origin, seeds: Sequence[int], frames: int = 8, group: str = "") -> list[RunClip]:
    return [read_clip(packed(origin, seed, frames, group or f"group-{seed}")) for seed in seeds]


def buffers(num: int = 8) -> Buffers:
    return Buffers.of(clips(Origin.REAL, range(num)), clips(Origin.ROLLOUT, range(num)), at_least=2)


def refreshed(pipeline: Pipeline, request: RefreshRequest = REQUEST, **given: object) -> Candidate:
    torch.set_num_threads(1)
    start = {
        "average": pipeline.discriminators,
        "training": pipeline.discriminators,
        "before_step": lambda step: None,
        **given,
    }
    clips = start.pop("buffers", None) or buffers()
    return refresh_discriminators(pipeline.profile, clips, request, device="cpu", **start)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def candidate(small_pipeline: Pipeline) -> Candidate:
    return refreshed(small_pipeline)


def test_the_loss_falls_and_held_out_clips_come_apart(candidate: Candidate) -> None:
    for discriminator in DISCRIMINATORS:
        report = candidate.report[discriminator]
        assert len(report.losses) == REQUEST.steps
        assert report.losses[-1] < report.losses[0]
        assert report.after.auc == 1.0 >= report.before.auc
        assert report.after.logit_gap > report.before.logit_gap
    assert [len(some) for some in (candidate.clips.real, candidate.clips.rollouts)] == [8, 8]
    assert [len(some) for some in (candidate.held_out.real, candidate.held_out.rollouts)] == [1, 1]


def test_the_first_loss_is_eq_7_and_chance_is_two_ln_two(candidate: Candidate) -> None:
    """Both terms are added, not averaged, so a discriminator whose logits are all 0 has a loss of 2 ln 2."""
    for discriminator in DISCRIMINATORS:
        assert candidate.report[discriminator].losses[0] == pytest.approx(2 * math.log(2), abs=0.5)


def test_the_same_clips_and_seed_give_the_same_bits(small_pipeline: Pipeline, candidate: Candidate) -> None:
    again, other = refreshed(small_pipeline), refreshed(small_pipeline, replace(REQUEST, seed=1))
    assert again.name == candidate.name != other.name
    assert again.report == candidate.report
    for discriminator in DISCRIMINATORS:
        for name, value in candidate.training[discriminator].items():
            assert torch.equal(value, again.training[discriminator][name])


def test_clips_that_go_one_by_one_train_as_all_at_once(
    small_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is off, because it is drawn once per pass."""
    torch.manual_seed(0)
    monkeypatch.setattr(track_statistics, "DROPOUT", 0.0)
    profile = small_pipeline.profile
    calm = replace(
        small_pipeline.discriminators,
        instantaneous=ResidualViT(replace(profile.residual_config, dropout=0.0, patch_dropout=0.0)),
        long_term=TrackViT(replace(profile.track_config, dropout=0.0)),
    )
    request = replace(REQUEST, steps=4, learning_rate=1e-4)
    together = refreshed(small_pipeline, request, average=calm, training=calm)
    monkeypatch.setattr(type(profile), "parallel_clips", False)
    monkeypatch.setattr(adversarial, "PAIRS_OF_LARGE", adversarial.PAIRS_PER_STEP)
    one_by_one = refreshed(small_pipeline, request, average=calm, training=calm)
    for discriminator in DISCRIMINATORS:
        assert one_by_one.report[discriminator].losses == pytest.approx(together.report[discriminator].losses, rel=0.03)


def test_the_average_follows_the_weights_at_the_ema_rate(small_pipeline: Pipeline, candidate: Candidate) -> None:
    start = small_pipeline.discriminators.long_term.state_dict()
    for ema in (0.0, 0.75):
        one = refreshed(small_pipeline, replace(REQUEST, steps=1, ema=ema))
        for name, value in one.training["long_term"].items():
            expected = ema * start[name] + (1 - ema) * value
            assert torch.allclose(one.average["long_term"][name], expected, atol=1e-7)
    assert any(not torch.equal(start[name], value) for name, value in one.training["long_term"].items())


def test_the_discriminators_that_serve_are_not_touched(small_pipeline: Pipeline) -> None:
    before = copy.deepcopy(small_pipeline.discriminators.instantaneous.state_dict())
    refreshed(small_pipeline, replace(REQUEST, steps=1))
    assert all(
        torch.equal(before[name], value)
        for name, value in small_pipeline.discriminators.instantaneous.state_dict().items()
    )
    assert not small_pipeline.discriminators.instantaneous.training


def test_groups_are_held_out_whole() -> None:
    real = [clip for group in range(12) for clip in clips(Origin.REAL, [group], group=f"g{group}")]
    rollouts = [clip for group in range(12) for clip in clips(Origin.ROLLOUT, [group, 100 + group], group=f"g{group}")]
    train, held_out = Buffers.of(real, rollouts, at_least=2).split(seed=0)
    groups = [{clip.group_id for clip in [*part.real, *part.rollouts]} for part in (train, held_out)]
    assert groups[0] & groups[1] == set() and groups[0] | groups[1] == {f"g{group}" for group in range(12)}
    assert (len(held_out.real), len(held_out.rollouts)) == (2, 4)  # an eighth of 24 is 3, and groups have 2


@pytest.mark.parametrize("group", ["", "the-same"])
def test_with_few_groups_single_clips_are_held_out(group: str) -> None:
    both = clips(Origin.REAL, range(2), group=group), clips(Origin.ROLLOUT, range(2), group=group)
    train, held_out = Buffers.of(*both, at_least=2).split(seed=0)
    assert [len(part) for part in (train.real, train.rollouts, held_out.real, held_out.rollouts)] == [1, 1, 1, 1]


def test_a_shape_of_only_one_origin_is_left_out() -> None:
    real, longer = clips(Origin.REAL, range(3)), clips(Origin.REAL, range(2), frames=9)
    rollouts = clips(Origin.ROLLOUT, range(3))
    assert len(Buffers.of(real + longer, rollouts, at_least=2).real) == 3
    with pytest.raises(TooFewClips, match=r"0 real clips of 2 .* 0 rollouts of 3"):
        Buffers.of(longer, rollouts, at_least=2)


def test_a_candidate_with_non_finite_weights_is_rejected(candidate: Candidate) -> None:
    check_candidate(candidate)
    for part in ("average", "training"):
        weights = copy.deepcopy(getattr(candidate, part))
        next(iter(weights["long_term"].values())).view(-1)[0] = math.nan
        with pytest.raises(RefreshRejected, match="long_term discriminator are not finite"):
            check_candidate(replace(candidate, **{part: weights}))


def test_a_loss_that_is_not_finite_stops_at_once(small_pipeline: Pipeline) -> None:
    broken = copy.deepcopy(small_pipeline.discriminators)
    with torch.no_grad():
        next(broken.instantaneous.parameters()).fill_(math.nan)
    with pytest.raises(RefreshRejected, match="instantaneous discriminator was nan at step 0"):
        refreshed(small_pipeline, training=broken)


# --- clips of different sizes, steps and optimizers -----------------------------------------------


def test_clips_with_fewer_parts_train_with_whole_ones(small_pipeline: Pipeline) -> None:
    """As many pairs are taken of each, so that their number does not tell a real clip."""
    real, rollouts = ([packed(origin, seed) for seed in range(4)] for origin in (Origin.REAL, Origin.ROLLOUT))
    assert all(len(parts) == 4 for parts in (*real, *rollouts))
    whole, thin = [read_clip(parts) for parts in real], [read_clip(parts[:1]) for parts in rollouts]
    assert [clip.num_pairs for clip in (whole[0], thin[0])] == [4, 1] and whole[0].shape == thin[0].shape
    clips = Buffers.of(whole, thin, at_least=4)
    report = refreshed(small_pipeline, replace(REQUEST, steps=2), buffers=clips).report
    assert all(math.isfinite(report[name].after.logit_gap) for name in DISCRIMINATORS)


@pytest.mark.parametrize(("max_passes", "steps"), [(0.0, 8), (1.0, 2), (2.5, 5), (0.1, 1), (99.0, 8)])
def test_steps_follow_the_number_of_distinct_clips(max_passes: float, steps: int) -> None:
    """Seven clips of each origin are trained on, three in a step."""
    train, _ = buffers().split(0)
    assert (len(train.real), len(train.rollouts)) == (7, 7)
    assert adversarial.num_steps(replace(REQUEST, max_passes=max_passes), train) == steps


def test_the_optimizer_goes_on_where_it_was_if_asked(small_pipeline: Pipeline, candidate: Candidate) -> None:
    request = replace(REQUEST, steps=2, keep_optimizer=True)
    first = refreshed(small_pipeline, request)
    second = refreshed(small_pipeline, request, optimizer=first.optimizer)
    anew = refreshed(small_pipeline, request)
    assert candidate.optimizer == {} and second.optimizer.keys() == first.optimizer.keys() != set()
    counted = {name: value for name, value in second.optimizer.items() if ".step." in name}
    assert counted and all(float(value) == 4 for value in counted.values())
    assert all(float(first.optimizer[name]) == 2 for name in counted)  # it was copied
    assert second.name != anew.name == first.name
