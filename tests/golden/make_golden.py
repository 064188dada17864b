"""Writes this folder's golden files: `python -m tests.golden.make_golden`.

They are our own networks' outputs under the recipe's weights, made when `benchmarks/parity.py` passed on the
official outputs; the tests hold later versions to them. Inputs are formulas, small and of odd sizes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import golden_weights
from benchmarks.golden import Golden, Stored, computed
from reward_server.networks.prepacked import Compute

FOLDER = Path(__file__).parent
SEED = 7
QUERIES = [[0, 0, 0], [2, 66, 50], [1, 66, 0], [0, 31.25, 20.5], [2.9, 3.7, 44.1]]  # corners, fractions, all frames
OUTPUTS = {
    "cotracker3": ("tracks", "visibility", "confidence", "tracks_iters", "tokens_last", "corr_volume_it1"),
    "lc": ("logit_from_cotracker", "b2_logits", "random_tokens_logit", "small_tokens_logit"),
    "searaft_m": ("flow", "flow_it0", "fmap2", "corr_it0", "pad_info"),
    "ic": ("logits", "cls_features", "residual_border"),
}


def drifting_waves(num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Three crossing sine waves per channel that drift at different speeds: uint8 [T,3,H,W]."""
    t, c, y, x = np.ogrid[:num_frames, :3, :height, :width]
    waves = np.sin(0.31 * x + 0.4 * t + c) + np.sin(0.23 * y - 0.7 * t + 2 * c) + np.sin(0.11 * (x + y) + 0.5 * t * c)
    return np.rint(127.5 + 40 * waves).astype(np.uint8)


def inputs() -> dict[str, dict[str, NDArray[np.generic]]]:
    tracker = {
        "video": drifting_waves(3, 51, 67),
        "queries": np.array(QUERIES, np.float32),
        "iters": np.array(3),
        "tokens_index": np.array([1, 4, 40]),
        "corr_rows_tn": np.array([[2, 1]]),
    }
    noise = {"random_tokens_shape": np.array([2, 5, 4, 1110]), "small_tokens_scale": np.array(0.002, np.float32)}
    pairs = {"frames": drifting_waves(2, 64, 80), "pad_frames": drifting_waves(2, 67, 73)}
    return {"cotracker3": tracker, "lc": noise, "searaft_m": pairs, "ic": {"video": drifting_waves(2, 40, 72)}}


def main() -> None:
    for name, given in inputs().items():
        path = FOLDER / f"{name}.npz"
        stored: Stored = {**given, "seed": np.array(SEED)}
        asked = {**stored, **{output: np.zeros(0) for output in OUTPUTS[name]}}
        ours = computed(Golden(path=path, stored=asked, recipe=golden_weights, compute=Compute()))
        np.savez_compressed(path, **stored, **{output: ours[output].numpy() for output in OUTPUTS[name]})


if __name__ == "__main__":
    main()
