"""Implements the spatial faults, which show content at the wrong position: shaking, bending, crawling and teleports.

Each fault takes (clip, strength in (0,1], rng) and returns a clip with the same number of frames. Distances are in
units of S, the short side of the frame. Warps resample every frame but the first, with a kernel that keeps texture, so
that sharpness does not reveal the fault. Beyond the frame the image is reflected.

Shapes: T frames, H, W frame size in pixels, K waves.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.faults.frames import image_of
from reward_server.faults.interpolation import Floats, pixel_grid, sample_sharp

Image = NDArray[np.uint8]

# Root mean square displacement at strength 1, in S. It grows linearly with the strength of swimming and boiling, and
# with strength ** EASE of the others.
JITTER = 0.025
WOBBLE = 0.03
SWAY = 0.025
SWIM = 0.012
BOIL = 0.006
EASE = 1.5
NUM_JUMPS = 6
BOIL_WAVES = (0.05, 0.12)  # wavelengths in S; the displacement folds over itself in shorter waves


def jittered(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Shift and rotate every frame after the first at random, each by 0.3 % (at 0.25) to 2.5 % (at 1) of S rms."""
    num_frames, _, height, width = clip.frames.shape
    reach = JITTER * strength**EASE * min(height, width)
    shifts = rng.normal(0, reach / np.sqrt(2), (num_frames, 2))
    angles = np.rad2deg(rng.normal(0, reach / np.hypot(height, width) * 2, num_frames))
    frames = clip.frames.copy()
    for t in range(1, num_frames):
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angles[t], 1.0)
        turn[:, 2] += shifts[t]
        warped = cv2.warpAffine(
            image_of(frames[t]), turn, (width, height), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101
        )
        frames[t] = warped.transpose(2, 0, 1)
    return Clip(frames=frames, fps=clip.fps)


def wobbled(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Bend the picture smoothly in space and time, as generated video does, by 0.4 % to 3 % of S rms (0.25 to 1)."""
    flow = _waves(clip, rng, wavelengths=(0.6, 2.0), periods_s=(0.6, 2.0), solenoidal=False)
    return _warped(clip, WOBBLE * strength**EASE * flow)


def swimming(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Let texture crawl in small eddies within a textured region, by 0.3 % (at 0.25) to 1.2 % (at 1) of S.

    The rest of the frame is untouched.
    """
    mask = _textured_region(clip, rng)
    flow = _waves(clip, rng, wavelengths=(0.12, 0.3), periods_s=(0.5, 1.5), solenoidal=True)
    return _warped(clip, SWIM * strength * mask * flow)


def swaying(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Bend the picture smoothly to and fro in one period of 0.3 to 0.8 s that repeats exactly, by up to SWAY rms."""
    period_s = rng.uniform(0.3, 0.8)
    flow = _waves(clip, rng, wavelengths=(0.6, 2.0), periods_s=(period_s, period_s), solenoidal=False)
    return _warped(clip, SWAY * strength**EASE * flow)


def boiling(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Displace fine texture at random, anew in every frame, by up to BOIL rms, so that surfaces boil."""
    num_frames, _, height, width = clip.frames.shape
    side = min(height, width)
    cycles = side * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))  # per S
    band = (cycles >= 1 / BOIL_WAVES[1]) & (cycles <= 1 / BOIL_WAVES[0])
    noise = rng.normal(size=(num_frames, height, width, 2)).astype(np.float32).view(np.complex64)[..., 0]
    field = np.fft.ifft2(band * noise)
    field[0] = 0
    flow = field * (side / np.sqrt((np.abs(field[1:]) ** 2).mean()))
    return _warped(clip, np.asarray(BOIL * strength * np.stack([flow.real, flow.imag], -1), np.float32))


