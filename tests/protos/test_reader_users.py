"""Tests that each odd file is read or refused as the table says, and alike by every user of the reader.

The users are the server, in-process scoring, drawing, `evaluate`, `sanity`, pretraining and the trainer's data. The
page sends its clips to the server, which decodes the copies that it makes of them as for scoring. VVC is read but not
tested, because there is no VVC encoder here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from protos.reader import ReaderError, Source, Stretch, open_source, with_true_times
from protos.reader.scenes import Scenes
from protos.reader.source import resized
from protos.reader.times import nearest_frames
from protos.submissions import submission
from protos.types import Outcome, Reward, Submission
from reward_server.data.shots import Shot, SourceClip, find_clips, find_files, find_shots
from reward_server.decoding.children import AVAILABLE, DecodePool
from reward_server.decoding.decode import DecodedClip, Sampling, decode
from reward_server.errors import BadRequest, InvalidClip
from reward_server.evaluation.evaluate import judge
from reward_server.evaluation.sanity import climb
from reward_server.evaluation.score import run, score_files
from reward_server.evaluation.scoring import RewardSource
from reward_server.explain.annotate import annotate as draw
from reward_server.explain.annotate import pictures_at
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.settings import Settings
from reward_server.training.samples import CacheConfig, clip_samples
from reward_server.training.views import DrawnView
from tests import media, odd_files
from tests.media import Frames
from tests.odd_table import FRAMES, ODD, Odd
from tests.plain_scorer import MODEL, PlainScorer, Prepared
from trainer.data import Clips, DataConfig, find_sources
from trainer.errors import DataError
from trainer.video import ClipForm


@dataclass(frozen=True, kw_only=True)
class File:
    """An odd file on disk, whose name does not show its format."""

    odd: Odd
    path: Path


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a user got: frames [T,H,W,3], and their times in seconds after the file's first frame. Or its refusal."""

    frames: Frames | None = None
    times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    code: str | None = None
    message: str = ""


def read(path: Path) -> tuple[Source, Stretch, Frames]:
    """The file, its longest stretch, and all frames of that stretch."""
    return read_and_watched(path)[:3]


def read_and_watched(path: Path) -> tuple[Source, Stretch, Frames, tuple[str, ...]]:
    """As `read`, and the warnings about what is seen in the frames."""
    with open_source(path) as opened:
        return with_true_times(opened, _longest)


def _longest(source: Source) -> tuple[Source, Stretch, Frames, tuple[str, ...]]:
    stretch, scenes = max(source.stretches, key=lambda one: one.last - one.first), Scenes()
    frames = [frame for _, frame in source.frames(range(stretch.first, stretch.last), watch=scenes.watch)]
    return source, stretch, np.stack(frames), tuple(one.code for one in scenes.warnings())


@pytest.fixture(scope="module", params=ODD)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    odd = ODD[request.param]
    path = tmp_path_factory.mktemp("odd") / "clip.bin"
    path.write_bytes(odd.make())
    return File(odd=odd, path=path)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(size=1, memory_mib=512)
    yield pool
    pool.close()


def test_an_odd_file_is_read_or_refused_as_the_table_says(file: File) -> None:
    odd = file.odd
    if not odd.frames:
        with pytest.raises(ReaderError, match=odd.words) as refused:
            read(file.path)
        assert refused.value.code == odd.code
        return
    source, stretch, frames, seen = read_and_watched(file.path)
    assert (source.times_s.size, len(source.stretches)) == (odd.frames, odd.stretches)
    assert source.fps == pytest.approx(odd.fps, rel=0.01)
    assert (stretch.height_px, stretch.width_px) == odd.size == frames.shape[1:3]
    assert tuple(warning.code for warning in source.warnings) == odd.warnings
    assert seen == odd.seen
    shown = (FRAMES if odd.shown is None else odd.shown)[: odd.frames]
    away = np.abs(frames[:, None].astype(np.int16) - shown[None]).mean(axis=(2, 3, 4))
    assert away.argmin(axis=1).tolist() == list(range(stretch.first, stretch.last))
    assert away.min(axis=1).max() <= odd.within


# --- the users ----------------------------------------------------------------------------------


@dataclass
class EveryFrame(PlainScorer):
    """A scorer that samples every frame of the file's longest stretch, and keeps what it decoded."""

    sampling: Sampling = field(default_factory=Sampling)
    decoded: list[DecodedClip] = field(default_factory=list)

    def prepare(self, submission: Submission, discriminators: None = None) -> Prepared:
        self.decoded.append(decode(submission, self.sampling, media.LIMITS, 600.0))
        return Prepared(decoded=self.decoded[-1])

    @property
    def scorer(self) -> RewardSource:
        names = ("fps", "window_frames", "min_frames", "area_px")
        wanted = dataclasses.replace(MODEL.input, **{name: getattr(self.sampling, name) for name in names})
        return RewardSource(
            score=self.score_submissions, model=dataclasses.replace(MODEL, input=wanted), where="every frame"
        )


