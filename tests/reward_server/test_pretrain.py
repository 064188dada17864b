"""Tests pretraining: the feature cache, the loss (Eq. 7), resuming a run, and scoring with a checkpoint."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from protos.client import submission
from protos.codec import clip_to_tensor
from protos.types import DISCRIMINATORS, Clip, DiscriminatorName
from reward_server.data.manifest import Entry, write_manifest
from reward_server.data.shots import Shot, find_clips
from reward_server.decoding.sampling import Sampling
from reward_server.errors import BadRequest, UnreadableClip
from reward_server.pipeline import Pipeline
from reward_server.profiles.discriminators import SHIPPED
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.settings import Settings
from reward_server.training import discriminator_trainer
from reward_server.training import pretrain as pretraining
from reward_server.training.discriminator_trainer import (
    DiscriminatorTrainer,
    HeldOut,
    TrainingConfig,
    update_average,
)
from reward_server.training.examples import split_by_source, views_of
from reward_server.training.feature_cache import FeatureCache, Sample
from reward_server.training.jobs import ProfileSource
from reward_server.training.losses import adversarial_bce, amount_slope, logit_penalty, pair_bce, view_loss, with_noise
from reward_server.training.pretrain import pretrain
from reward_server.training.pretrain_config import Restraint
from reward_server.training.samples import CacheConfig
from reward_server.training.symmetry import PLAIN
from reward_server.training.views import Take, draw_view
from tests.media import texture, video

PROFILE = EmbeddedProfile()
TINY = TrainingConfig(
    steps=6,
    views_per_step=2,
    negatives_per_view=1,
    tracks_per_step=16,
    evaluate_every=3,
    evaluate_tracks=16,
    bf16=False,
    symmetries=True,
)


def sample(key: str, *, source: str = "s", view: str = "v", fault: str = "", num: int = 16) -> Sample:
    return Sample(key=key, source=source, view=view, real=not fault, fault=fault, strength=1.0, shape=(num, 144, 256))


def clip_of(seed: int, *, moving: bool) -> Clip:
    frames = texture(16, 144, 256, seed=seed).transpose(0, 3, 1, 2).copy()
    return Clip(frames=frames if moving else np.repeat(frames[:1], 16, axis=0), fps=12.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Four sources, each with a moving texture and the same texture standing still."""
    cache = FeatureCache(tmp_path_factory.mktemp("features"))
    samples = []
    for seed in range(4):
        for fault in ("", "static"):
            one = sample(f"{seed}{fault or 'real'}", source=str(seed), view=str(seed), fault=fault)
            motion = PROFILE.motion(clip_of(seed, moving=not fault), query_seed=seed, num_tracks=32)
            cache.add(one, motion, num_pairs=4)
            samples.append(one)
    cache.close_part("all", samples)
    return cache


def test_the_cache_gives_back_what_the_discriminators_see(cache: FeatureCache) -> None:
    motion = PROFILE.motion(clip_of(0, moving=True), query_seed=0, num_tracks=32)
    exact = PROFILE.track_tokens(motion.tracks, motion.visibility, motion.confidence, motion.correlation)
    cached = cache.tokens(sample("0real"), PROFILE, 0, 32)
    assert cached.shape == exact.shape
    low = slice(0, 2 + 75 + 4 + 24)  # state, correlation and displacement up to sin(2^5 p): coarser than 1/64 px
    assert torch.allclose(cached[..., low], exact[..., low], atol=0.012)
    maps = cache.maps(sample("0real"), 0, 4)
    exact_maps = PROFILE.residual_maps(motion)[[0, 5, 9, 14]]
    assert torch.allclose(maps[:, 1], exact_maps[:, 1], atol=1 / 255)
    error = (maps[:, 0] - exact_maps[:, 0]).abs()
    assert bool((error <= exact_maps[:, 0].abs().sqrt() / 8 + 0.005).all())


