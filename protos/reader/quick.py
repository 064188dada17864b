"""Shows animated pictures as long as browsers do: a frame of 10 ms or less lasts 100 ms, and authors rely on it.

The engines of Chrome, Firefox and Safari have the rule for every animated format, not only for gif.
"""

from __future__ import annotations

import numpy as np

from protos.reader.payload import Payload
from protos.reader.timeline import PacketTable, Ticks
from protos.types import ClipWarning

QUICKEST_MS, SLOW_MS = 10, 100
MAX_FTYP_BYTES = 256  # as many of the first box are looked at; files have a handful of brands of 4 bytes
ANIMATED = {"gif": "gif", "apng": "png"}  # forms, and what the warning calls them


def animated_kind(payload: Payload, form: str) -> str:
    """What kind of animated picture a container is; empty for a video. An avif is a mov with a brand of its own."""
    return "avif" if form == "mov" and b"avis" in _brands(payload) else ANIMATED.get(form, "")


def _brands(payload: Payload) -> set[bytes]:
    """The brands of an mp4 or mov: its first box names one, and others that it is compatible with."""
    head = payload[:MAX_FTYP_BYTES]
    end = min(len(head), int.from_bytes(head[:4], "big")) if head[4:8] == b"ftyp" else 0
    return {bytes(head[at : at + 4]) for at in (8, *range(16, end, 4)) if end}


def slowed(table: PacketTable, unit_s: float) -> tuple[Ticks, int]:
    """(ticks of `unit_s` seconds to add to each packet, number of packets that are too short)."""
    asked = np.array(table.durations, np.int64)
    quick = asked * unit_s <= (QUICKEST_MS + 0.5) / 1000  # 10 ms in any unit, but not the 11 ms that browsers show
    more = np.where(quick, round(SLOW_MS / 1000 / unit_s) - asked, 0)
    return np.concatenate(([0], np.cumsum(more)[:-1])), int(quick.sum())


def quick_frames(num_quick: int, num_frames: int, kind: str) -> tuple[ClipWarning, ...]:
    """The warning, if there are any such frames."""
    if not num_quick:
        return ()
    share = num_quick / num_frames
    message = (
        f"{share:.0%} of the {kind}'s frames ask for {QUICKEST_MS} ms or less; they last {SLOW_MS} ms, as in browsers"
    )
    return (ClipWarning(code="quick_frames", message=message, share=share),)
