"""Tests `--profile shift` on the command line: without weights, every command says what to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from protos.client import submission
from protos.types import DISCRIMINATORS
from reward_server.models.pull import pull
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings
from reward_server.training.discriminator_trainer import TrainingConfig
from reward_server.training.pretrain import pretrain
from reward_server.training.samples import CacheConfig
from tests.frozen import published_files
from tests.media import texture, video
from tests.reward_server.test_models import run

PULL = "`motion-reward models pull shift`"


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video(texture(16, 64, 96), fps=14.0))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["score", "CLIP"],
        ["evaluate", "--real", "CLIP", "--generated", "CLIP"],
        ["sanity", "CLIP"],
        ["pretrain", "--real", "FOLDER", "--out", "discriminators.safetensors"],
        ["worker", "--redis-url", "redis://127.0.0.1:1"],
        ["serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_says_what_to_pull(command: list[str], clip_file: Path, tmp_path: Path) -> None:
    places = {"CLIP": str(clip_file), "FOLDER": str(tmp_path)}
    ended = run(*(places.get(word, word) for word in command), "--profile", "shift", home=tmp_path)
    assert ended.returncode == 1
    assert PULL in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_missing_discriminators_say_what_to_train(clip_file: Path, tmp_path: Path) -> None:
    cotracker, sea_raft = published_files(tmp_path / "published")
    pull(tmp_path / "models", {"cotracker3": cotracker, "sea_raft": sea_raft}, tell=lambda _: None)
    ended = run("score", str(clip_file), "--profile", "shift", home=tmp_path)
    assert ended.returncode == 1
    discriminators = tmp_path / "models" / "shift-discriminators.safetensors"
    assert f"motion-reward pretrain --profile shift --real DIR --generated DIR --out {discriminators}" in ended.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pull_pretrain_and_score_work_in_sequence(tmp_path: Path) -> None:
    """Pull, pretrain and score at the paper's sizes, with random frozen weights."""
    models = tmp_path / "models"
    cotracker, sea_raft = published_files(tmp_path / "published")
    pull(models, {"cotracker3": cotracker, "sea_raft": sea_raft}, tell=lambda _: None)
    for folder, seeds in (("real", (0, 1)), ("generated", (2, 3))):
        (tmp_path / folder).mkdir()
        for index, seed in enumerate(seeds):
            data = video(texture(8, 320, 576, seed=seed), fps=14.0)
            (tmp_path / folder / f"{index}.mp4").write_bytes(data)
    config = TrainingConfig(steps=1, views_per_step=1, negatives_per_view=1, evaluate_every=1, pair_weight=0.0)
    config = dataclasses.replace(config, tracks_per_step=8, pairs_per_step=1, evaluate_tracks=8, bf16=False)
    figures = pretrain(
        real=[tmp_path / "real"],
        generated=tmp_path / "generated",
        out=models / "shift-discriminators.safetensors",
        work=tmp_path / "work",
        cache_config=CacheConfig(profile="shift", frames_per_view=8, num_tracks=16, num_pairs=2),
        training=dict.fromkeys(DISCRIMINATORS, config),
        models=models,
        held_out_share=0.5,
        processes=1,
    )
    assert set(figures) == {"instantaneous", "long_term"}
    pipeline = Pipeline.load(Settings(profile="shift", models_dir=models, num_tracks=16, threads=1))
    (outcome,) = pipeline.score_submissions([submission(tmp_path / "real" / "0.mp4")])
    assert outcome.reward is not None, outcome.error
    assert outcome.reward.provenance.profile == "shift"
    listed = run("models", "list", home=tmp_path).stdout
    assert listed.count("ready") == 4
    assert json.loads((models / "cotracker3.json").read_text())["licence"] == "CC-BY-NC-4.0"