def test_only_finished_parts_are_read(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.close_part("a", [sample("one")])
    (tmp_path / "index-b.partial").write_text("half a li")
    assert [found.key for found in cache.samples({"a", "b"})] == ["one"]
    assert cache.has_part("a")
    assert not cache.has_part("b")


def test_loss_is_the_sum_of_two_means() -> None:
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([1.0])
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2 + math.log1p(math.exp(1))
    assert float(adversarial_bce(real, fake)) == pytest.approx(expected)


def test_smoothed_labels_are_best_met_by_their_own_logit() -> None:
    best = math.log(0.9 / 0.1)
    for away in (-0.5, 0.5):
        losses = [
            float(adversarial_bce(torch.tensor([logit]), torch.tensor([-logit]), smoothing=0.1))
            for logit in (best, best + away)
        ]
        assert losses[0] < losses[1]


def test_the_logit_penalty_counts_both_sides_half() -> None:
    penalty = logit_penalty(torch.tensor([3.0, 3.0, 3.0]), torch.tensor([-1.0]))
    assert float(penalty) == pytest.approx((9 + 1) / 2)
    real, fake, amounts = torch.tensor([3.0]), torch.tensor([-1.0]), torch.tensor([1.0])
    plain, penalised = (
        float(view_loss(real, fake, amounts, pair_weight=0, amount_weight=0, penalty_weight=weight))
        for weight in (0.0, 0.1)
    )
    assert penalised - plain == pytest.approx(0.5)


def test_instance_noise_is_in_deviations_of_each_channel_and_alike_on_both_sides() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, 50, 3) * torch.tensor([1.0, 10.0, 0.0])
    noise = with_noise(inputs, 0.5, channels=-1) - inputs
    deviations = noise.std(dim=(0, 1))
    assert deviations[:2].tolist() == pytest.approx([0.5, 5.0], rel=0.15)
    assert deviations[2] == 0  # a constant channel stays as it is
    sides = noise[:4, :, 1].std(), noise[4:, :, 1].std()
    assert float(sides[0] / sides[1]) == pytest.approx(1, rel=0.2)


def test_the_amount_slope_sees_only_motion_above_the_least() -> None:
    amounts = torch.tensor([0.1, 0.2, 0.4, 0.8])
    rising = 3 * amounts.log()
    assert float(amount_slope(rising, amounts)) == pytest.approx(9, rel=0.35)  # shrunk
    assert float(amount_slope(rising, amounts)) == pytest.approx(float(amount_slope(-rising, amounts)))
    assert float(amount_slope(torch.tensor([1.0, 1.0, 1.0, 1.0]), amounts)) == 0
    assert float(amount_slope(rising, torch.tensor([0.01, 0.02, 0.03, 0.04]))) == 0


def test_only_negatives_of_a_clips_own_scene_are_ordered_against_it() -> None:
    real, fake, amounts = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0, 5.0, 6.0]), torch.tensor([0.1, 0.4])

    def pairs(*shared: bool) -> float:
        with_order, without = (
            float(view_loss(real, fake, amounts, pair_weight=weight, amount_weight=0, shared=shared))
            for weight in (2.0, 0.0)
        )
        return with_order - without

    assert pairs() == pytest.approx(pairs(True, True)) == pytest.approx(2 * float(pair_bce(real[[0, 0, 1, 1]], fake)))
    assert pairs(True, False) == pytest.approx(float(pair_bce(real[[0, 0]], fake[:2])))
    assert pairs(False, False) == 0


def test_average_moves_by_one_minus_decay() -> None:
    average, module = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(average.weight, 1.0)
    nn.init.constant_(module.weight, 3.0)
    update_average(average, module, 0.75)
    assert average.weight.item() == pytest.approx(1.5)


def test_views_pair_a_clip_with_its_own_or_generated_negatives() -> None:
    twin, own, other = sample("t", fault="static"), sample("o", fault="generated"), sample("x", fault="generated")
    own, other = dataclasses.replace(own, view="w"), dataclasses.replace(other, view="y", source="z")
    lone = dataclasses.replace(sample("r2"), view="v2")
    views = views_of([sample("r"), lone, twin, own, other])
    joined = {view.real.key: [n.key for n in view.negatives] for view in views}
    assert joined == {"r": ["t"], "r2": ["o"]}
    (alone,) = views_of([sample("r"), other])
    assert alone.negatives == (other,)
    assert [view.shared for view in (*views, alone)] == [True, True, False]
    assert views_of([sample("r"), sample("t", fault="static", num=8)]) == []


