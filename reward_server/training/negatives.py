"""Chooses the faulty twins of a view, balanced in how much they move.

Most faults take motion away. Trained on those alone, a discriminator becomes a measure of the amount of motion. So each
view gets as many twins that move more, or as much, as twins that move less. A view in which hardly anything moves gets
none of the faults that only hold the picture: its real clip looks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward_server.faults.still_clips import HOLDING

LESS = ("static", "frozen", "stutter", "damped", "slowed", "gliding", "subject_frozen")
ALIKE = ("ghosted", "morphing", "teleporting", "swimming", "shuffled", "reversed", "popping", "speed_change")
MORE = ("jittered", "wobbled", "swaying", "boiling", "surging", "exaggerated")


def draw_faults(faults: Sequence[str], num: int, still: bool, rng: np.random.Generator) -> list[str]:
    """Draw up to `num` different faults, in turn from those that move less, as much, and more than their clip."""
    groups = [[name for name in group if name in faults] for group in (LESS, ALIKE, MORE)]
    groups.append([name for name in faults if not any(name in group for group in groups)])
    usable = [[name for name in group if not (still and name in HOLDING)] for group in groups]
    turns = [list(rng.permutation(group)) for group in usable if group]
    ordered = [turn[place] for place in range(max(map(len, turns), default=0)) for turn in turns if place < len(turn)]
    return [str(name) for name in ordered[:num]]