def teleporting(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Show patches, hard rectangles or soft ellipses, displaced for a few frames.

    A stronger fault has more jumps (1 to NUM_JUMPS), and they go farther.
    """
    num_frames = len(clip.frames)
    frames = clip.frames.copy()
    jumps = [_Jump(clip, rng) for _ in range(NUM_JUMPS)]
    for jump in jumps[: max(1, int(strength * NUM_JUMPS))]:
        for t in range(jump.start, min(num_frames, jump.start + 1 + round(strength * jump.extra_frames))):
            jump.paste(clip.frames[t], frames[t], strength)
    return Clip(frames=frames, fps=clip.fps)


class _Jump:
    """One patch that jumps from its position to another: the most visible of a few random candidates."""

    def __init__(self, clip: Clip, rng: np.random.Generator, candidates: int = 6) -> None:
        num_frames, _, height, width = clip.frames.shape
        self.start = int(rng.integers(1, num_frames - 1))
        self.extra_frames = int(rng.integers(1, max(2, num_frames // 4)))
        self.size = np.rint(rng.uniform(0.25, 0.45, 2) * min(height, width)).astype(int)
        self.alpha = _blob(*self.size) if rng.random() < 0.5 else np.ones(self.size, np.float32)
        self.room = np.array([height, width]) - self.size
        drawn = [(rng.uniform(0, self.room), rng.uniform(0, 2 * np.pi)) for _ in range(candidates)]
        reach = rng.uniform(0.16, 0.24) * min(height, width)
        self.moves = max(
            ((place, reach * np.array([np.sin(a), np.cos(a)])) for place, a in drawn),
            key=lambda move: self._change(clip.frames[self.start], *move),
        )

    def _slices(self, place: NDArray[np.float64]) -> tuple[slice, slice, slice]:
        top, left = np.rint(np.clip(place, 0, self.room)).astype(int)
        return slice(None), slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def _change(self, frame: Image, place: NDArray[np.float64], move: NDArray[np.float64]) -> float:
        source, target = frame[self._slices(place)], frame[self._slices(place + move)]
        return float(np.abs(source.astype(np.int16) - target).mean())

    def paste(self, source: Image, target: Image, strength: float) -> None:
        """Paste the patch of `source` into `target`, in place, displaced by 0.1 + 0.9 `strength` of the full move."""
        place, move = self.moves
        there = self._slices(place + (0.1 + 0.9 * strength) * move)
        old, new = target[there], source[self._slices(place)]
        target[there] = np.rint(old + self.alpha * (new.astype(np.float32) - old)).astype(np.uint8)


def _waves(
    clip: Clip,
    rng: np.random.Generator,
    *,
    wavelengths: tuple[float, float],
    periods_s: tuple[float, float],
    solenoidal: bool,
    num_waves: int = 16,
) -> Floats:
    """A displacement field [T,H,W,2] (x, y) in pixels: a sum of travelling waves.

    It is 0 in the first frame, and its rms over the later frames is S. `wavelengths` are in S, `periods_s` in seconds.
    Solenoidal waves displace perpendicular to their direction, so that their sum has no divergence. Each wave is a
    product of functions of x, y and t, so the sum is one matrix product.
    """
    num_frames, _, height, width = clip.frames.shape
    side = min(height, width)
    heading = rng.uniform(0, 2 * np.pi, num_waves)
    wavenumber = 2 * np.pi / (side * rng.uniform(*wavelengths, num_waves))
    pulse = 2 * np.pi / rng.uniform(*periods_s, num_waves) * rng.choice([-1, 1], num_waves)
    push = heading + np.pi / 2 if solenoidal else rng.uniform(0, 2 * np.pi, num_waves)
    phase = np.exp(1j * rng.uniform(0, 2 * np.pi, num_waves))
    in_t = np.exp(1j * np.outer(np.arange(num_frames) / clip.fps, pulse)) - 1
    in_y = np.exp(1j * np.outer(np.arange(height), wavenumber * np.sin(heading)))
    in_x = np.exp(1j * np.outer(wavenumber * np.cos(heading), np.arange(width)))
    along = np.stack([np.cos(push), np.sin(push)])  # [2,K]
    left = (phase * in_t)[:, None, None] * along[:, None] * in_y  # [T,2,H,K]
    flow = (left.astype(np.complex64) @ in_x.astype(np.complex64)).real.transpose(0, 2, 3, 1)
    rms = np.sqrt((flow[1:] ** 2).sum(-1).mean())
    return np.asarray(flow * (side / rms), np.float32)


def _warped(clip: Clip, flow: Floats) -> Clip:
    """Warp every frame after the first: sample it at its pixels displaced by `flow` [T,H,W,2]."""
    frames = clip.frames.copy()
    grid = pixel_grid(*frames.shape[2:])
    for t in range(1, len(frames)):
        frames[t] = sample_sharp(image_of(frames[t]), grid + flow[t]).transpose(2, 0, 1)
    return Clip(frames=frames, fps=clip.fps)


def _textured_region(clip: Clip, rng: np.random.Generator) -> Floats:
    """A soft mask [H,W,1] 0..1 over about a third of the frame, where the first frame has texture."""
    _, _, height, width = clip.frames.shape
    gray = clip.frames[0].mean(0, dtype=np.float32)
    detail = cv2.blur(np.abs(cv2.Laplacian(gray, cv2.CV_32F)), (9, 9))
    noise = cv2.resize(rng.normal(size=(4, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    wanted = cv2.GaussianBlur(np.log1p(detail), (0, 0), 0.05 * min(height, width)) + 0.5 * noise
    edge, full = np.quantile(wanted, [0.6, 0.75])
    return np.asarray(np.clip((wanted - edge) / max(full - edge, 1e-6), 0, 1), np.float32)[..., None]


def _blob(height: int, width: int) -> Floats:
    """A soft ellipse [height,width]: 1 inside, falling to 0 at the edge."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    return np.asarray(np.clip((1 - np.hypot(y, x)) / 0.3, 0, 1), np.float32)
