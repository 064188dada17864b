"""Searches for cheap changes of a clip that raise its reward without mending its motion: CMA-ES within a fixed budget.

There are two searches. `look` keeps the clip's motion and changes only how it looks. `degenerate` also breaks the
motion: at least half of the clip is held, and the picture may glide, sway, dissolve and be smoothed in time.
CMA-ES is Hansen's evolution strategy (arXiv 1604.00772), as in the package `cma`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.errors import BadRequest, NotReady
from reward_server.evaluation import looks
from reward_server.evaluation.looks import Frames
from reward_server.faults import time_remap
from reward_server.stats import Floats

SIGMA = 0.2  # first step of the search, as a share of each parameter's range
CODEC_OFF = 18.0  # below this crf the codec is left out

Values = Mapping[str, float]
Score = Callable[[Sequence[Clip]], Floats]  # clips -> rewards [N], NaN where there is none


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One number of a transformation with its bounds. At `neutral` it changes nothing."""

    name: str
    low: float
    high: float
    neutral: float = 0.0


def _parameters(*rows: tuple[str, float, float, float]) -> tuple[Parameter, ...]:
    return tuple(Parameter(name=name, low=low, high=high, neutral=neutral) for name, low, high, neutral in rows)


LOOK = _parameters(
    ("noise", 0, 10, 0),  # gray levels
    ("grain", 0, 8, 0),  # gray levels
    ("grain_px", 0.7, 4, 1),
    ("flicker", 0, 0.05, 0),  # share of the brightness
    ("blur_px", 0, 2, 0),
    ("sharpening", 0, 1.5, 0),
    ("gamma", 0.6, 1.6, 1),
    ("contrast", 0.5, 1.4, 1),
    ("saturation", 0, 1.6, 1),
    ("red", 0.85, 1.15, 1),
    ("green", 0.85, 1.15, 1),
    ("blue", 0.85, 1.15, 1),
    ("scale", 0.4, 1, 1),  # size to which the frames are shrunk and enlarged again
    ("block_step", 0, 24, 0),  # gray levels to whose multiples 8 px blocks are rounded
    ("crf", 10, 40, 10),
    ("vignette", 0, 0.6, 0),
    ("letterbox", 0, 0.25, 0),  # share of the height
    ("mirrored", 0, 1, 0),  # from 0.5 on
)
MOTION = _parameters(
    ("held", 0.5, 1, 1),  # share of the clip in which a frame is held
    ("slowness", 0, 0.9, 0),  # of the rest: the share of its speed that is lost
    ("pan_x", -0.12, 0.12, 0),  # share of the width over the clip
    ("pan_y", -0.12, 0.12, 0),
    ("zoom", -0.12, 0.12, 0),  # over the clip
    ("turn_deg", -6, 6, 0),  # over the clip
    ("sway", 0, 0.02, 0),  # share of the width
    ("sway_s", 0.5, 3, 1),  # period of the sway
    ("dissolve", 0, 1, 0),  # share of the last frame that the clip has faded to at its end
    ("smoothing", 0, 0.7, 0),  # weight of the neighbouring frames
)
SEARCHES: dict[str, tuple[Parameter, ...]] = {"look": LOOK, "degenerate": (*MOTION, *LOOK)}
# Where the searches begin. These are tried in the first generation; the first one is the middle of it.
STARTS: dict[str, tuple[Values, ...]] = {
    "look": ({},),
    "degenerate": ({"zoom": 0.06, "noise": 1}, {"noise": 1}, {"held": 0.5, "slowness": 0.9, "noise": 1}),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many clips are scored per real clip, in both searches together, in generations of `population` clips."""

    evaluations: int = 96
    population: int = 12

    def __post_init__(self) -> None:
        if self.evaluations and not self.generations:
            raise BadRequest(
                f"a budget of {self.evaluations} is less than one population of {self.population} for each of the "
                f"{len(SEARCHES)} searches; give {len(SEARCHES) * self.population} or more, or 0 to search not at all"
            )

    @property
    def generations(self) -> int:
        """Generations of each search."""
        return self.evaluations // len(SEARCHES) // self.population


@dataclass(frozen=True, kw_only=True)
class Find:
    """The best that a search found: its reward (None if nothing was scored), and the values that give it."""

    search: str
    reward: float | None
    values: Values
    evaluations: int
    missing: int  # of these, without a reward

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find(clip: Clip, name: str, score: Score, budget: Budget, *, seed: int) -> Find:
    """Run the search `name`, one of SEARCHES, on a clip. The same scores, budget and seed give the same result.

    Raises NotReady if the package cma is not installed.
    """
    parameters = SEARCHES[name]
    best: tuple[float, Values] = (-math.inf, {})
    missing = 0
    for candidates, tell in _generations(name, budget, seed):
        values = [_values(parameters, candidate) for candidate in candidates]
        rewards = score([transformed(clip, one, seed) for one in values])
        missing += int(np.isnan(rewards).sum())
        best = max(
            [best, *zip(np.nan_to_num(rewards, nan=-math.inf).tolist(), values, strict=True)], key=lambda b: b[0]
        )
        tell(rewards)
    found = None if math.isinf(best[0]) else best[0]
    tried = budget.generations * budget.population
    return Find(search=name, reward=found, values=best[1], evaluations=tried, missing=missing)


def _generations(
    name: str, budget: Budget, seed: int
) -> Iterator[tuple[list[NDArray[np.float64]], Callable[[Floats], None]]]:
    """Candidates in the unit box, and where to tell their rewards."""
    rng = np.random.default_rng([seed, *name.encode()])
    starts = [_place(SEARCHES[name], start) for start in STARTS[name]][: budget.population]
    options = {
        "bounds": [0, 1],
        "popsize": budget.population,
        "verbose": -9,
        "seed": math.nan,  # numpy's global generator stays as it is
        "randn": lambda *shape: rng.standard_normal(shape),
    }
    strategy = load_cma().CMAEvolutionStrategy(starts[0], SIGMA, options)
    for generation in range(budget.generations):
        candidates = strategy.ask()
        if generation == 0:
            candidates[: len(starts)] = starts

        def tell(rewards: Floats, candidates: list[NDArray[np.float64]] = candidates) -> None:
            # The strategy only ranks them; a candidate without a reward comes last.
            last = np.nanmin(rewards) - 1 if np.isfinite(rewards).any() else 0.0
            strategy.tell(candidates, (-np.nan_to_num(rewards, nan=last)).tolist())

        yield candidates, tell


def load_cma() -> ModuleType:
    """The package of the search. Raises NotReady if it is not installed."""
    try:
        import cma  # noqa: PLC0415 - it takes a second to load
    except ModuleNotFoundError as error:
        raise NotReady(
            "the search needs the package cma; run `pip install cma`, or search not at all with --budget 0"
        ) from error
    return cma


def _place(parameters: Sequence[Parameter], values: Values) -> NDArray[np.float64]:
    """Where values lie in the unit box; the neutral value of those that are not given."""
    return np.array([(values.get(p.name, p.neutral) - p.low) / (p.high - p.low) for p in parameters])


def _values(parameters: Sequence[Parameter], place: NDArray[np.float64]) -> dict[str, float]:
    return {p.name: float(p.low + at * (p.high - p.low)) for p, at in zip(parameters, place, strict=True)}


# --- transformations ----------------------------------------------------------------------------


def transformed(clip: Clip, values: Values, seed: int) -> Clip:
    """Apply the values of a search to a clip. Without values of MOTION, its motion stays as it is."""
    full = {p.name: p.neutral for p in (*MOTION, *LOOK)} | dict(values)
    rng = np.random.default_rng(seed)
    moves = any(p.name in values for p in MOTION)
    frames = _glided(_slowed(clip, full), full, clip.fps) if moves else looks.frames_of(clip)
    return looks.clip_of(_looked(frames, full, clip.fps, rng), clip.fps)


def _slowed(clip: Clip, v: Values) -> Frames:
    """Play the clip's first part at a lower speed, then hold its last frame; dissolve, and smooth in time."""
    num_frames = len(clip.frames)
    moving = math.floor((1 - v["held"]) * (num_frames - 1))
    frames = looks.frames_of(time_remap(clip, (1 - v["slowness"]) * np.minimum(np.arange(num_frames), moving)))
    share = (v["dissolve"] * np.linspace(0, 1, num_frames)).astype(np.float32)[:, None, None, None]
    last = looks.frames_of(Clip(frames=clip.frames[-1:], fps=clip.fps))
    return looks.smoothed((1 - share) * frames + share * last, v["smoothing"])


def _glided(frames: Frames, v: Values, fps: float) -> Frames:
    """Move the picture evenly over the clip, with a sway."""
    way = np.linspace(0, 1, len(frames))
    swayed = v["sway"] * np.sin(2 * math.pi * np.arange(len(frames)) / fps / v["sway_s"])
    return looks.camera(
        frames,
        pan_x=v["pan_x"] * way + swayed,
        pan_y=v["pan_y"] * way,
        zoom=1 + max(-v["zoom"], 0) + v["zoom"] * way,  # outward from a larger picture, so that no border shows
        turn_deg=v["turn_deg"] * way,
    )


def _looked(frames: Frames, v: Values, fps: float, rng: np.random.Generator) -> Frames:
    num_frames = len(frames)
    if v["mirrored"] >= 0.5:
        frames = np.ascontiguousarray(frames[:, :, ::-1])
    if v["scale"] < 1:
        frames = looks.rescaled(frames, [v["scale"]] * num_frames)
    frames = looks.sharpened(looks.blurred(frames, [v["blur_px"]] * num_frames), v["sharpening"])
    frames = looks.graded(
        frames,
        gamma=v["gamma"],
        contrast=v["contrast"],
        saturation=v["saturation"],
        cast=(v["red"], v["green"], v["blue"]),
    )
    if v["block_step"] >= 1:
        frames = looks.quantised(frames, v["block_step"])
    frames = looks.letterboxed(looks.vignetted(frames, v["vignette"]), v["letterbox"])
    frames = looks.flickered(frames, v["flicker"], rng)
    frames = looks.noisy(looks.grainy(frames, v["grain"], v["grain_px"], rng), v["noise"], rng)
    return frames if v["crf"] < CODEC_OFF else looks.coded(frames, fps, round(v["crf"]))
