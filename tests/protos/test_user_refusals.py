"""Tests that every `raise` of the reader's users is reached, and that its message names the file and tells what to do.

The users are the shots and views of the server's commands, and the trainer's data. The reader and decoding themselves
are in tests/reward_server/test_every_refusal.py.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from protos.reader import Source as OpenSource
from protos.reader import open_source, with_true_times
from reward_server.data.shots import Shot, find_clips, find_files, find_shots
from reward_server.decoding.sampling import Sampling
from reward_server.training.source_views import ViewPlan, source_views
from reward_server.training.views import Take, draw_view
from tests import media, odd_files
from tests.documents import ROOT
from tests.odd_table import FRAMES, coded, lossless
from tests.refusals import raises_not_reached, tells_next_step
from trainer.data import Clips, DataConfig, find_sources
from trainer.data import Source as TrainerSource
from trainer.video import ClipForm, read_clip

FILES = [
    *(ROOT / "reward_server" / name for name in ("data/shots.py", "training/source_views.py", "training/views.py")),
    *(ROOT / "trainer" / name for name in ("data.py", "picking.py", "video.py")),
]
FORM = ClipForm(num_frames=8, fps=12.0, height_px=64, width_px=96)
PLAN = ViewPlan(sampling=Sampling(), frames_per_view=6, most_views=10, max_side_px=640, seed=(0,))
SINGLE = FRAMES[:1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is called, and words of the message. It also names the file `clip.bin`, if `names_file`."""

    run: Callable[[], object]
    words: tuple[str, ...]
    names_file: bool = True


def file(payload: bytes, name: str = "clip.bin") -> Path:
    path = Path(tempfile.mkdtemp()) / name
    path.write_bytes(payload)
    return path


def lost(share: float = 0.4) -> bytes:
    return odd_files.dropped(media.texture(40), share, fps=12, seed=3)


def trained(payload: bytes, form: ClipForm = FORM, **options: float) -> object:
    return read_clip(file(payload), form, **options)


def views(payload: bytes) -> object:
    def use(source: OpenSource) -> object:
        return list(source_views(source, 0, None, PLAN))

    with open_source(payload) as opened:
        return with_true_times(opened, use)


def manifest(text: str, name: str = "clip.json") -> object:
    return find_sources([str(file(text.encode(), name))], "train")


def pictures() -> Path:
    folder = Path(tempfile.mkdtemp())
    for number in range(2):
        (folder / f"{number}.png").write_bytes(odd_files.picture(FRAMES[0], "PNG"))
    return folder


def with_train_shots_only() -> Path:
    entry = {"source": "a", "path": "clip.bin", "first": 0, "last": 8, "split": "train", "kind": "film", "licence": "x"}
    return file(json.dumps(entry).encode(), "manifest.jsonl").parent


def holed() -> bytes:
    """One of 24 frames is damaged, as the reader allows."""
    return odd_files.spoiled(coded("matroska", "mjpeg", pix_fmt="yuvj420p"), [3])


