"""Makes all random views of a file in one pass. They are drawn first, then cropped while the file is decoded.

Only the views in progress are in memory, not the file: a few megabytes, however long the file is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protos.reader import Frame, Source, Stretch
from protos.reader.evenness import MOST_UNEVEN, check_uneven, uneven_share_at, uneven_times
from protos.reader.scenes import Scenes, crosses
from protos.reader.source import shrunk, shrunk_size
from protos.reader.times import even_positions
from protos.types import Clip, ClipWarning
from reward_server.decoding.decode import Sampling
from reward_server.errors import UnreadableClip
from reward_server.training.views import DrawnView, Take, draw_view


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """How views are drawn from a file: one per `frames_per_view` frames, at most `most_views` from each stretch.

    Each is the first good one of `tries` draws.
    """

    sampling: Sampling
    frames_per_view: int
    most_views: int
    max_side_px: int
    seed: tuple[int, ...]
    tries: int = 1
    good: Callable[[Clip], bool] = lambda clip: True


@dataclass(kw_only=True)
class _Draw:
    """One view in progress: its draws and the frames collected for each. The first good draw is used."""

    number: int
    rng: np.random.Generator
    views: list[DrawnView]
    frames: list[list[Frame]] = field(default_factory=list)
    settled: bool = False


def source_views(
    source: Source,
    first: int,
    last: int | None,
    plan: ViewPlan,
    warn: Callable[[Sequence[ClipWarning]], None] = lambda warnings: None,
) -> Iterator[tuple[int, Clip, np.random.Generator]]:
    """Yield (number, view, the generator that drew it), in the order in which the views are complete.

    `first`..`last` (exclusive) are the frames to use. No view crosses a jump of time or a cut. Where a few frames are
    missing, the nearest one is used; a stretch that misses too many is left out. `warn` gets the file's warnings at
    the end. Raises UnreadableClip if there are too few frames for any view, or too many missing in all stretches.
    """
    takes = _takes(source, first, last, plan)
    draws = _draws(takes, plan)
    due: dict[int, list[tuple[_Draw, int, int]]] = defaultdict(list)
    for draw in draws:
        for which, view in enumerate(draw.views):
            for at, position in enumerate(view.positions):
                due[position].append((draw, which, at))
    scenes = Scenes()
    for position, frame in source.frames(
        sorted(due), lambda picture: shrunk(picture, plan.max_side_px), watch=scenes.watch
    ):
        touched: dict[int, _Draw] = {}
        for draw, which, at in due.pop(position):
            if not draw.settled:
                draw.frames[which].append(draw.views[which].cut(at, frame))
                touched[draw.number] = draw
        for draw in touched.values():
            clip = _settled(draw, source.times_s, scenes, plan)
            if clip is not None:
                yield draw.number, clip, draw.rng
    uneven = uneven_times(max(take.uneven for take in takes))
    warn((*source.warnings, *uneven, *scenes.warnings()))


def _takes(source: Source, first: int, last: int | None, plan: ViewPlan) -> list[Take]:
    """The stretches that are long and even enough."""
    takes = [_take(source, stretch, plan) for stretch in source.within(first, last)]
    long = [take for take in takes if take.positions.size >= plan.sampling.min_frames]
    if not long:
        most = max((take.positions.size for take in takes), default=0)
        raise UnreadableClip(
            f"the clip has {most} frames without a jump of time, {plan.sampling.min_frames} are needed; leave it out"
        )
    even = [take for take in long if take.uneven <= MOST_UNEVEN]
    if not even:
        source.require_counted_times()
        check_uneven(min(take.uneven for take in long), plan.sampling.fps)
    return even


def _draws(takes: Sequence[Take], plan: ViewPlan) -> list[_Draw]:
    draws: list[_Draw] = []
    for take in takes:
        for _ in range(min(plan.most_views, math.ceil(take.positions.size / plan.frames_per_view))):
            rng = np.random.default_rng((*plan.seed, len(draws)))
            views = [draw_view(take, plan.sampling, rng)]
            while len(views) < plan.tries:  # near the first, so that its frames need not be held for long
                views.append(draw_view(take, plan.sampling, rng, near=views[0].start))
            draws.append(_Draw(number=len(draws), rng=rng, views=views, frames=[[] for _ in views]))
    return draws


def _take(source: Source, stretch: Stretch, plan: ViewPlan) -> Take:
    height, width = shrunk_size(stretch.height_px, stretch.width_px, plan.max_side_px)
    times_s = source.times_s[stretch.first : stretch.last]
    return Take(
        positions=stretch.first + even_positions(times_s),
        fps=source.fps,
        height_px=height,
        width_px=width,
        uneven=uneven_share_at(times_s, plan.sampling.fps),
    )


def _settled(draw: _Draw, times_s: NDArray[np.float64], scenes: Scenes, plan: ViewPlan) -> Clip | None:
    """The view, when its first good draw is complete, else None. The frames are then freed, also if no draw is good."""
    for view, frames in zip(draw.views, draw.frames, strict=True):
        if len(frames) < len(view.positions):
            return None
        clip = view.clip(frames)
        cut = crosses(scenes.cuts_s(), float(times_s[view.positions[0]]), float(times_s[view.positions[-1]]))
        if not cut and plan.good(clip):
            draw.settled, draw.frames = True, []
            return clip
    draw.settled, draw.frames = True, []
    return None
