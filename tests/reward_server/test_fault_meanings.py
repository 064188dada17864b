"""Tests that each of the later faults does to a clip what its name says, on a disc that moves over a panned scene."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from protos.types import Clip
from reward_server.faults import gliding, with_fault

T, H, W, FPS = 16, 96, 128, 12.0
RADIUS, CORE = 18, 9  # px; the core is tested, because regions have soft edges
PAN = np.array([1, 1])  # px per frame, (x, y)
DISC = np.array([-3, 0])
START = np.array([92, 44])
SEEDS = range(4)


def _texture(height: int, width: int, seed: int) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width, 3)), (0, 0), 2.0)
    return np.clip(127.5 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A texture that pans by PAN, and before it a disc of another texture that moves by DISC, in whole pixels."""
    ground, disc = _texture(H + T, W + T, 0), _texture(2 * RADIUS + 1, 2 * RADIUS + 1, 1)
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    inside = np.hypot(x, y) <= RADIUS
    frames = np.stack([ground[T - t : T - t + H, T - t : T - t + W] for t in range(T)])
    for t, frame in enumerate(frames):
        frame[_around(START + t * DISC, RADIUS)][inside] = disc[inside]
    return Clip(frames=frames.transpose(0, 3, 1, 2).copy(), fps=FPS)


def _around(place: np.ndarray, reach: int) -> tuple[slice, slice]:
    x, y = place
    return slice(y - reach, y + reach + 1), slice(x - reach, x + reach + 1)


def _core(clip: Clip, t: int, place: np.ndarray) -> np.ndarray:
    """The core of a disc at a place in frame t: [3,n,n], as int."""
    return clip.frames[t][:, *_around(place, CORE)].astype(int)


def _unlike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def _changes(clip: Clip) -> np.ndarray:
    """Mean change from each frame to the next, [T-1]."""
    return np.array([_unlike(a, b) for a, b in pairwise(clip.frames)])


def _found(clip: Clip, t: int) -> np.ndarray:
    """Where (x, y) the core of the first frame's disc is in frame t, in whole pixels."""
    core = _core(clip, 0, START).transpose(1, 2, 0).astype(np.uint8)
    match = cv2.matchTemplate(clip.frames[t].transpose(1, 2, 0).copy(), core, cv2.TM_CCOEFF_NORMED)
    return np.array(cv2.minMaxLoc(match)[3]) + CORE


@pytest.mark.parametrize("seed", SEEDS)
def test_gliding_without_parallax_is_a_similarity_of_the_first_frame(monkeypatch, seed):
    """Each pixel of the first frame holds its own place, (2 x, 2 y), so a picture shows where its pixels come from."""
    monkeypatch.setattr(gliding, "RELIEF", (0.0, 0.0))
    monkeypatch.setattr(gliding, "INSIDE", 1.0)
    y, x = np.mgrid[0:H, 0:W]
    places = Clip(frames=np.repeat(np.stack([2 * x, 2 * y, 0 * x])[None], T, 0).astype(np.uint8), fps=FPS)
    for frame in with_fault(places, "gliding", 1.0, seed).frames[[4, -1]]:
        origin, here = ((u + 1j * v)[16:-16, 16:-16].ravel() for u, v in (frame[:2] / 2, (x, y)))
        line = np.stack([here, np.ones_like(here)], 1)
        fit = np.linalg.lstsq(line, origin, rcond=None)[0]
        assert np.abs(line @ fit - origin).mean() < 0.3
        assert np.abs(origin - here).mean() > 0.25, "it glides, some slowly"


@pytest.mark.parametrize("seed", SEEDS)
def test_gliding_keeps_nothing_of_the_clip_but_its_first_frame(clip, seed):
    """So neither the disc's own motion nor the pan remains, with and without parallax."""
    held = Clip(frames=np.repeat(clip.frames[:1], T, axis=0), fps=FPS)
    faulty, of_held = (with_fault(each, "gliding", 1.0, seed) for each in (clip, held))
    assert np.array_equal(faulty.frames, of_held.frames)


def test_a_glide_that_stays_inside_never_shows_what_is_outside(monkeypatch):
    monkeypatch.setattr(gliding, "INSIDE", 1.0)
    for seed in range(12):
        place = gliding._Glide(H, W, np.random.default_rng(seed)).origin(25.0, None)
        assert place.min() > -0.01 and (place < [W - 0.99, H - 0.99]).all()


