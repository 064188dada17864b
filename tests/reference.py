"""Provides a reference table with round numbers, for tests of what is told from one."""

from __future__ import annotations

import numpy as np

from protos.types import Bounds, Logits
from reward_server.profiles.reference import ONE_WINDOW, SHORT, Band, ReferenceTable, Rung

RISING = tuple(np.linspace(-4.0, 6.0, 101).tolist())  # the percentile of x is 10 (x + 4)
TABLE = ReferenceTable(
    weights="0" * 64,
    discriminator_version="parent-1",
    num_tracks=16,
    bounds=Bounds(min=-10, max=10),
    shares=Logits(instantaneous=1, long_term=1),
    bands=tuple(
        Band(name=name, num_clips=40, combined=RISING, instantaneous=RISING, long_term=RISING)
        for name in (SHORT, ONE_WINDOW)
    ),
    rungs=(
        Rung(like="a real clip", num_clips=24, instantaneous=1.0, long_term=1.0),
        Rung(like="a clip with mild jitter", num_clips=24, instantaneous=-3.0, long_term=0.5),
        Rung(like="a clip with strong wobble", num_clips=24, instantaneous=0.8, long_term=-3.5),
    ),
)
