"""Computes the standard error of a reward from how much its windows, and its draws of query points, differ.

Legend: D draws of query points, W windows of the clip, 3 values in the order of REWARDS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protos.types import REWARDS, Logits, StandardError


def standard_error(logits_DW: Sequence[Sequence[Logits]], weights: Logits) -> StandardError | None:
    """The standard errors of a clip's logits before clipping, and of their mean with these weights.

    The error is over the windows, each a mean over the draws. So it covers how much the clip's windows differ, and the
    draw of query points with them. With one window it is over the draws, and covers these alone. With one window and
    one draw there is no spread, and the result is None, not 0.
    """
    values_DW3 = _values(logits_DW, weights)
    num_draws, num_windows, _ = values_DW3.shape
    samples = values_DW3.mean(0) if num_windows > 1 else values_DW3[:, 0]
    if len(samples) < 2:
        return None
    errors = samples.std(0, ddof=1) / math.sqrt(len(samples))
    named = dict(zip(REWARDS, errors.tolist(), strict=True))
    return StandardError(**named, num_windows=num_windows, num_draws=num_draws)


def _values(logits_DW: Sequence[Sequence[Logits]], weights: Logits) -> NDArray[np.float64]:
    pairs = np.array([[[window.instantaneous, window.long_term] for window in row] for row in logits_DW], np.float64)
    shares = np.array([weights.instantaneous, weights.long_term]) / (weights.instantaneous + weights.long_term)
    return np.concatenate([(pairs @ shares)[..., None], pairs], axis=-1)
