"""Tests the pipeline with the shipped discriminators: what a reward consists of, and what it must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from protos.codec import clip_to_tensor
from protos.types import Clip, Context, Logits, Media, Outcome, OutcomeKind, Reward, Submission
from reward_server.errors import NonFiniteLogit, NotReady
from reward_server.pipeline import Pipeline, query_seed
from reward_server.profiles.discriminators import load_discriminators
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.settings import Settings
from tests.media import texture

TOLERANCE = 1e-4  # how much the rest of a batch may change a logit (see pipeline.py)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(Settings(num_tracks=64))


def tensor(frames: int = 16, seed: int = 0, height: int = 144, width: int = 256, **context: object) -> Submission:
    clip = Clip(frames=texture(frames, height, width, seed=seed).transpose(0, 3, 1, 2).copy(), fps=12.0)
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=Context(**context))  # type: ignore[arg-type]


def reward(outcome: Outcome) -> Reward:
    assert outcome.reward is not None, outcome.error
    return outcome.reward


def test_same_bytes_give_the_same_reward_to_the_bit(pipeline: Pipeline) -> None:
    first, second = (reward(pipeline.score_submissions([tensor(frames=20)])[0]) for _ in range(2))
    assert first.logits == second.logits
    assert first.windows == second.windows


def test_a_reward_does_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    clips = [tensor(seed=seed) for seed in range(5)] + [tensor(frames=10), tensor(height=176, width=208)]
    together = [reward(outcome).logits for outcome in pipeline.score_submissions(clips)]
    alone = [reward(pipeline.score_submissions([clip])[0]).logits for clip in clips]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.instantaneous == pytest.approx(theirs.instantaneous, abs=TOLERANCE)
        assert ours.long_term == pytest.approx(theirs.long_term, abs=TOLERANCE)


def test_combined_is_the_weighted_mean_of_clipped_logits() -> None:
    settings = Settings(
        num_tracks=64, reward_min=-0.01, reward_max=0.01, weight_instantaneous=3.0, weight_long_term=1.0
    )
    scored = reward(Pipeline.load(settings).score_submissions([tensor()])[0])
    for name in ("instantaneous", "long_term"):
        assert getattr(scored, name) == min(max(getattr(scored.logits, name), -0.01), 0.01)
    assert scored.clipped
    assert scored.combined == pytest.approx((3 * scored.instantaneous + scored.long_term) / 4)


def test_the_mean_of_logits_at_a_bound_stays_within_it() -> None:
    settings = Settings(
        num_tracks=16, reward_min=-20.0, reward_max=-10.0, weight_instantaneous=0.1, weight_long_term=0.2
    )
    assert (0.1 * -10.0 + 0.2 * -10.0) / (0.1 + 0.2) > -10.0
    scored = reward(Pipeline.load(settings).score_submissions([tensor()])[0])
    assert (scored.instantaneous, scored.long_term, scored.combined) == (-10.0, -10.0, -10.0)


def test_a_long_clip_is_the_mean_of_its_windows(pipeline: Pipeline) -> None:
    scored = reward(pipeline.score_submissions([tensor(frames=40)])[0])
    assert [window.start_s for window in scored.windows] == pytest.approx([0.0, 1.0, 2.0])
    for name in ("instantaneous", "long_term"):
        mean = np.mean([getattr(window.logits, name) for window in scored.windows])
        assert getattr(scored.logits, name) == pytest.approx(mean)


def test_the_error_of_a_reward_is_over_its_windows_and_absent_with_one(pipeline: Pipeline) -> None:
    long, short = (reward(pipeline.score_submissions([tensor(frames=frames)])[0]) for frames in (40, 16))
    assert short.standard_error is None
    assert long.standard_error and (long.standard_error.num_windows, long.standard_error.num_draws) == (3, 1)
    for name in ("instantaneous", "long_term"):
        spread = np.std([getattr(window.logits, name) for window in long.windows], ddof=1)
        assert getattr(long.standard_error, name) == pytest.approx(spread / math.sqrt(3))


def test_provenance_says_how_the_reward_came_about(pipeline: Pipeline) -> None:
    scored = reward(pipeline.score_submissions([tensor(query_seed=7)])[0]).provenance
    model = pipeline.model
    assert (scored.discriminator_version, scored.weights_digest) == (model.discriminator_version, model.weights_digest)
    assert (scored.query_seed, scored.num_tracks, scored.frames_used, scored.fps_used) == (7, 64, 16, 12.0)
    assert (scored.height_px, scored.width_px) == (144, 256)
    assert 0 < scored.mean_visibility <= 1
    assert 0 < scored.mean_confidence <= 1


def test_only_clips_of_a_group_share_query_points() -> None:
    group = [tensor(seed=seed, group_id="g", run_id="r") for seed in range(2)]
    assert query_seed(group[0]) == query_seed(group[1])
    assert query_seed(group[0]) != query_seed(tensor(group_id="g", run_id="other"))
    assert query_seed(tensor(seed=0)) != query_seed(tensor(seed=1))
    assert query_seed(tensor(group_id="g", query_seed=5)) == 5


def test_a_bad_clip_does_not_affect_others(pipeline: Pipeline) -> None:
    broken = Submission(payload=b"not a video", media=Media.CONTAINER)
    outcomes = pipeline.score_submissions([broken, tensor(), tensor(frames=3)])
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.INVALID, OutcomeKind.OK, OutcomeKind.INVALID]
    assert [outcome.error.code for outcome in outcomes if outcome.error] == ["unreadable_clip", "clip_too_short"]


def test_another_pinned_version_fails_and_names_the_served_one(pipeline: Pipeline) -> None:
    (outcome,) = pipeline.score_submissions([tensor(discriminator_version="embedded-0")])
    assert outcome.kind is OutcomeKind.FAILED
    assert outcome.error is not None
    assert outcome.error.code == "version_not_served"
    assert pipeline.model.discriminator_version in outcome.error.message
    (pinned,) = pipeline.score_submissions([tensor(discriminator_version=pipeline.model.discriminator_version)])
    assert pinned.kind is OutcomeKind.OK


def test_a_non_finite_logit_is_a_failure_never_a_number() -> None:
    profile = EmbeddedProfile()
    discriminators = load_discriminators(profile)
    with torch.no_grad():
        discriminators.instantaneous.head.bias.fill_(math.nan)
    (outcome,) = Pipeline(profile, discriminators, Settings(num_tracks=64)).score_submissions([tensor()])
    assert outcome.kind is OutcomeKind.FAILED
    assert outcome.error is not None
    assert outcome.error.code == NonFiniteLogit("").code


def test_discriminators_for_other_features_are_refused() -> None:
    other = EmbeddedProfile(correlation_scales=2)
    with pytest.raises(NotReady, match="motion-reward pretrain"):
        load_discriminators(other)


def test_a_missing_checkpoint_names_the_command_that_makes_one(tmp_path: object) -> None:
    with pytest.raises(NotReady, match="motion-reward pretrain"):
        Pipeline.load(Settings(checkpoint=f"{tmp_path}/none.safetensors"))  # type: ignore[arg-type]


def test_logits_refuse_non_finite_values() -> None:
    with pytest.raises(ValueError, match="finite"):
        Logits(instantaneous=math.inf, long_term=0.0)
