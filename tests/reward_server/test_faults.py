"""Tests motion faults: exactly where a fault rearranges frames, by independent measurements where it warps or slows."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from protos.types import Clip
from reward_server.faults import HELD_OUT, LEAST_DIFFERENCE, NAMES, STRENGTHS, difference, time_remap, with_fault

T, H, W, FPS = 16, 96, 128, 12.0
SEEDS = range(3)
CONTINUOUS = ("jittered", "wobbled", "ghosted", "swimming", "damped", "speed_change", "slowed", "swaying", "boiling",
              "surging", "dissolving")  # fmt: skip


def _scene(x, y):
    """A band-limited texture with exact values at any displacement."""
    rng = np.random.default_rng(5)
    waves = np.hstack([rng.uniform(-0.35, 0.35, (24, 2)), rng.uniform(0, 2 * np.pi, (24, 1))])
    return 127.5 + 12 * sum(np.cos(a * x + b * y + c) for a, b, c in waves)


def _panned(offsets_px, velocity=(1.0, 0.5)) -> np.ndarray:
    """Frames [len,3,H,W] of the scene, displaced by `offsets_px` times `velocity`."""
    y, x = np.mgrid[0:H, 0:W].astype(float)
    frames = [_scene(x - velocity[0] * o, y - velocity[1] * o) for o in offsets_px]
    return np.repeat(np.rint(np.clip(frames, 0, 255)).astype(np.uint8)[:, None], 3, axis=1)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """The scene panned by 2 px right and 1 px down per frame."""
    return Clip(frames=_panned(2.0 * np.arange(T)), fps=FPS)


@pytest.fixture(scope="module")
def still() -> Clip:
    return Clip(frames=_panned(np.zeros(T)), fps=FPS)


@pytest.fixture(scope="module")
def map_clip() -> Clip:
    """Each pixel holds its own coordinates: x in half pixels, y in half pixels, 0. So a warp can be read from it."""
    y, x = np.mgrid[0:H, 0:W]
    return Clip(frames=np.repeat(np.stack([2 * x, 2 * y, 0 * x])[None], T, 0).astype(np.uint8), fps=FPS)


def _displacement(faulty: Clip) -> np.ndarray:
    """Displacement [T,H,W,2] px of a faulty map_clip, exact to a quarter of a pixel, without the reflected border."""
    y, x = np.mgrid[0:H, 0:W]
    found = faulty.frames[:, :2].transpose(0, 2, 3, 1) / 2.0 - np.stack([x, y], -1)
    return found[:, 16:-16, 16:-16]


def _shown(clip: Clip, faulty: Clip) -> list[int]:
    """The index of the source frame that each frame of `faulty` equals."""
    index = {frame.tobytes(): i for i, frame in enumerate(clip.frames)}
    return [index[frame.tobytes()] for frame in faulty.frames]


def _steps(clip: Clip) -> np.ndarray:
    """How far the panned scene moves between frames [T-1], in frames of the pan, by Gauss-Newton on the scene."""
    y, x = np.mgrid[0:H, 0:W].astype(float)
    inner = np.s_[12:-12, 12:-12]
    places, place = [], 0.0
    for frame in clip.frames:
        for _ in range(4):
            seen, ahead = (_scene(x - 2 * o, y - o)[inner] for o in (place, place + 0.05))
            slope = (ahead - seen) / 0.05
            place += float(((frame[0][inner] - seen) * slope).sum() / (slope**2).sum())
        places.append(place)
    return np.diff(places)


def _change(clip: Clip, faulty: Clip) -> float:
    return float(np.abs(faulty.frames.astype(int) - clip.frames).mean())


def _inversions(order: list[int]) -> int:
    return sum(a > b for a, b in itertools.combinations(order, 2))


# Every fault


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_keeps_shape_and_first_frame_and_changes_something(clip, name, strength):
    before = clip.frames.copy()
    faulty = with_fault(clip, name, strength, seed=3)
    assert faulty.frames.shape == clip.frames.shape and faulty.frames.dtype == np.uint8
    assert np.array_equal(faulty.frames[0], before[0])
    assert np.array_equal(clip.frames, before), "the source must not be written to"
    assert (faulty.fps != clip.fps) == (name == "fps_relabelled")
    assert faulty.fps != clip.fps or not np.array_equal(faulty.frames, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_one_clip_and_another_seed_another(clip, name):
    first, again = with_fault(clip, name, 0.75, seed=3), with_fault(clip, name, 0.75, seed=3)
    assert np.array_equal(first.frames, again.frames) and first.fps == again.fps
    others = [with_fault(clip, name, 0.75, seed=s) for s in range(4, 7)]
    varies = any(o.fps != first.fps or not np.array_equal(o.frames, first.frames) for o in others)
    assert varies == (name not in ("static", "damped", "slowed", "morphing", "exaggerated")), "these draw nothing"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(4, 32, 40), (5, 48, 33), (24, 33, 48)])
def test_small_odd_and_long_clips(name, shape):
    rng = np.random.default_rng(0)
    clip = Clip(frames=rng.integers(0, 256, (shape[0], 3, *shape[1:]), dtype=np.uint8), fps=8.0)
    for strength, seed in itertools.product((0.01, 1.0), range(2)):
        assert with_fault(clip, name, strength, seed).frames.shape == clip.frames.shape


@pytest.mark.parametrize("name", NAMES)
def test_borders_do_not_reveal_the_fault(name):
    white = Clip(frames=np.full((T, 3, H, W), 255, np.uint8), fps=FPS)
    assert (with_fault(white, name, 1.0, seed=1).frames == 255).all()


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("seed", SEEDS)
def test_fades_to_the_original(clip, name, seed):
    assert _change(clip, with_fault(clip, name, 1e-3, seed)) < 0.15  # grey levels; the pan itself is worth dozens


@pytest.mark.parametrize("name", ["jittered", "wobbled", "ghosted", "swimming", "teleporting", "damped", "static",
                                  "slowed", "swaying", "boiling", "dissolving"])  # fmt: skip
@pytest.mark.parametrize("seed", SEEDS)
def test_more_strength_is_more_change(clip, name, seed):
    changes = [_change(clip, with_fault(clip, name, s, seed)) for s in STRENGTHS]
    assert all(a < b for a, b in itertools.pairwise(changes)), changes


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.001, float("nan")])
def test_strength_out_of_range_is_named(clip, strength):
    with pytest.raises(ValueError, match=rf"strength of jittered must be in \(0, 1\], got {strength}"):
        with_fault(clip, "jittered", strength, seed=0)


def test_other_bad_arguments_are_named(clip):
    with pytest.raises(ValueError, match="no fault named 'melted'; choose one of static, frozen"):
        with_fault(clip, "melted", 0.5, seed=0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        with_fault(clip, "jittered", 0.5, seed=-1)
    with pytest.raises(ValueError, match="too small for a fault"):
        with_fault(Clip(frames=clip.frames[:3], fps=FPS), "jittered", 0.5, seed=0)


# Frames rearranged


def test_static_never_resumes_and_at_full_strength_never_starts(clip):
    assert _shown(clip, with_fault(clip, "static", 1.0, seed=0)) == [0] * T
    for strength in STRENGTHS:
        last = round((1 - strength) * (T - 1))
        assert _shown(clip, with_fault(clip, "static", strength, seed=0)) == [min(t, last) for t in range(T)]


@pytest.mark.parametrize("seed", range(12))
def test_frozen_stretches_end_with_a_jump_to_the_true_place(clip, seed):
    repeats = []
    for strength in STRENGTHS:
        shown = _shown(clip, with_fault(clip, "frozen", strength, seed))
        held = [t for t in range(1, T) if shown[t] == shown[t - 1]]
        assert all(shown[t] == t for t in range(T) if t not in held), "what is not held is where it would be"
        assert shown[0] == 0 and shown[-1] == T - 1 and shown == sorted(shown)
        repeats.append(held)
    assert all(set(a) < set(b) for a, b in itertools.pairwise(repeats)), "the same stretches, longer"
    assert len(repeats[0]) >= 2 and len(repeats[-1]) >= T // 3


@pytest.mark.parametrize("seed", SEEDS)
def test_stutter_shows_fewer_frames_in_order(clip, seed):
    distinct = []
    for strength in STRENGTHS:
        shown = _shown(clip, with_fault(clip, "stutter", strength, seed))
        assert shown == sorted(shown) and all(s <= t for t, s in enumerate(shown))
        assert max(len(list(run)) for _, run in itertools.groupby(shown)) <= 3
        distinct.append(len(set(shown)))
    assert all(a > b for a, b in itertools.pairwise(distinct))
    assert T - distinct[0] in (2, 3) and distinct[-1] in (5, 6)  # one in six repeats .. each held for three


@pytest.mark.parametrize("seed", range(12))
def test_shuffled_permutes_frames_more_with_strength(clip, seed):
    orders = [_shown(clip, with_fault(clip, "shuffled", s, seed)) for s in (0.001, *STRENGTHS)]
    assert all(sorted(order) == list(range(T)) for order in orders)
    inversions = [_inversions(order) for order in orders]
    assert inversions == sorted(inversions) and inversions[0] >= 1
    most = (T - 1) * (T - 2) / 2
    assert 0.25 * most < inversions[-1] < 0.75 * most
    assert max(abs(t - s) for t, s in enumerate(orders[1])) <= 3, "weak: neighbours only"


@pytest.mark.parametrize("num_frames", [4, 5, 6])
def test_shuffling_few_frames_gives_neither_order_nor_reverse(clip, num_frames):
    short = Clip(frames=clip.frames[:num_frames], fps=FPS)
    orders = [_shown(short, with_fault(short, "shuffled", 1.0, seed))[1:] for seed in range(30)]
    assert all(0 < _inversions(o) < (num_frames - 1) * (num_frames - 2) / 2 for o in orders)


@pytest.mark.parametrize("seed", range(12))
def test_fps_relabelled_leaves_the_frames(clip, seed):
    factors = []
    for strength in STRENGTHS:
        faulty = with_fault(clip, "fps_relabelled", strength, seed)
        assert np.array_equal(faulty.frames, clip.frames)
        factors.append(faulty.fps / FPS)
    np.testing.assert_allclose(np.abs(np.log2(factors)), [0.5, 1.0, 1.5, 2.0], rtol=1e-12)
    assert len(set(np.sign(np.log2(factors)))) == 1


def test_fps_relabelled_goes_both_ways(clip):
    faster = {with_fault(clip, "fps_relabelled", 1.0, seed).fps > FPS for seed in range(12)}
    assert faster == {True, False}


@pytest.mark.parametrize("seed", range(6))
def test_ghosted_is_a_mixture_of_frames_in_the_same_place(seed):
    """Only one frame is bright, so the other frames show the weights of the mixture."""
    frames = np.zeros((T, 3, H, W), np.uint8)
    frames[6] = 200
    shares = with_fault(Clip(frames=frames, fps=FPS), "ghosted", 1.0, seed).frames[:, 0, 0, 0] / 200
    if shares[5] == 0:  # trailing
        k = np.arange(T - 6)
        np.testing.assert_allclose(shares[6:], 0.25 * 0.75**k / (1 - 0.75 ** (7 + k)), atol=0.01)
    else:  # neighbours
        np.testing.assert_allclose(shares[4:9], [0.75 / 4, 0.75 / 4, 0.25, 0.75 / 4, 0.75 / 4], atol=0.01)
        assert not shares[[3, 9]].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_looped_jumps_back_to_the_start_of_its_stretch_more_often_when_stronger(clip, seed):
    jumps = []
    for strength in STRENGTHS:
        steps = np.diff(_shown(clip, with_fault(clip, "looped", strength, seed)))
        assert set(steps[steps != 1]) and len(set(steps[steps != 1])) == 1, "always the same jump"
        assert steps.min() < 0
        jumps.append(int((steps < 0).sum()))
    assert jumps == sorted(jumps) and jumps[0] == 1 and jumps[-1] >= 3


@pytest.mark.parametrize("seed", SEEDS)
def test_reversed_plays_forward_back_and_forward(clip, seed):
    backward = []
    for strength in STRENGTHS:
        steps = np.diff(_shown(clip, with_fault(clip, "reversed", strength, seed)))
        assert set(steps) == {1, -1} and steps[0] == 1
        backward.append(int((steps < 0).sum()))
    assert backward == sorted(backward) and backward[0] < backward[-1]


@pytest.mark.parametrize(("strength", "k"), [(0.25, 2), (1.0, T - 1)])
def test_morphing_keeps_key_frames_and_dissolves_between(clip, strength, k):
    frames = with_fault(clip, "morphing", strength, seed=0).frames
    assert np.array_equal(frames[k], clip.frames[k]) and np.array_equal(frames[-1], clip.frames[-1])
    wanted = clip.frames[0] + (clip.frames[k].astype(float) - clip.frames[0]) * (k // 2) / k
    assert np.abs(frames[k // 2] - wanted).max() <= 0.51


def test_difference_tells_a_fault_from_none(clip, still):
    assert difference(still, with_fault(still, "static", 1.0, seed=0)) < LEAST_DIFFERENCE
    assert difference(clip, with_fault(clip, "static", 1.0, seed=0)) > LEAST_DIFFERENCE
    with pytest.raises(ValueError, match="must have the same shape"):
        difference(clip, Clip(frames=clip.frames[:4], fps=FPS))


def test_held_out_families_are_faults():
    assert set(HELD_OUT) <= set(NAMES)


# Pixels displaced


@pytest.mark.parametrize("seed", SEEDS)
def test_jittered_moves_each_frame_as_a_whole_on_its_own(map_clip, seed):
    for strength, share in ((0.25, 0.003), (1.0, 0.025)):
        found = _displacement(with_fault(map_clip, "jittered", strength, seed))[1:]
        shifts = found.mean((1, 2))
        assert 0.4 < np.sqrt((shifts**2).sum(-1).mean()) / (share * H) < 1.7
        assert abs(np.corrcoef(shifts[1:].ravel(), shifts[:-1].ravel())[0, 1]) < 0.6, "frames are independent"
        bend = np.diff(found, 2, axis=2)[:, :, ::8]
        assert abs(bend.mean()) < 0.02, "rigid: no curvature"


@pytest.mark.parametrize("seed", SEEDS)
def test_wobbled_is_smooth_in_space_and_time(map_clip, seed):
    for strength, share in ((0.25, 0.00375), (1.0, 0.03)):
        found = _displacement(with_fault(map_clip, "wobbled", strength, seed))
        assert 0.7 < np.sqrt((found[1:] ** 2).sum(-1).mean()) / (share * H) < 1.3
    size = np.abs(found[1:]).mean()
    assert np.abs(np.diff(found, axis=0)).mean((1, 2, 3)).max() < 0.8 * size, "temporally smooth, from the first frame"
    assert np.abs(found[:, :, 4:] - found[:, :, :-4]).mean() < 0.5 * size, "spatially smooth"
    assert found.std((1, 2)).mean() > 0.3 * size, "but not a shift of the whole"


@pytest.mark.parametrize("seed", SEEDS)
def test_swimming_is_local_and_finer_than_a_wobble(map_clip, clip, seed):
    faulty = with_fault(clip, "swimming", 1.0, seed)
    moved = (faulty.frames != clip.frames).any((0, 1))
    assert 0.2 < moved.mean() < 0.5, "the rest stays untouched"
    swim, wobble = (_displacement(with_fault(map_clip, name, 1.0, seed))[4:] for name in ("swimming", "wobbled"))
    unlike = [np.abs(f[:, :, 8:] - f[:, :, :-8]).mean() / np.abs(f).mean() for f in (swim, wobble)]
    assert unlike[0] > 1.3 * unlike[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_swimming_turns_in_eddies_rather_than_swells(map_clip, seed):
    found = _displacement(with_fault(map_clip, "swimming", 1.0, seed))[4:]
    smooth = [[cv2.GaussianBlur(np.ascontiguousarray(f[..., k]), (0, 0), 2) for f in found] for k in (0, 1)]
    (x_down, x_right), (y_down, y_right) = (np.gradient(np.array(part), axis=(1, 2)) for part in smooth)
    divergence, curl = x_right + y_down, y_right - x_down
    assert divergence.std() < 0.6 * curl.std()


@pytest.mark.parametrize("seed", SEEDS)
def test_teleporting_only_copies_patches_within_a_frame(clip, seed):
    changed = []
    for strength in STRENGTHS:
        faulty = with_fault(clip, "teleporting", strength, seed)
        changed.append((faulty.frames != clip.frames).any(1))
        values = [np.unique(x) for x in (faulty.frames, clip.frames)]
        assert values[0].min() >= values[1].min() and values[0].max() <= values[1].max()
    frames_hit = [int(c.any((1, 2)).sum()) for c in changed]
    assert 1 <= frames_hit[0] <= 2 and frames_hit == sorted(frames_hit)
    assert 0.01 < changed[0].sum() / (frames_hit[0] * H * W) < 0.25, "one patch, the rest untouched"


def test_teleporting_jumps_farther_when_stronger(map_clip):
    """A copied pixel holds the coordinates it came from."""
    reach = []
    for strength in (0.25, 1.0):
        moves = [np.hypot(*np.moveaxis(_displacement(with_fault(map_clip, "teleporting", strength, s)), -1, 0)).max()
                 for s in range(8)]  # fmt: skip
        reach.append(np.median(moves) / H)
    assert 0.03 < reach[0] < 0.1 and 0.14 < reach[1] < 0.3


# Time remapped


@pytest.mark.parametrize("strength", STRENGTHS)
def test_damped_slows_to_the_published_speed_without_duplicates(clip, strength):
    steps = _steps(with_fault(clip, "damped", strength, seed=0))
    rate = 4 * strength
    wanted = -np.diff(np.expm1(-rate * np.linspace(0, 1, T))) * (T - 1) / rate
    np.testing.assert_allclose(steps, wanted, atol=0.05)


def test_damped_at_full_strength_ends_nearly_at_a_stop(clip):
    steps = _steps(with_fault(clip, "damped", 1.0, seed=0))
    assert steps[0] > 0.8 and steps[-1] < 0.1 and 0.2 < steps.mean() < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_speed_change_is_abrupt_and_grows(clip, seed):
    ratios = []
    for strength in STRENGTHS:
        speeds = _steps(with_fault(clip, "speed_change", strength, seed))
        slow, fast = 0.35**strength, 1.0
        assert ((np.abs(speeds - slow) < 0.06) | (np.abs(speeds - fast) < 0.06)).all(), speeds
        changes = np.flatnonzero(np.abs(np.diff(speeds)) > (fast - slow) / 2)
        assert len(changes) == 1 and T // 4 <= changes[0] < 3 * T // 4, "one change, mid-clip"
        ratios.append(speeds.max() / speeds.min())
    assert ratios == sorted(ratios)


def test_speed_change_goes_both_ways(clip):
    slower = {bool(np.diff(_steps(with_fault(clip, "speed_change", 1.0, seed))[[0, -1]]) < 0) for seed in range(6)}
    assert slower == {True, False}


def test_whole_times_return_the_frames_exactly(clip):
    order = [3, 0, 15, 15, 7]
    remapped = time_remap(clip, [3.0, 0, 15, 15 - 1e-9, 7 + 1e-9])
    assert np.array_equal(remapped.frames, clip.frames[order]) and remapped.fps == clip.fps


@pytest.mark.parametrize("phase", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("velocity", [(2.0, 1.0), (3.7, -2.2), (-6.0, 0.0)])
def test_times_between_match_the_analytic_frame(velocity, phase):
    pan = Clip(frames=_panned(np.arange(4), velocity), fps=FPS)
    times = np.array([0, 1, 2]) + phase
    error = time_remap(pan, times).frames.astype(int) - _panned(times, velocity)
    interior = np.abs(error[..., 12:-12, 12:-12])
    blended = np.abs(pan.frames[:-1] * (1 - phase) + pan.frames[1:] * phase - _panned(times, velocity))
    assert interior.mean() < 1.0 and interior.mean() < 0.6 * blended.mean()


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("size", [24, 40])
def test_interpolation_keeps_edges_and_uncovers_background(size, step):
    """A textured square moves over a still background. The frame between shows it half way, without a ghost."""
    rng = np.random.default_rng(1)
    ground, thing = (cv2.GaussianBlur(rng.uniform(0, 255, (h, w)), (0, 0), 1.5) for h, w in ((H, W), (size, size)))
    ground, thing = 0.4 * ground, 255 - 0.4 * thing

    def at(x):
        frame = ground.copy()
        frame[28 : 28 + size, x : x + size] = thing
        return np.repeat(np.rint(frame).astype(np.uint8)[None], 3, 0)

    pair = Clip(frames=np.stack([at(30), at(30 + step)]), fps=FPS)
    error = np.abs(time_remap(pair, [0.5]).frames[0].astype(int) - at(30 + step // 2))
    blend = np.abs(pair.frames.mean(0) - at(30 + step // 2))
    assert error.mean() < 0.15 * blend.mean()
    assert (error > 60).mean() < 0.001


@pytest.mark.parametrize("times", [[], [[0.0]], [float("nan")], [-0.5], [15.5]])
def test_times_outside_the_clip_are_refused(clip, times):
    with pytest.raises(ValueError, match="source_times must be"):
        time_remap(clip, times)


def test_a_single_frame_can_be_repeated(clip):
    one = Clip(frames=clip.frames[:1], fps=FPS)
    assert np.array_equal(time_remap(one, [0, 0, 0]).frames, clip.frames[[0, 0, 0]])


@pytest.mark.parametrize("name", ["static", "jittered", "wobbled", "damped"])
def test_a_still_clip_gains_motion_by_shaking_not_by_slowing(still, name):
    changed = _change(still, with_fault(still, name, 1.0, seed=2))
    assert (changed > 1.0) == (name in ("jittered", "wobbled"))
