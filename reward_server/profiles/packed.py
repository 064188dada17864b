"""Packs a clip's motion features into small tensors, and unpacks them. The feature cache and a run's store keep these.

The first axis of `tracks`, `state` and `correlation` is tracks, that of `maps` is frame pairs. The types, and how
exact each value is:

    Motion           tracks int16, to 1/64 px; visibility, confidence uint8, to 1/255; correlation int8, to 1/127;
                     residual r int8, to sqrt(|r|)/8 gray levels, up to 252; flow confidence int8, to 1/255.
                     0.8 MiB for 256 tracks x 16 frames and 8 pairs of 144x256.
    NetworkMotion    tracks float32, exact, and so are the displacement features; logits of visibility and
                     confidence float16, to 1/2048 of their value; the correlation embedding int8 with a scale
                     per channel, to 1/254 of the channel's largest value in the clip; residual r uint8, to
                     sqrt(|r|)/4 + 1/64 gray levels, up to 1008; flow confidence uint8, to 1/510.
                     N x T x 1036 + P x 2 x H x W bytes: 12.1 + 4.2 MiB for 512 tracks x 24 frames and 12 pairs
                     of 320x576.

Displacements, sines and the time embedding are computed again when tokens are read.

Shapes: N tracks, T frames, P frame pairs, D token size, C channels, H, W frame size in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from reward_server.motion import Motion, NetworkMotion
from reward_server.profiles import Profile

TRACK_SCALE = 64.0
CHANNEL_SCALE = "correlation_scale"  # [C] float32, beside the embedding of a NetworkMotion
RESIDUAL_SCALE = {torch.int8: 8.0, torch.uint8: 4.0}  # by storage type: int8 is finer, uint8 has the wider range


def pack(motion: Motion, *, num_pairs: int, num_tracks: int | None = None) -> dict[str, Tensor]:
    """Pack one clip's motion into tensors on the CPU, with `num_pairs` evenly spaced frame pairs.

    All tracks of a Motion are kept, because the tokens of one need the others. Of a NetworkMotion only the first
    `num_tracks` are kept, if it is given.
    """
    pairs = torch.from_numpy(np.unique(np.linspace(0, len(motion.residual) - 1, num_pairs).round().astype(int)))
    if isinstance(motion, NetworkMotion):
        return _packed_network(motion, slice(num_tracks)) | {"maps": _packed_maps(motion, pairs, torch.uint8)}
    return {
        "tracks": _rounded(motion.tracks.transpose(0, 1) * TRACK_SCALE, torch.int16),
        "state": _rounded(motion.state.transpose(0, 1) * 255, torch.uint8),
        "correlation": _rounded(motion.correlation.transpose(0, 1) * 127, torch.int8),
        "maps": _packed_maps(motion, pairs, torch.int8),
    }


def unpack_tokens(packed: Mapping[str, Tensor], profile: Profile, start: int, num: int) -> Tensor:
    """Track tokens [num,T,D] of `num` packed tracks, beginning with track `start`."""
    chosen, alone = slice(start, start + num), CHANNEL_SCALE in packed
    needed = chosen if alone else slice(None)
    tracks, state, correlation = (
        packed[name][needed].transpose(0, 1).float() for name in ("tracks", "state", "correlation")
    )
    if alone:
        visibility, confidence = state.unbind(-1)
        return profile.track_tokens(tracks, visibility, confidence, correlation * packed[CHANNEL_SCALE])
    visibility, confidence = (state / 255).unbind(-1)
    return profile.track_tokens(tracks / TRACK_SCALE, visibility, confidence, correlation / 127, chosen=chosen)


def unpack_maps(packed: Tensor) -> Tensor:
    """Unpack residual and confidence maps [P,2,H,W]."""
    codes = packed.float() - _zero(packed.dtype)
    residual = codes[:, 0].sign() * (codes[:, 0] / RESIDUAL_SCALE[packed.dtype]).square()
    return torch.stack([residual, (codes[:, 1] + 128) / 255], dim=1)


def _packed_network(motion: NetworkMotion, kept: slice) -> dict[str, Tensor]:
    correlation_NTC = motion.correlation.transpose(0, 1)[kept]
    scale = correlation_NTC.abs().amax(dim=(0, 1)).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return {
        "tracks": motion.tracks.transpose(0, 1)[kept].contiguous().cpu(),
        "state": motion.logits.transpose(0, 1)[kept].half().contiguous().cpu(),
        "correlation": _rounded(correlation_NTC / scale, torch.int8),
        CHANNEL_SCALE: scale.cpu(),
    }


def _packed_maps(motion: Motion, pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [P,2,H,W]: the signed square root of the residual, scaled, and the confidence over all 256 codes."""
    residual, confidence = motion.residual[pairs], motion.flow_confidence[pairs] * 255 - 128
    companded = residual.sign() * residual.abs().sqrt() * RESIDUAL_SCALE[dtype]
    return _rounded(torch.stack([companded, confidence], dim=1) + _zero(dtype), dtype)


def _zero(dtype: torch.dtype) -> int:
    """The code of value 0: 0 for signed types, 128 for uint8."""
    return 0 if dtype.is_signed else 128


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return values.round().clamp(limits.min, limits.max).to(dtype).contiguous().cpu()
