"""Plans how large an explanation may be: the cells of its maps and the number of its tracks, within a limit in bytes.

Maps get smaller first, because a coarse map still shows where the residual is high. Then tracks are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOST_TRACKS = 64
SIDES = (64, 56, 48, 40, 32, 24, 16, 12, 8)  # cells of a map's longer side
FEWER_TRACKS = (32, 16, 8, 4, 2, 1, 0)
PLACE_BYTES = 4 * 8  # of a track in one frame: x, y, visibility and confidence
TRACK_BYTES = 48  # what the message adds to a track: its share, tags and lengths
WINDOW_BYTES = 200  # the same of a window, its maps and its percentiles
TIME_BYTES = 3 * 8  # of one frame: its time and a number of each curve
SENTENCE_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Room:
    """The size of each map in cells (0 x 0: no map), and the number of tracks per window."""

    height: int
    width: int
    tracks: int

    def num_bytes(self, windows: int, frames: int) -> int:
        """At most what the explanation takes as a message, for windows of this number of frames."""
        maps = 2 * (frames - 1) * self.height * self.width
        tracks = self.tracks * (frames * PLACE_BYTES + TRACK_BYTES)
        return windows * (WINDOW_BYTES + frames * TIME_BYTES + maps + tracks)


def room_for(
    *, windows: int, frames: int, height_px: int, width_px: int, tracks: int, max_bytes: int
) -> tuple[Room, str]:
    """The largest room within `max_bytes`, for maps of frames of this size, and what was made smaller.

    The text is empty if nothing was. Curves and times always stay.
    """
    rooms = list(_rooms(height_px, width_px, min(tracks, MOST_TRACKS)))
    wanted = rooms[0]
    fits = (room for room in rooms if room.num_bytes(windows, frames) <= max_bytes - SENTENCE_BYTES)
    room = next(fits, rooms[-1])
    return room, "" if room == wanted else _told(wanted, room, max_bytes)


def _rooms(height_px: int, width_px: int, tracks: int) -> Iterator[Room]:
    for side in SIDES:
        yield _room(height_px, width_px, side, tracks)
    for num in FEWER_TRACKS:
        if num < tracks:
            yield _room(height_px, width_px, SIDES[-1], num)
    yield Room(height=0, width=0, tracks=0)


def _room(height_px: int, width_px: int, side: int, tracks: int) -> Room:
    factor = min(1.0, side / max(height_px, width_px))
    height, width = (max(1, round(length * factor)) for length in (height_px, width_px))
    return Room(height=height, width=width, tracks=tracks)


def _told(wanted: Room, room: Room, max_bytes: int) -> str:
    maps = f"maps have {room.height}x{room.width} cells instead of {wanted.height}x{wanted.width}"
    tracks = f" and {room.tracks} tracks instead of {wanted.tracks} are shown" if room.tracks < wanted.tracks else ""
    return (
        f"{maps}{tracks}, so that the explanation stays within {max_bytes} bytes (explain_max_bytes); send a shorter "
        "clip, or raise it on the server"
    )
