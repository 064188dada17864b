"""Computes cues of every place of a frame pair, from the maps that `embedded`'s instantaneous discriminator reads.

They are the residual, the confidence, and how the flow changes from place to place. All are relative to the clip's
typical speed or to the flow itself, so they say how a clip moves and not how much.

Shapes: B clips, P frame pairs, M maps, H, W frame size in pixels, h, w the size of the cues' grid, N = h w places.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_MAP_CUES = 9
GRID_PX = 4  # the cues are taken from means over squares of this side
FINEST = 0.05  # typical speeds; cues are about linear below this and logarithmic above


def map_cues(maps_BP4HW: Tensor) -> Tensor:
    """Cues [B,N,P,9] of relative maps [B,P,4,H,W]: residual over its size, confidence 0..1, flow in typical speeds.

    They are the residual's magnitude and the confidence; the flow's speed, divergence, curl, shear and bending; and the
    logarithms of shear and of bending over speed.
    """
    batch = maps_BP4HW.shape[0]
    maps = F.avg_pool2d(torch.cat([maps_BP4HW[:, :, :1].abs(), maps_BP4HW[:, :, 1:]], dim=2).flatten(0, 1), GRID_PX)
    residual, confidence = maps[:, 0, 1:-1, 1:-1], maps[:, 1, 1:-1, 1:-1]
    cues = [residual, confidence, *_flow_cues(maps[:, 2:])]
    return torch.unflatten(torch.stack(cues, dim=-1).flatten(1, 2), 0, (batch, -1)).transpose(1, 2)


def _flow_cues(flow_P2hw: Tensor) -> list[Tensor]:
    """Cues of a flow, each [P,h-2,w-2], from central differences."""
    inner = flow_P2hw[..., 1:-1, 1:-1]
    right, left = flow_P2hw[..., 1:-1, 2:], flow_P2hw[..., 1:-1, :-2]
    below, above = flow_P2hw[..., 2:, 1:-1], flow_P2hw[..., :-2, 1:-1]
    along_x, along_y = (right - left) / 2, (below - above) / 2
    speed = inner.norm(dim=1)
    divergence = along_x[:, 0] + along_y[:, 1]
    curl = along_x[:, 1] - along_y[:, 0]
    shear = torch.hypot(along_x[:, 0] - along_y[:, 1], along_x[:, 1] + along_y[:, 0])
    bending = (right + left + below + above - 4 * inner).norm(dim=1)
    sizes = [torch.asinh(cue / FINEST) for cue in (speed, divergence.abs(), curl.abs(), shear, bending)]
    own = (speed + FINEST).log()
    return [*sizes, (shear + FINEST).log() - own, (bending + FINEST).log() - own]
