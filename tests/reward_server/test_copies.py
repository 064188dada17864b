"""Tests the copies of a run's real clips that its gate attacks with: which clips have them, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from protos.codec import clip_to_tensor
from protos.types import Clip, Context, Media, Origin, Reward, Submission
from reward_server.pipeline import Pipeline
from reward_server.pipeline.copies import KINDS, NOISE_LEVELS, ONE_IN, copies, is_copied
from reward_server.profiles.run_clips import ABOUT, About, RunClip, pack_clip, read_clip
from tests.media import texture
from tests.run_clips import motion

REAL = Context(run_id="r", group_id="g", origin=Origin.REAL)


def textured(height: int = 96, width: int = 128, *, step: int = 2) -> Clip:
    return Clip(frames=texture(16, height, width, step=step).transpose(0, 3, 1, 2).copy(), fps=12.0)


def drawn(wanted: bool) -> Context:
    """A real clip's context, of a group that is drawn or not."""
    contexts = (replace(REAL, group_id=f"g{number}") for number in range(200))
    return next(context for context in contexts if is_copied(context) is wanted)


def test_one_group_in_eight_is_drawn_and_only_its_real_clip() -> None:
    groups = [replace(REAL, group_id=f"g{number}") for number in range(4000)]
    assert sum(map(is_copied, groups)) == pytest.approx(len(groups) / ONE_IN, rel=0.15)
    chosen = drawn(True)
    assert not is_copied(replace(chosen, origin=Origin.ROLLOUT))
    assert not is_copied(replace(chosen, run_id="", origin=None))


def test_copies_hold_or_glide_over_the_first_frame_under_noise() -> None:
    clip = textured()
    held, gliding = copies(clip, seed=3)
    assert len(KINDS) == 2 and held.fps == gliding.fps == clip.fps
    off = held.frames.astype(float) - clip.frames[0].astype(float)
    assert off.std() == pytest.approx(NOISE_LEVELS, rel=0.1)
    assert all((first != second).any() for first, second in zip(held.frames[:-1], held.frames[1:], strict=True))
    still, moved = (np.abs(one.frames[-1].astype(float) - one.frames[0]).mean() for one in (held, gliding))
    assert moved > 1.5 * still
    assert np.array_equal(copies(clip, seed=3)[1].frames, gliding.frames)


@pytest.mark.parametrize("clip", [textured(24, 128), textured(step=0)], ids=["small", "still"])
def test_a_clip_that_is_too_small_or_still_has_none(clip: Clip) -> None:
    assert copies(clip, seed=0) == []


def features(pipeline: Pipeline, context: Context) -> tuple[RunClip, Reward]:
    submission = Submission(payload=clip_to_tensor(textured()), media=Media.TENSOR, context=context)
    (scored,) = pipeline.score([pipeline.prepare(submission)])
    assert isinstance(scored.result, Reward)
    return read_clip(scored.features), scored.result


def test_a_drawn_real_clip_is_kept_with_its_copies_and_what_the_gate_needs(small_pipeline: Pipeline) -> None:
    alone, _ = features(small_pipeline, drawn(False))
    clip, reward = features(small_pipeline, drawn(True))
    assert reward.dynamics is not None
    assert (len(alone.copies), len(clip.copies)) == (0, len(KINDS))
    assert clip.about.amount == reward.dynamics.total_motion
    held, gliding = clip.copies
    assert clip.packed.keys() == held.packed.keys() == gliding.packed.keys()
    assert held.num_tracks == clip.num_tracks and held.num_pairs == 1
    assert held.about.terms[1] < clip.about.terms[1], "stillness lowers the long-term logit"
    moves = [tracks.float().diff(dim=1).abs().mean() for tracks in (held.packed["tracks"], clip.packed["tracks"])]
    assert moves[0] < 0.2 * moves[1]


def test_without_a_gate_no_copies_are_measured(small_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_pipeline, "_settings", small_pipeline._settings.model_copy(update={"gate_min_clips": 0}))
    assert features(small_pipeline, drawn(True))[0].copies == []


def test_copies_that_cannot_be_measured_cost_no_reward(
    small_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> list[Clip]:
        raise MemoryError

    monkeypatch.setattr("reward_server.pipeline.pipeline.copies", failing)
    clip, reward = features(small_pipeline, drawn(True))
    assert clip.copies == [] and reward.combined and "kept without copies" in caplog.text


def test_networks_on_a_cpu_measure_no_copies(small_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(small_pipeline.profile), "parallel_clips", False)
    assert features(small_pipeline, drawn(True))[0].copies == []


def test_packed_copies_are_read_back_from_the_first_part() -> None:
    about = About(amount=0.25, terms=(-1.0, 2.0))
    copied = [(motion(Origin.ROLLOUT, seed), About(terms=(seed, 0.0))) for seed in range(2)]
    parts = pack_clip(motion(Origin.REAL, 0), num_pairs=4, group_id="g", about=about, copies=copied)
    for given in (parts[:1], parts):
        clip = read_clip(given)
        assert clip.about == about and [copy.about.terms[0] for copy in clip.copies] == [0.0, 1.0]
        alone = read_clip(pack_clip(motion(Origin.ROLLOUT, 1), num_pairs=1, group_id="g"))
        assert all(torch.equal(clip.copies[1].packed[name], tensor) for name, tensor in alone.packed.items())


def test_a_clip_of_an_older_worker_tells_no_amount() -> None:
    (part, *more) = pack_clip(motion(Origin.REAL, 0), num_pairs=2, group_id="g")
    old = {name: tensor for name, tensor in load(part).items() if name != ABOUT}
    clip = read_clip([save(old), *more])
    assert np.isnan(clip.about.amount) and clip.about.terms == (0.0, 0.0) and clip.copies == []