def test_slowed_hardly_moves(clip):
    faulty = with_fault(clip, "slowed", 1.0, seed=0)
    assert 0 < _changes(faulty).mean() < 0.25 * _changes(clip).mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_subject_frozen_carries_the_disc_along_with_the_camera(clip, seed):
    faulty = with_fault(clip, "subject_frozen", 1.0, seed)
    for t in (3, 6):
        carried = START + t * PAN
        frozen, moved = (_unlike(_core(each, t, carried), _core(clip, 0, START)) for each in (faulty, clip))
        assert frozen < 0.5 * moved, "up to what the estimate of the camera is off by"
    assert (faulty.frames == clip.frames).all(1).mean() > 0.5, "the background goes on"


@pytest.mark.parametrize("seed", SEEDS)
def test_background_frozen_holds_all_but_the_disc(clip, seed):
    faulty = with_fault(clip, "background_frozen", 1.0, seed)
    for t in (4, 8):
        assert (faulty.frames[t] == clip.frames[0]).all(0).mean() > 0.5
        place = START + t * DISC
        assert _unlike(_core(faulty, t, place), _core(clip, t, place)) < 8


@pytest.mark.parametrize("seed", SEEDS)
def test_exaggerated_moves_the_disc_farther_than_the_clip_does(clip, seed):
    faulty = with_fault(clip, "exaggerated", 1.0, seed)
    t = 3
    own, enlarged = (np.linalg.norm(_found(each, t) - START - t * PAN) for each in (clip, faulty))
    assert own == pytest.approx(np.linalg.norm(t * (DISC - PAN)))
    assert 1.2 * own < enlarged < 2.6 * own
    weaker = np.linalg.norm(_found(with_fault(clip, "exaggerated", 0.25, seed), t) - START - t * PAN)
    assert weaker < enlarged


@pytest.mark.parametrize("seed", SEEDS)
def test_swaying_returns_after_a_period(clip, seed):
    """The first frame is held, at a rate at which every period of 0.3 to 0.8 s is near a whole number of frames."""
    num, fps = 100, 120.0
    held = Clip(frames=np.repeat(clip.frames[:1, :, ::2, ::2], num, axis=0), fps=fps)
    away = [_unlike(frame, held.frames[0]) for frame in with_fault(held, "swaying", 0.5, seed).frames]
    period = 36 + int(np.argmin(away[36:97]))
    assert away[period] < 0.1 * max(away[: period // 2]), "back where it began"
    bent = [_unlike(frame, held.frames[0]) for frame in with_fault(held, "wobbled", 0.5, seed).frames]
    assert min(bent[36:97]) > 0.5 * max(bent[:36]), "a wobble does not come back"


@pytest.mark.parametrize("seed", SEEDS)
def test_popping_shows_regions_of_some_frames_at_another_time(clip, seed):
    weak = with_fault(clip, "popping", 0.25, seed).frames
    changed = (weak != clip.frames).any(1)
    popped = changed.any((1, 2))
    assert 1 <= popped.sum() <= T // 5 + 1
    assert 0.05 < changed[popped].mean() < 0.4, "a region of the frame"
    strong = (with_fault(clip, "popping", 1.0, seed).frames != clip.frames).any((1, 2, 3))
    assert popped.sum() < strong.sum() < T


@pytest.mark.parametrize("seed", SEEDS)
def test_dissolving_fades_regions_away_and_back(clip, seed):
    faulty = with_fault(clip, "dissolving", 1.0, seed).frames
    changed = np.abs(faulty.astype(int) - clip.frames).mean((1, 2, 3))
    assert changed[0] == 0 and changed.max() > 1
    assert np.abs(np.diff(changed)).max() < 0.5 * changed.max(), "slowly"
    assert (faulty == clip.frames).all((0, 1)).mean() > 0.1, "in regions"


@pytest.mark.parametrize("seed", SEEDS)
def test_boiling_changes_every_frame_more_than_motion_does(clip, seed):
    slow = with_fault(clip, "slowed", 1.0, seed=0)
    assert _changes(with_fault(slow, "boiling", 1.0, seed)).min() > 2 * _changes(slow).max()


@pytest.mark.parametrize("seed", SEEDS)
def test_surging_alternates_between_slow_and_fast_and_ends_in_time(clip, seed):
    faulty = with_fault(clip, "surging", 1.0, seed)
    changes = _changes(faulty)
    assert changes.max() > 2 * changes.min()
    assert _unlike(faulty.frames[-1], clip.frames[-1]) < 2