def test_no_source_is_both_trained_on_and_held_out(cache: FeatureCache) -> None:
    train, held_out = split_by_source(cache.samples({"all"}), 0.25, seed=0)
    assert {view.real.source for view in train}.isdisjoint(view.real.source for view in held_out)
    assert (len(train), len(held_out)) == (3, 1)
    with pytest.raises(BadRequest, match="at least 2"):
        split_by_source([train[0].real, *train[0].negatives], 0.5, seed=0)


def test_no_generated_clip_is_both_trained_on_and_held_out() -> None:
    """Regression: views without generated clips of their own got all of them, in both splits."""
    real = [sample(f"r{i}", source=f"r{i}", view=f"r{i}") for i in range(6)]
    generated = [sample(f"g{i}", source=f"g{i}", view=f"g{i}", fault="generated") for i in range(6)]
    train, held_out = split_by_source([*real, *generated], 0.34, seed=0)
    sides = [{clip.key for view in side for clip in (view.real, *view.negatives)} for side in (train, held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert [len(side) for side in sides] == [8, 4]
    with pytest.raises(BadRequest, match="0 to hold out"):
        split_by_source([*real, generated[0]], 0.34, seed=0)


@pytest.mark.parametrize("name", ["instantaneous", "long_term"])
def test_views_one_by_one_give_the_gradients_of_all_at_once(
    cache: FeatureCache, tmp_path: Path, name: DiscriminatorName
) -> None:
    views = views_of(cache.samples({"all"}))
    steps = []
    for at_once in (4, 1):
        config = dataclasses.replace(
            TINY, views_per_step=4, views_at_once=at_once, tracks_per_step=32, pairs_per_step=4
        )
        trainer = DiscriminatorTrainer(name, PROFILE, cache, config, tmp_path / str(at_once))
        trainer.discriminator.eval()  # no dropout, because it is drawn anew in every pass
        trainer.train(views, views[:1])
        steps.append(trainer.discriminator.state_dict())
    assert all(torch.allclose(steps[0][key], steps[1][key], atol=2e-5) for key in steps[0])


@pytest.mark.parametrize("name", ["instantaneous", "long_term"])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    cache: FeatureCache, tmp_path: Path, name: DiscriminatorName
) -> None:
    views = views_of(cache.samples({"all"}))

    def run(folder: str, steps: int) -> dict[str, torch.Tensor]:
        trainer = DiscriminatorTrainer(name, PROFILE, cache, dataclasses.replace(TINY, steps=steps), tmp_path / folder)
        trainer.train(views[:3], views[3:])
        return trainer.discriminator.state_dict()

    whole = run("whole", 6)
    run("parts", 3)
    resumed = run("parts", 6)
    # the cosine schedule depends on the run's length, so both runs here are within the warm-up
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_with_other_settings_is_not_resumed(cache: FeatureCache, tmp_path: Path) -> None:
    views = views_of(cache.samples({"all"}))
    DiscriminatorTrainer("long_term", PROFILE, cache, TINY, tmp_path).train(views[:3], views[3:])
    other = dataclasses.replace(TINY, learning_rate=1e-4)
    with pytest.raises(BadRequest, match="other clips or settings"):
        DiscriminatorTrainer("long_term", PROFILE, cache, other, tmp_path).train(views[:3], views[3:])


def test_the_reference_table_has_the_tracks_of_the_profile_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "heads.safetensors", list[int]()
    out.write_bytes(SHIPPED["embedded"].read_bytes())

    def table(clips: list[object], pipeline: Pipeline) -> bytes:
        seen.append(pipeline.model.input.num_tracks)
        raise BadRequest("too few clips")

    monkeypatch.setattr(pretraining, "reference_table", table)
    monkeypatch.setenv("MOTION_REWARD_NUM_TRACKS", "64")
    pretraining._add_reference(out, [], ProfileSource(name="embedded"), 1)
    assert seen == [PROFILE.num_tracks]


def test_held_out_pairs_and_the_loss_are_of_clips_of_one_scene(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = views_of(cache.samples({"all"}))
    strange = [dataclasses.replace(view, shared=False) for view in views]
    trainer = DiscriminatorTrainer("long_term", PROFILE, cache, TINY, tmp_path)
    alone = trainer.evaluate(strange)
    assert alone.pairs == alone.auc
    assert trainer.evaluate([views[0], *strange[1:]]).pairs == trainer.evaluate(views[:1]).pairs
    seen: list[list[bool]] = []
    monkeypatch.setattr(
        discriminator_trainer, "view_loss", lambda *logits, shared, **rest: seen.append(shared) or logits[0].sum()
    )
    trainer._loss([views[0], strange[1]], PLAIN, np.random.default_rng(0))
    assert seen == [[True, False]]


def test_a_finished_run_takes_no_further_step(cache: FeatureCache, tmp_path: Path) -> None:
    views = views_of(cache.samples({"all"}))
    steps = []
    for _ in range(2):
        trainer = DiscriminatorTrainer("long_term", PROFILE, cache, TINY, tmp_path)
        trainer.train(views[:3], views[3:])
        steps.append(trainer.step)
    assert steps == [TINY.steps, TINY.steps]


def test_training_stops_at_a_stated_held_out_auc(cache: FeatureCache, tmp_path: Path) -> None:
    """At the first evaluation that reaches it; also after a resume, which may ask for more."""
    views = views_of(cache.samples({"all"}))

    def steps_with(stop_auc: float, aucs: list[float]) -> int:
        config = dataclasses.replace(TINY, steps=12, stop_auc=stop_auc)
        trainer = DiscriminatorTrainer("long_term", PROFILE, cache, config, tmp_path)
        trainer.evaluate = lambda _: HeldOut(auc=aucs.pop(0), pairs=0.5, loss=1.0)  # type: ignore[method-assign]
        trainer.train(views[:3], views[3:])
        return trainer.step

    assert steps_with(0.9, [0.5, 0.95]) == 6
    assert steps_with(0.9, []) == 6
    assert steps_with(0.98, [0.99]) == 9
    assert steps_with(0.0, [1.0]) == 12


@pytest.mark.parametrize(("keep", "step"), [("figures", 6), ("loss", 3)])
def test_the_kept_average_has_the_best_figures_or_the_lowest_loss(
    cache: FeatureCache, tmp_path: Path, keep: Literal["figures", "loss"], step: int
) -> None:
    """The loss rises again while the AUC still does: logits have grown more than the separation."""
    views = views_of(cache.samples({"all"}))
    config = dataclasses.replace(TINY, keep=keep)
    trainer = DiscriminatorTrainer("long_term", PROFILE, cache, config, tmp_path)
    found = [HeldOut(auc=0.9, pairs=0.9, loss=0.3), HeldOut(auc=1.0, pairs=1.0, loss=0.4)]
    trainer.evaluate = lambda _: found.pop(0)  # type: ignore[method-assign]
    assert trainer.train(views[:3], views[3:]) == {"figures": 1.0, "loss": 0.9}[keep]
    assert trainer.best_step == step


def test_held_out_loss_is_the_plain_loss_of_the_average(cache: FeatureCache, tmp_path: Path) -> None:
    views = views_of(cache.samples({"all"}))
    config = dataclasses.replace(TINY, label_smoothing=0.2)
    trainer = DiscriminatorTrainer("long_term", PROFILE, cache, config, tmp_path)
    real = torch.tensor([trainer.logit(view.real) for view in views])
    fake = torch.tensor([trainer.logit(sample) for view in views for sample in view.negatives])
    expected = adversarial_bce(real, fake)
    assert trainer.evaluate(views).loss == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["instantaneous", "long_term"])
def test_restraints_change_the_training_and_resume_exactly(
    cache: FeatureCache, tmp_path: Path, name: DiscriminatorName
) -> None:
    views = views_of(cache.samples({"all"}))

    def run(folder: str, steps: int, **options: float) -> dict[str, torch.Tensor]:
        config = dataclasses.replace(TINY, steps=steps, **options)  # type: ignore[arg-type]
        trainer = DiscriminatorTrainer(name, PROFILE, cache, config, tmp_path / folder)
        trainer.train(views[:3], views[3:])
        return trainer.discriminator.state_dict()

    plain = run("plain", 6)
    for option in ("instance_noise", "label_smoothing", "penalty_weight"):
        changed = run(option, 6, **{option: 0.1})
        assert any(not torch.equal(plain[key], changed[key]) for key in plain), option
    run("cut", 3, instance_noise=0.1)
    resumed, whole = run("cut", 6, instance_noise=0.1), run("noise", 6, instance_noise=0.1)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_of_an_older_version_is_resumed(cache: FeatureCache, tmp_path: Path) -> None:
    """It has neither the newer settings nor the newer figures in its state."""
    views = views_of(cache.samples({"all"}))
    short = dataclasses.replace(TINY, steps=3)
    DiscriminatorTrainer("long_term", PROFILE, cache, short, tmp_path).train(views[:3], views[3:])
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["held_out"]
    for key in ("stop_auc", "keep", "instance_noise", "label_smoothing", "penalty_weight"):
        del state["config"][key]
    torch.save(state, tmp_path / "last.pt")
    trainer = DiscriminatorTrainer("long_term", PROFILE, cache, TINY, tmp_path)
    trainer.train(views[:3], views[3:])
    assert trainer.step == TINY.steps


def test_only_training_against_generated_clips_stops_at_an_auc() -> None:
    config = TrainingConfig()
    assert Restraint().on(config) == config  # so `make weights` trains as before
    stops = Restraint(stop_auc=0.98).on(config)
    assert (stops.stop_auc, stops.keep, stops.evaluate_every) == (0.98, "loss", 100)
    assert stops.patience * stops.evaluate_every == config.patience * config.evaluate_every


def test_stop_and_noise_are_on_against_generated_clips_alone_unless_given() -> None:
    assert Restraint.of(generated_alone=False) == Restraint()
    assert Restraint.of(generated_alone=True) == Restraint(stop_auc=0.98, instance_noise=0.1)
    assert Restraint.of(generated_alone=True, stop_auc=0.0, instance_noise=0.0) == Restraint()
    assert Restraint.of(generated_alone=False, instance_noise=0.2) == Restraint(instance_noise=0.2)


def test_a_run_on_other_clips_is_not_resumed(cache: FeatureCache, tmp_path: Path) -> None:
    views = views_of(cache.samples({"all"}))
    DiscriminatorTrainer("long_term", PROFILE, cache, TINY, tmp_path).train(views[:2], views[3:])
    with pytest.raises(BadRequest, match="other clips or settings"):
        DiscriminatorTrainer("long_term", PROFILE, cache, TINY, tmp_path).train(views[:3], views[3:])


@pytest.mark.slow
def test_a_discriminator_learns_to_tell_still_from_moving(cache: FeatureCache, tmp_path: Path) -> None:
    views = views_of(cache.samples({"all"}))
    config = dataclasses.replace(TINY, steps=60, warmup_steps=5, learning_rate=2e-3, evaluate_every=60, ema=0.9)
    trainer = DiscriminatorTrainer("long_term", PROFILE, cache, config, tmp_path)
    assert trainer.train(views[:3], views[3:]) == 1.0


def test_views_keep_the_profiles_size_rate_and_length() -> None:
    source, sampling, rng = texture(90, 180, 320), Sampling(), np.random.default_rng(0)
    take = Take(positions=np.arange(90), fps=30.0, height_px=180, width_px=320)
    for _ in range(20):
        drawn = draw_view(take, sampling, rng)
        view = drawn.clip([drawn.cut(at, source[frame]) for at, frame in enumerate(drawn.positions)])
        num, _, height, width = view.frames.shape
        assert sampling.min_frames <= num <= sampling.window_frames
        assert 7.5 <= view.fps <= 18.0
        assert height % 16 == width % 16 == 0
        assert 0.75 < height * width / sampling.area_px < 1.25


def test_a_camera_path_can_end_on_the_whole_frame() -> None:
    """Regression: rounding made a box higher than the frame, so that its position could not be drawn."""
    take = Take(positions=np.arange(24), fps=24.0, height_px=80, width_px=160)
    for seed in range(120):
        draw_view(take, Sampling(), np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_of_videos_becomes_a_checkpoint_that_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "real").mkdir()
    textures = [texture(24, 144, 256, seed=seed) for seed in range(3)]
    textures[2] = np.concatenate([textures[2] // 3, 150 + textures[0] // 3])  # a cut
    for seed, frames in enumerate(textures):
        (tmp_path / "real" / f"{seed}.mp4").write_bytes(video(frames, fps=12))
    (tmp_path / "real" / "broken.mp4").write_bytes(b"not a video")
    out = tmp_path / "discriminators.safetensors"
    figures = pretrain(
        real=[tmp_path / "real"],
        generated=None,
        out=out,
        work=tmp_path / "work",
        cache_config=CacheConfig(frames_per_view=12, negatives_per_view=2, num_tracks=32, num_pairs=3),
        training=dict.fromkeys(DISCRIMINATORS, TINY),
        held_out_share=0.3,
        processes=1,
    )
    assert set(figures) == {"instantaneous", "long_term"}
    assert f"skipped {tmp_path / 'real' / 'broken.mp4'}: the payload's 11 bytes are text" in capsys.readouterr().out
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert re.match(rf"{re.escape(str(tmp_path))}/real/2\.mp4: cuts: 1 cut\(s\), at 2\.00 s", told[0])
    pipeline = Pipeline.load(Settings(checkpoint=out, num_tracks=32))
    (outcome,) = pipeline.score_submissions([submission(tmp_path / "real" / "0.mp4")])
    assert outcome.reward is not None, outcome.error
    assert outcome.reward.provenance.discriminator_version == pipeline.model.discriminator_version


def test_cached_features_depend_on_the_clips_content(tmp_path: Path) -> None:
    """Regression: another clip at the same path, as `trainer rollout` writes, got the first clip's features."""
    parts = []
    for content in (b"one", b"two", b"one"):
        (tmp_path / "00000.mp4").write_bytes(content)
        (clip,) = find_clips(tmp_path, real=False)
        parts.append(clip.part)
    assert parts[0] == parts[2] != parts[1]
    assert find_clips(tmp_path, real=True)[0].part != parts[2]


def test_generated_clips_of_a_manifest_are_not_real(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    licence = "CC0-1.0"
    entry = Entry(source="a", path=tmp_path / "a.mp4", first=0, last=9, split="train", kind="scene", licence=licence)
    write_manifest(tmp_path / "manifest.jsonl", [entry])
    assert [clip.real for clip in find_clips(tmp_path, real=False)] == [False]


def test_tensor_clips_of_a_folder_are_read_like_videos(tmp_path: Path) -> None:
    clip = clip_of(0, moving=True)
    (tmp_path / "rollout.safetensors").write_bytes(clip_to_tensor(clip))
    (found,) = find_clips(tmp_path, real=False)
    shot = Shot(path=found.path, first=2, last=12).clip(max_side_px=128)
    assert (shot.frames.shape, shot.fps) == ((10, 3, 72, 128), 12.0)
    (tmp_path / "rollout.safetensors").write_bytes(b"no tensor")
    with pytest.raises(UnreadableClip, match=r"rollout\.safetensors: the payload's 9 bytes are text"):
        Shot(path=found.path, last=9).clip()


def test_an_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"\.mp4"):
        find_clips(tmp_path, real=True)


HOLDS_A_HELPER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from reward_server.training.jobs import as_helper
pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=as_helper)
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 600).result()
"""


def test_helpers_end_when_the_command_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS_A_HELPER], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        helper = psutil.Process(int(command.stdout.readline()))
        command.kill()
    assert not psutil.wait_procs([helper], timeout=30)[1]
