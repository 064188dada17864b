"""Tests the toy base: its command, what it shows against the random one and the data, and its clips and picture."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from experiments.toy import base as toy
from experiments.toy.__main__ import app
from experiments.toy.scenes import draw_clips
from protos.codec import tensor_to_clip
from protos.types import Clip
from trainer.config import load
from trainer.policies.loading import make_policy
from trainer.policies.protocol import PolicyError
from trainer.policies.shipped import DIGEST, TOY_SVD, digest_of, toy_svd
from trainer.run import with_base
from trainer.video import side_by_side, write_clip

NUM = 4


@pytest.fixture(scope="module")
def real() -> list[Clip]:
    """Scenes that the base was not trained on."""
    return list(draw_clips(NUM, seed=1000))


def samples(real: list[Clip], folder: Path, **changes: Any) -> list[Clip]:
    """A sample of the preset `tiny` for each first frame. `changes` replace fields of its policy."""
    torch.set_num_threads(1)
    policy = make_policy(with_base(replace(load("tiny").policy, **changes), folder))
    return [
        policy.decode(policy.sample(example, [seed]))[0]
        for seed, example in enumerate(policy.encode(real, [""] * len(real)))
    ]


def pixels(clips: list[Clip]) -> np.ndarray:
    return np.stack([clip.frames for clip in clips]).astype(float)


def ball_paths(clips: list[Clip]) -> np.ndarray:
    """Centres of what is coloured, [B,T,2] (y, x): walls are grey."""
    frames = pixels(clips)
    colour = np.clip(frames.max(axis=2) - frames.min(axis=2) - 40, 0, None) + 1e-6
    rows, columns = np.mgrid[: frames.shape[3], : frames.shape[4]]
    return np.stack([(colour * at).sum((2, 3)) / colour.sum((2, 3)) for at in (rows, columns)], axis=-1)


@pytest.fixture(scope="module")
def shown(real: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], list[Clip]]:
    """Samples of the shipped base and of the random one."""
    folder = tmp_path_factory.mktemp("bases")
    return samples(real, folder), samples(real, folder, base="tiny-svd", num_steps=2)


def test_the_samples_look_like_scenes_and_those_of_random_weights_do_not(
    real: list[Clip], shown: tuple[list[Clip], list[Clip]]
) -> None:
    trained, random = (np.abs(pixels(clips) - pixels(real)).mean() for clips in shown)
    assert trained < 20 < random


def test_the_samples_move_as_much_as_scenes(real: list[Clip], shown: tuple[list[Clip], list[Clip]]) -> None:
    def path_px(clips: list[Clip]) -> float:
        return float(np.linalg.norm(np.diff(ball_paths(clips), axis=1), axis=-1).mean())

    assert 0.6 * path_px(real) < path_px(shown[0]) < 1.5 * path_px(real)


def test_each_sample_begins_where_its_first_frame_is(real: list[Clip], shown: tuple[list[Clip], list[Clip]]) -> None:
    apart = np.linalg.norm(ball_paths(shown[0])[:, 0] - ball_paths(real)[:, 0], axis=-1)
    assert apart.max() < 2


def test_the_published_base_is_what_the_code_pins() -> None:
    assert digest_of(TOY_SVD) == DIGEST
    assert f"`{DIGEST}`" in (TOY_SVD / "README.md").read_text()
    assert sum(path.stat().st_size for path in TOY_SVD.rglob("*") if path.is_file()) < 2.6e6


@pytest.mark.parametrize("change", ["weights", "added"])
def test_a_changed_base_is_refused(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "toy-svd"
    shutil.copytree(TOY_SVD, folder)
    assert toy_svd(folder) == folder
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if change == "weights":
        weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    else:
        shutil.copy(weights, folder / "unet" / "more.safetensors")
    with pytest.raises(PolicyError, match=rf"its digest is {digest_of(folder)}, but {DIGEST} is pinned"):
        toy_svd(folder)


def test_the_command_trains_a_base_with_a_card_and_goes_on_after_the_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    done = CliRunner().invoke(app, ["base", "--size", "smoke", "--out", str(whole)], catch_exceptions=False)
    assert digest_of(whole) in done.output and digest_of(whole) in (whole / "README.md").read_text()
    with safe_open(whole / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(toy, "train_denoiser", interrupted)
        toy.train_toy(halved, toy.SIZES["smoke"], seed=0)
    monkeypatch.setattr(toy, "train_autoencoder", interrupted)
    assert digest_of(toy.train_toy(halved, toy.SIZES["smoke"], seed=0)) == digest_of(whole)
    assert not list(tmp_path.glob("*.*")), "the autoencoder's folder is removed"


def interrupted(*given: object) -> None:
    raise KeyboardInterrupt


def test_clips_are_lossless_and_faster_at_a_higher_pace(tmp_path: Path) -> None:
    for name, pace in (("slow", "1"), ("fast", "2")):
        command = ["clips", "--num", "3", "--pace", pace, "--out", str(tmp_path / name)]
        CliRunner().invoke(app, command, catch_exceptions=False)
    slow, fast = (
        [tensor_to_clip(path.read_bytes()) for path in sorted((tmp_path / name).iterdir())] for name in ("slow", "fast")
    )
    assert np.array_equal(pixels(slow), pixels(list(draw_clips(3, seed=1))))
    assert np.array_equal(pixels(slow)[:, 0], pixels(fast)[:, 0]), "the first frames are the same"
    changes = [np.abs(np.diff(pixels(clips), axis=1)).mean() for clips in (slow, fast)]
    assert changes[1] > 1.3 * changes[0]


def test_the_picture_has_a_row_for_each_clip(tmp_path: Path, real: list[Clip]) -> None:
    write_clip(tmp_path / "00000-real-base-checkpoint.gif", side_by_side(real[:3]))
    out = tmp_path / "toy.png"
    result = CliRunner().invoke(app, ["picture", "--evaluation", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0
    with Image.open(out) as picture:
        assert picture.width > picture.height