CASES: dict[str, Case] = {
    # --- shots ---
    "a shot without frames": Case(
        run=lambda: Shot(path=file(coded()), first=100, last=110).clip(),
        words=("0 frame(s) from frame 100 on", "minimum of 2"),
    ),
    "a shot that lost frames": Case(
        run=lambda: Shot(path=file(lost()), last=100).clip(), words=("at 12", "over the limit of 20%")
    ),
    "a track that is too large to send": Case(
        run=lambda: Shot(path=file(lossless(media.texture(100, 640, 640))), track=0).clip(),
        words=("has 100 frames, and 81 of this size fit into the 96 MiB",),
    ),
    "no clips to train on": Case(
        run=lambda: find_clips(file(b"", "a.txt").parent, real=True), words=("no clips to train on",), names_file=False
    ),
    "no held-out shots": Case(
        run=lambda: find_shots([str(with_train_shots_only())]), words=("no held-out shots",), names_file=False
    ),
    "no file": Case(run=lambda: find_files(["clip.bin"]), words=("is not a file",)),
    "a sequence without rate": Case(
        run=lambda: find_files([str(pictures())]), words=("2 pictures", "--fps"), names_file=False
    ),
    # --- views; pretraining adds the file's name ---
    "too few frames for a view": Case(
        run=lambda: views(coded(frames=FRAMES[:7])), words=("7 frames", "8 are needed"), names_file=False
    ),
    "lost frames in all stretches": Case(
        run=lambda: views(lost()), words=("at 12 fps", "over the limit of 20%"), names_file=False
    ),
    "a take without room for a view": Case(
        run=lambda: draw_view(
            Take(positions=np.arange(3), fps=12.0, height_px=64, width_px=96), Sampling(), np.random.default_rng(0)
        ),
        words=("3 frames", "8 are needed"),
        names_file=False,
    ),
    # --- the trainer's files ---
    "no video": Case(run=lambda: trained(b"a text" * 20), words=("cannot be read", "text ('a text")),
    "one frame": Case(run=lambda: trained(coded(frames=SINGLE)), words=("has 1 frames, 8 are needed", "num_frames")),
    "no frames in the part": Case(
        run=lambda: trained(coded(), first=30), words=("has 0 frames in the part", "8 are needed", "first and last")
    ),
    "few frames": Case(
        run=lambda: trained(coded(frames=FRAMES[:5])), words=("has 5 frames, 8 are needed", "policy.num_frames")
    ),
    "short": Case(
        run=lambda: trained(coded(frames=FRAMES[:8], fps=16)),
        words=("lasts 0.44 s, the policy needs 0.58 s", "policy.num_frames"),
    ),
    "slow": Case(
        run=lambda: trained(coded(fps=8)), words=("8.00 frames per second", "needs 12", "data.speed_tolerance")
    ),
    "lost frames": Case(run=lambda: trained(lost()), words=("at 12", "over the limit of 20%")),
    "a damaged frame": Case(
        run=lambda: trained(holed(), replace(FORM, fps=12.5)), words=("1 of 8 frames cannot be decoded",)
    ),
    # --- the trainer's lists ---
    "a folder without clips": Case(
        run=lambda: find_sources([str(file(b"", "a.txt").parent)], "train"),
        words=("no clip", "data.train"),
        names_file=False,
    ),
    "no paths": Case(run=lambda: find_sources([], "held_out"), words=("data.held_out",), names_file=False),
    "a path that does not exist": Case(
        run=lambda: find_sources(["clip.bin"], "train"), words=("does not exist", "data.train")
    ),
    "a manifest that is no JSON": Case(run=lambda: manifest("[", "clip.bin.json"), words=("not valid JSON",)),
    "a manifest of one entry": Case(run=lambda: manifest("{}", "clip.bin.json"), words=("must be a list", "dict")),
    "an entry without a path": Case(
        run=lambda: manifest('[{"first": 3}]', "clip.bin.json"), words=("entry 1", "KeyError('path')")
    ),
    "only bad files": Case(
        run=lambda: Clips([TrainerSource(path=file(b""))], FORM, seed=0).at(0),
        words=("1 of 1 clips cannot be used, so slot 0 has no clip", "0 bytes"),
    ),
    "a frame rate of 0": Case(run=lambda: DataConfig(fps=0.0), words=("data.fps=0.0", "positive"), names_file=False),
    "a tolerance of 1": Case(
        run=lambda: DataConfig(speed_tolerance=1.0), words=("data.speed_tolerance=1.0",), names_file=False
    ),
}


@functools.cache
def error_of(name: str) -> Exception:
    with pytest.raises(Exception, match=r".") as caught:  # each case says which
        CASES[name].run()
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_the_file_the_figures_and_the_next_step(name: str) -> None:
    error, case = error_of(name), CASES[name]
    for words in case.words:
        assert words in str(error)
    assert not case.names_file or "clip.bin" in str(error)
    assert tells_next_step(error), str(error)


def test_every_raise_is_reached() -> None:
    assert raises_not_reached(FILES, map(error_of, CASES)) == []
