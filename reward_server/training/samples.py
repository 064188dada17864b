"""Makes the clips whose features pretraining caches: random views of a source clip, and their faulty twins.

Some views are smoothed in time first, with all of their twins. Then a view and each of its twins pass through a capture
chain of their own (`reward_server/capture`), so they differ only in their motion. The faults are balanced in how much
they move (`negatives.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from protos.reader import Source
from protos.types import Clip, ClipWarning
from reward_server.capture.chain import Capture
from reward_server.capture.smoothing import drawn, smoothed
from reward_server.data.shots import SourceClip
from reward_server.faults import HELD_OUT, LEAST_DIFFERENCE, NAMES, difference, with_fault
from reward_server.faults.still_clips import STILL, fastest_motion
from reward_server.profiles import Profile, ProfileName
from reward_server.training.feature_cache import GENERATED, Sample
from reward_server.training.negatives import draw_faults
from reward_server.training.source_views import ViewPlan, source_views

# fps_relabelled keeps the frames and changes the declared rate. A discriminator sees only frames, so it would learn
# to punish speed.
TRAINED_FAULTS = tuple(name for name in NAMES if name != "fps_relabelled" and name not in HELD_OUT)
STRENGTHS_DRAWN = (0.15, 1.0)
MOVING_TRIES = 4  # draws of a view; the first one with motion is used
MIN_CHANGE = 0.5  # grey levels between frames on average; a view with less is not an example of real motion


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What is cached for every source clip."""

    profile: ProfileName = "embedded"
    frames_per_view: int = 12  # a clip gives one view per this many frames
    most_views: int = 14  # at most, so that no long clip outweighs the others
    negatives_per_view: int = 6
    num_tracks: int = 256
    num_pairs: int = 8
    faults: tuple[str, ...] = TRAINED_FAULTS
    seed: int = 0


def clip_samples(
    opened_file: Source,
    clip: SourceClip,
    profile: Profile,
    config: CacheConfig,
    warn: Callable[[Sequence[ClipWarning]], None] = lambda warnings: None,
) -> Iterator[tuple[Sample, Clip]]:
    """Yield every view of a clip and its faulty twins, each as it is to be cached. `warn` gets the file's warnings.

    Raises ReaderError, InvalidClip.
    """
    plan = ViewPlan(
        sampling=profile.sampling,
        frames_per_view=config.frames_per_view,
        most_views=config.most_views,
        max_side_px=_max_side_px(profile),
        seed=(config.seed, seed_of(clip.source), clip.first),
        tries=MOVING_TRIES if clip.real else 1,
        good=_moves if clip.real else lambda view: True,
    )
    for number, base, rng in source_views(opened_file, clip.first, clip.last, plan, warn):
        view = smoothed(base, drawn(rng))
        kept = view if plan.good(view) else base  # a shaken still scene may not move any more
        yield from _view_samples(clip, f"{clip.part}-{number:03d}", kept, config, rng)


def _view_samples(
    clip: SourceClip, view: str, base: Clip, config: CacheConfig, rng: np.random.Generator
) -> Iterator[tuple[Sample, Clip]]:
    """Yield the view itself and, for a real clip, its negatives: random faults of random strength.

    Each passes through a capture chain of its own. Twins that hardly differ from the view are left out.
    """
    original = _original(clip, view, base)
    yield original, Capture.draw(rng).apply(base)
    if clip.real and config.faults:
        for fault in draw_faults(config.faults, config.negatives_per_view, original.amount < STILL, rng):
            strength = float(rng.uniform(*STRENGTHS_DRAWN))
            faulty = with_fault(base, fault, strength, int(rng.integers(2**31)))
            if difference(base, faulty) >= LEAST_DIFFERENCE:
                yield _twin(original, fault, strength), Capture.draw(rng).apply(faulty)


def _moves(view: Clip) -> bool:
    return _change(view) >= MIN_CHANGE


def _change(view: Clip) -> float:
    """Mean absolute difference of successive frames, in gray levels."""
    return float(np.abs(np.diff(view.frames.astype(np.int16), axis=0)).mean())


def _sharpness(view: Clip) -> float:
    """Mean absolute Laplacian of the frames' green channel, in gray levels."""
    return float(np.mean([np.abs(cv2.Laplacian(frame[1], cv2.CV_32F)).mean() for frame in view.frames]))


def _max_side_px(profile: Profile) -> int:
    """The largest frame side to keep, so that a crop can still fill the profile's size."""
    return max(640, 2 * math.isqrt(profile.sampling.area_px))


def _original(clip: SourceClip, view: str, base: Clip) -> Sample:
    """The record of a view itself."""
    num, _, height, width = base.frames.shape
    fault = "" if clip.real else GENERATED
    return Sample(
        key=_key(view, fault),
        source=clip.source,
        view=view,
        real=clip.real,
        fault=fault,
        strength=0.0,
        amount=fastest_motion(base),
        change=_change(base),
        sharpness=_sharpness(base),
        fps=base.fps,
        shape=(num, height, width),
    )


def _twin(original: Sample, fault: str, strength: float) -> Sample:
    """The record of a view with a fault."""
    key = _key(original.view, fault)
    return replace(original, key=key, real=False, fault=fault, strength=strength)


def _key(view: str, fault: str) -> str:
    return hashlib.sha256(f"{view} {fault}".encode()).hexdigest()[:24]


def seed_of(text: str) -> int:
    """A seed that depends only on the text, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
