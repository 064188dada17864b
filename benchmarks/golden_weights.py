"""Makes deterministic weights for parity checks: every tensor is a function of its name, its shape and a seed.

value = base + scale * z, where z is standard normal from Philox with the key crc32(name) + (seed << 32). The rules
keep the activations of the random networks in a reasonable range. A golden folder may bring its own
`weights_recipe.py` with the functions `normal` and `fill`; see `parity.py`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

NORM = re.compile(r"(^|\.)(norm\d?|bn\d|norm_context|fc_norm)\.(weight|bias)$")
AS_BUILT = re.compile(r"(^|\.)(time_emb|num_batches_tracked)$|^sobel_layer\.")
QUERY_GAIN = (r"(attn|cross_attn)\.to_q\.weight$", 1.5)

SCALES = {"running_mean": 0.1, "virual_tracks": 1.0, "gamma": 0.3, "pos_embed": 0.5, "cls_token": 0.5}
GAINS: dict[str, tuple[tuple[str, float], ...]] = {  # first match wins; else 1, or sqrt(2) for convolutions
    "cotracker": (
        (r"^corr_mlp\.fc1\.weight$", 4.0),
        (r"^corr_mlp\.fc2\.weight$", 2.0),
        (r"flow_head\.weight$", 0.35),
        (r"vis_conf_head\.weight$", 0.6),
        QUERY_GAIN,
        (r"^fnet\..*weight$", 1.414),
    ),
    "searaft": (
        (r"(cnet|fnet)\.layer\d\.\d\.conv2\.weight$", 0.5),
        (r"(cnet|fnet)\.final_conv\.weight$", 0.5),
        (r"^(cnet|fnet)\..*weight$", 1.0),
        (r"^flow_head\.0\.weight$", 1.2),
        (r"^flow_head\.2\.weight$", 1.0),
        (r"^upsample_weight\.2\.weight$", 3.0),
        (r"convc1\.weight$", 1.4),
    ),
    "trackformer": (QUERY_GAIN, (r"classfier_head\.classifier\.\d\.weight$", 3.0)),
    "vit": ((r"patch_embed\.proj\.weight$", 0.1), (r"attn\.qkv\.weight$", 1.3), (r"head\.weight$", 2.0)),
}


def normal(name: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Standard normal float32 of `shape`, reproducible from `name` and `seed`."""
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode()) + (seed << 32)))
    return generator.standard_normal(size=shape, dtype=np.float32)


def fill(shapes: Mapping[str, tuple[int, ...]], model: str, seed: int = 0) -> dict[str, Array]:
    """Weights of the named entries. `model` is a key of GAINS, or `ic`, whose prefixes tell flow network and ViT apart.

    Entries that stay as constructed (time_emb, num_batches_tracked, sobel_layer.*) are left out.
    """
    return {
        name: _value(name, tuple(shape), model, seed) for name, shape in shapes.items() if not AS_BUILT.search(name)
    }


def _value(name: str, shape: tuple[int, ...], model: str, seed: int) -> Array:
    if model == "ic":
        model = "searaft" if name.startswith("flow_layer.") else "vit"
    name = name.removeprefix("flow_layer.model.").replace(".downsample.1.", ".bn3.")  # one tensor, two names
    z, kind = normal(name, shape, seed), name.rpartition(".")[2]
    if kind == "running_var":
        return np.float32(1) + np.float32(0.2) * np.abs(z)
    if NORM.search(name):
        return np.float32(kind == "weight") + np.float32(0.1) * z
    if kind in SCALES:
        return np.float32(SCALES[kind]) * z
    return _bias(name, z, model) if kind == "bias" else _matrix(name, z, model)


def _bias(name: str, z: Array, model: str) -> Array:
    bias = np.float32(0.02) * z
    if model == "searaft" and name == "flow_head.2.bias":  # flow x, y | mixture logits | raw log b
        bias = bias + np.array([0, 0, 0, 0, 1, 0], np.float32)
    return bias


def _matrix(name: str, z: Array, model: str) -> Array:
    gain = next((gain for pattern, gain in GAINS[model] if re.search(pattern, name)), 1.414 if z.ndim == 4 else 1.0)
    weight = np.float32(gain / np.sqrt(int(np.prod(z.shape[1:])))) * z
    if model == "searaft" and name == "flow_head.2.weight":
        weight = weight * np.array([0.25, 0.25, 1, 1, 1, 1], np.float32)[:, None, None, None]
    return weight