def sampling_of(file: File) -> Sampling:
    """Every frame of the longest stretch, at its own size if that is whole multiples of 16 pixels."""
    num = max((file.odd.frames or len(FRAMES)) // file.odd.stretches, 8)
    return Sampling(fps=1000, window_frames=num, max_windows=1, area_px=max(256, file.odd.size[0] * file.odd.size[1]))


def of_window(decoded: DecodedClip, start_s: float | None = None) -> Taken:
    (window,) = decoded.windows
    frames = window.clip.frames.transpose(0, 2, 3, 1)
    first_s = window.start_s if start_s is None else start_s
    return Taken(frames=frames, times_s=first_s + np.arange(len(frames)) / decoded.fps_used)


def of_outcome(outcome: Outcome, scorer: EveryFrame, start_s: float | None = None) -> Taken:
    if outcome.error is not None:
        return Taken(code=outcome.error.code, message=outcome.error.message)
    return of_window(scorer.decoded[0], start_s)


def server(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The server decodes the submitted bytes in a child process."""
    decoder = pool.decode if AVAILABLE else decode
    try:
        return of_window(decoder(submission(file.path), sampling_of(file), media.LIMITS, 600.0))
    except InvalidClip as error:
        return Taken(code=error.code, message=str(error))


def score(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    every = EveryFrame(sampling=sampling_of(file))
    (scored,) = score_files([file.path], every.scorer)
    return of_outcome(scored.outcome, every)


def annotate(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """`score --annotate` and the HTML reports read a clip that has a reward once more, and draw on its frames."""
    scored = score(file, pool, monkeypatch)
    if scored.frames is None:
        return scored
    drawn: list[tuple[float, Frames]] = []

    def recorded(source: Source, reward: Reward, explanation: object, out: Path) -> None:
        stretch = max(source.stretches, key=lambda one: one.last - one.first)
        positions = range(stretch.first, stretch.last)
        drawn[:] = pictures_at(source, positions, stretch.height_px, stretch.width_px)
        out.touch()

    monkeypatch.setattr("reward_server.explain.annotate._write_video", recorded)
    draw(file.path, cast(Reward, SimpleNamespace(explanation=object())), file.path.with_suffix(".mp4"), "mp4")
    return Taken(frames=np.stack([frame for _, frame in drawn]), times_s=np.array([time_s for time_s, _ in drawn]))


def evaluate(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    monkeypatch.setattr("reward_server.evaluation.evaluate.plain_statistics", lambda clip, seed: {})  # they are slow
    every = EveryFrame(sampling=sampling_of(file))
    (case,) = judge([("real", Shot(path=file.path))], every.scorer, Settings())
    return of_outcome(case.outcome, every)


def evaluate_a_part(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """A shot of a manifest is read here and submitted as a tensor."""
    try:
        clip = Shot(path=file.path, last=10_000).clip()
    except InvalidClip as error:
        return Taken(code=error.code, message=str(error))
    return Taken(frames=clip.frames.transpose(0, 2, 3, 1), times_s=np.arange(len(clip.frames)) / clip.fps)


def sanity(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    every = EveryFrame(sampling=sampling_of(file))
    ((rung, *_),) = climb([Shot(path=file.path)], every.scorer, Settings(), faults=())
    return of_outcome(rung.outcome, every, rung.start_s)


def pretrain(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The frames of all views, before they are cropped. A refusal is the reason for which the clip is skipped."""
    clip = SourceClip(source="clip", path=file.path, real=False)
    seen: list[tuple[int, Frames]] = []
    cut = DrawnView.cut

    def recorded(view: DrawnView, at: int, frame: Frames) -> Frames:
        seen.append((view.positions[at], frame))
        return cut(view, at, frame)

    def views(source: Source) -> Source:
        seen.clear()  # forget the frames from before the times were counted
        assert list(clip_samples(source, clip, EmbeddedProfile(), CacheConfig(frames_per_view=100)))
        return source

    monkeypatch.setattr(DrawnView, "cut", recorded)
    try:
        with open_source(file.path) as opened:
            source = with_true_times(opened, views)
    except (ReaderError, InvalidClip) as error:
        return Taken(message=str(error))
    longest = max(source.stretches, key=lambda one: one.last - one.first)
    inside = [(at, frame) for at, frame in seen if longest.first <= at < longest.last]
    return Taken(
        frames=np.stack([frame for _, frame in inside]),
        times_s=source.times_s[[at for at, _ in inside]] - source.times_s[0],
    )


def trainer(file: File, pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The trainer takes every third frame of the first stretch."""
    height, width = file.odd.size
    data = DataConfig(start="first")
    form = ClipForm(num_frames=4, fps=max(file.odd.fps, 1) / 3, height_px=height, width_px=width)
    try:
        clip = Clips(find_sources([str(file.path)], "train"), form, seed=0, data=data).at(0).clip
    except DataError as error:
        return Taken(message=str(error))
    return Taken(frames=clip.frames.transpose(0, 2, 3, 1), times_s=np.arange(4) / form.fps)


LOST = Odd(
    form="",
    make=lambda: odd_files.dropped(media.texture(40), 0.3, fps=12, seed=3),
    frames=len(odd_files.kept(40, 0.3, 3)),
    fps=12.0,
)


USERS: dict[str, Callable[[File, DecodePool, pytest.MonkeyPatch], Taken]] = {
    user.__name__: user for user in (server, score, annotate, evaluate, evaluate_a_part, sanity, pretrain, trainer)
}


@pytest.mark.parametrize("user", USERS)
def test_every_user_gets_the_same_frames_at_the_same_times(
    file: File, user: str, pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = USERS[user](file, pool, monkeypatch)
    if file.odd.code:
        assert re.search(file.odd.words, taken.message), taken.message
        assert taken.code in (file.odd.code, None)
        return
    assert taken.frames is not None, taken.message
    source, stretch, frames = read(file.path)
    times_s = source.times_s[stretch.first : stretch.last] - source.times_s[0]
    expected = frames[nearest_frames(times_s, taken.times_s.tolist())]
    size = taken.frames.shape[1:3]
    for found, frame in zip(taken.frames, expected, strict=True):
        assert np.array_equal(found, resized(frame, *size))
    assert len({frame.tobytes() for frame in frames}) == len(frames), "frames of this file cannot be told apart"


@pytest.mark.parametrize("user", [user for user in USERS if user != "trainer"])
def test_a_file_that_lost_30_percent_of_its_frames_is_refused_by_every_user(
    user: str, tmp_path: Path, pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: pretraining and shots repeated the nearest frame, without a limit and without a word.

    The trainer is another case: it takes no frame twice, and refuses a file where it would have to.
    """
    path = tmp_path / "lost.mkv"
    path.write_bytes(LOST.make())
    taken = USERS[user](File(odd=LOST, path=path), pool, monkeypatch)
    words = r"\d\d% of the times at 12(\.01)? fps have no frame within half a step, over the limit of 20%"
    assert re.search(words, taken.message), taken


def test_score_reads_the_chosen_track_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    path.write_bytes(odd_files.two_tracks(FRAMES[::-1], FRAMES))
    every = EveryFrame(sampling=Sampling(fps=12, window_frames=24, max_windows=1, area_px=64 * 96))
    for track, shown in ((0, FRAMES[::-1]), (1, FRAMES), (None, FRAMES)):
        (scored,) = score_files([path], every.scorer, track=track)
        assert scored.ok, scored.outcome.error
        assert np.array_equal(every.decoded[-1].windows[0].clip.frames.transpose(0, 2, 3, 1), shown)
    (refused,) = score_files([path], every.scorer, track=2)
    assert refused.outcome.error is not None
    assert "track=2 does not exist" in refused.outcome.error.message


@pytest.mark.parametrize(
    ("names", "given", "words"), [("ab", {}, "got 2 file"), ("a", {"html": Path("a.html")}, "cannot be drawn")]
)
def test_a_track_of_several_files_or_of_a_drawing_is_refused(
    tmp_path: Path, names: str, given: dict[str, Path], words: str
) -> None:
    for name in names:
        (tmp_path / f"{name}.mkv").write_bytes(b"")
    with pytest.raises(BadRequest, match=words):
        run([str(tmp_path)], Settings(), server=None, json_path=None, csv_path=None, track=1, **given)


def test_a_file_that_only_has_the_name_of_a_video_is_named_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "code.ts").write_text("export const answer = 42;\n" * 20)
    (tmp_path / "clip.ts").write_bytes(ODD["ts h264"].make())
    (tmp_path / "notes.txt").write_text("a note")
    good, bad = score_files(find_files([str(tmp_path)]), PlainScorer().scorer)
    assert (good.path.name, bad.path.name) == ("clip.ts", "code.ts")
    assert good.ok
    assert bad.outcome.error is not None
    assert "text ('export const" in bad.outcome.error.message


@pytest.mark.parametrize(
    "find",
    [
        lambda folder: find_files([str(folder)]),
        lambda folder: find_shots([str(folder)]),
        lambda folder: find_clips(folder, real=True),
        lambda folder: find_sources([str(folder)], "train"),
    ],
    ids=["score and check", "evaluate, sanity and attack", "pretrain", "trainer"],
)
def test_files_that_are_no_videos_are_counted_in_one_line(
    find: Callable[[Path], Sequence[object]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "take").write_bytes(ODD["webm vp8"].make())
    for name in ("d.bin", "a.bin", "part/b", "part/c.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half a download")
    for name in ("index.json", "labels.csv", "take.jpg", "take.wav", "LICENSE", ".cache/entry", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"expected beside clips")
    assert len(find(tmp_path)) == 1
    (told,) = (record.getMessage() for record in caplog.records)
    assert told == (
        f"{tmp_path}: 4 file(s) are left out, since their bytes are those of no video: a.bin, d.bin, part/b and 1 more"
    )
