"""Tests generated clips beside faulty ones as negatives: their weights, their share of the loss, and the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_server.errors import BadRequest
from reward_server.stats import auc
from reward_server.training.discriminator_trainer import DiscriminatorTrainer, TrainingConfig
from reward_server.training.examples import views_of
from reward_server.training.feature_cache import GENERATED, FeatureCache, Sample
from reward_server.training.generated import RATIO_BOUNDS, GeneratedClips, density_ratios, weighed
from reward_server.training.losses import Generated, adversarial_bce, amount_slope, view_loss
from reward_server.training.pretrain import pretrain
from reward_server.training.samples import CacheConfig
from tests.media import texture, video
from tests.reward_server.test_pretrain import PROFILE, TINY, clip_of, sample

SHAPE = (16, 144, 256)


def crowd(num: int, *, source: str = "g", **looks: float) -> list[Sample]:
    return [
        dataclasses.replace(sample(f"{source}{i}", source=source, view=f"{source}{i}", fault=GENERATED), **looks)
        for i in range(num)
    ]


def test_the_ratios_make_one_side_look_like_the_other() -> None:
    rng = np.random.default_rng(0)
    ours, others = rng.normal(0, 1, (800, 2)), rng.normal((0.6, 0), 1, (800, 2))
    ratios = density_ratios(ours, others)
    assert float(np.average(ours[:, 0], weights=ratios)) == pytest.approx(0.6, abs=0.12)
    assert RATIO_BOUNDS[0] <= ratios.min() < ratios.max() <= RATIO_BOUNDS[1]
    drawn = ours[rng.choice(len(ours), size=800, p=ratios / ratios.sum())]
    assert auc(others[:, 0], ours[:, 0]) > 0.62
    assert abs(auc(others[:, 0], drawn[:, 0]) - 0.5) < 0.05


def test_alike_clips_weigh_alike_and_a_measure_that_never_varies_says_nothing() -> None:
    same = np.tile(np.array([[1.0, 2.0]]), (50, 1)) * np.linspace(1, 2, 50)[:, None] ** np.array([1, 0])
    assert density_ratios(same, same) == pytest.approx(np.ones(50), abs=1e-3)


def test_a_generator_weighs_the_square_root_of_its_clips() -> None:
    clips = [*crowd(16, source="many", fps=8), *crowd(4, source="few", fps=8)]
    found = weighed(clips, crowd(5, source="real", fps=8))
    many, few = (
        sum(w for one, w in zip(clips, found.weights, strict=True) if one.source == s) for s in ("many", "few")
    )
    assert many / few == pytest.approx(2, rel=1e-3)
    with pytest.raises(BadRequest, match="0 generated and 20 real"):
        weighed([], clips)


@pytest.mark.parametrize("generated", [None, "still"], ids=["no folder", "no view"])
def test_a_share_without_generated_clips_is_refused(tmp_path: Path, generated: str | None) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "still").mkdir()
    for seed in range(2):
        (tmp_path / "real" / f"{seed}.mp4").write_bytes(video(texture(24, 144, 256, seed=seed), fps=12))
    (tmp_path / "still" / "short.mp4").write_bytes(video(texture(3, 144, 256), fps=12))
    with pytest.raises(BadRequest, match=r"0 generated|has no generated clips"):
        pretrain(
            real=[tmp_path / "real"],
            generated=generated and tmp_path / generated,
            generated_share=0.2,
            out=tmp_path / "out.safetensors",
            work=tmp_path / "work",
            cache_config=CacheConfig(negatives_per_view=1, most_views=1, num_tracks=32, num_pairs=3),
            training={},
            held_out_share=0.5,
            processes=1,
        )


def test_clips_are_drawn_by_weight_and_of_one_shape() -> None:
    short = dataclasses.replace(crowd(1, source="short")[0], shape=(8, 144, 256))
    clips = GeneratedClips(samples=(*crowd(2), short), weights=(3.0, 1.0, 100.0))
    rng = np.random.default_rng(0)
    drawn = [one.key for one in clips.draw(SHAPE, 400, rng)]
    assert set(drawn) == {"g0", "g1"}
    assert drawn.count("g0") == pytest.approx(300, abs=40)
    assert clips.draw((9, 9, 9), 2, rng) == []


def test_generated_clips_take_their_share_of_the_negatives_loss() -> None:
    real, fake, amounts = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0]), torch.tensor([0.1, 0.4])
    theirs = torch.tensor([0.5, 3.0])
    found = view_loss(
        real, fake, amounts, pair_weight=0, amount_weight=0.5,
        generated=Generated(logits=theirs, amounts=amounts, share=0.25),
    )  # fmt: skip
    expected = 0.75 * adversarial_bce(real, fake) + 0.25 * adversarial_bce(real, theirs)
    expected += 0.5 * (amount_slope(real, amounts) + amount_slope(theirs, amounts))
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.slow
def test_a_discriminator_learns_from_both_kinds(tmp_path: Path) -> None:
    """Twins stand still and generated clips are slow: with a share for these, it puts them lower."""
    cache = FeatureCache(tmp_path / "features")
    samples = [
        dataclasses.replace(sample(f"{seed}{fault or 'real'}", source=str(seed), view=str(seed), fault=fault), fps=12.0)
        for seed in range(3)
        for fault in ("", "static", GENERATED)
    ]
    for one in samples:
        clip = clip_of(int(one.source), moving=one.fault != "static")
        if one.fault == GENERATED:
            clip = dataclasses.replace(clip, frames=clip.frames[[i // 3 for i in range(16)]])
        cache.add(one, PROFILE.motion(clip, query_seed=0, num_tracks=32), num_pairs=4)
    slow = [one for one in samples if one.fault == GENERATED]
    views = views_of([one for one in samples if one not in slow])
    config = TrainingConfig(**dataclasses.asdict(TINY) | {"steps": 40, "warmup_steps": 5, "evaluate_every": 40})

    def gap(share: float) -> float:
        trainer = DiscriminatorTrainer(
            "long_term", PROFILE, cache, dataclasses.replace(config, generated_share=share), tmp_path / str(share),
            generated=weighed(slow, [view.real for view in views]),
        )  # fmt: skip
        trainer.train(views, views)
        return float(np.mean([trainer.logit(view.real) for view in views]) - np.mean([trainer.logit(s) for s in slow]))

    assert gap(0.5) > gap(0.0) + 0.2


def test_other_generated_clips_are_another_run(cache: FeatureCache, tmp_path: Path) -> None:
    views = views_of(cache.samples({"all"}))
    config = dataclasses.replace(TINY, generated_share=0.2)

    def run(*clips: Sample) -> None:
        generated = GeneratedClips(samples=clips, weights=(1.0,) * len(clips))
        DiscriminatorTrainer("long_term", PROFILE, cache, config, tmp_path, generated=generated).train(views, views)

    still = [dataclasses.replace(view.negatives[0], fault=GENERATED) for view in views]
    run(*still)
    with pytest.raises(BadRequest, match="other clips or settings"):
        run(*crowd(1))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Two sources, each with a moving texture and the same texture standing still."""
    cache = FeatureCache(tmp_path_factory.mktemp("features"))
    samples = [sample(f"{n}{f}", source=str(n), view=str(n), fault=f) for n in range(2) for f in ("", "static")]
    for one in samples:
        motion = PROFILE.motion(clip_of(int(one.source), moving=one.real), query_seed=0, num_tracks=32)
        cache.add(one, motion, num_pairs=4)
    cache.close_part("all", samples)
    return cache
