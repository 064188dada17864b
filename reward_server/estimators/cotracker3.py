"""Tracks query points through a clip with CoTracker3 offline, frozen, and returns the tokens of its last iteration.

The long-term discriminator reads these tokens. The network follows CoTracker3 (arXiv 2410.11831): a feature net per
frame, a feature pyramid, correlation of the 7x7 neighbourhoods of query and track, and a transformer that refines
position, visibility and confidence in a few iterations. Parameter names, misspellings included, are those of the
published checkpoint, so it loads strictly. Clips may have any length; clips of a batch are independent.

Shapes: B clips, T frames, N tracks, C channels, D token size, H, W input size in pixels, h, w size of a pyramid
level in cells. "Model pixels" are pixels of the 384x512 frames that the networks see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.estimators.feature_net import STRIDE_PX, FeatureNet
from reward_server.estimators.local_correlation import WINDOW, Pyramid, correlation, support_features
from reward_server.motion import displacement_features
from reward_server.networks.compiled import compilable
from reward_server.networks.prepacked import Compute, Linear, Mlp, passes, per_pass, releasing, set_compute
from reward_server.networks.track_transformer import TrackTransformer, TrackViTConfig

NUM_LEVELS = 4
FEATURE_DIM = 128
CORRELATION_DIM = 256
DISPLACEMENT_DIM = 84
TOKEN_DIM = 2 + NUM_LEVELS * CORRELATION_DIM + DISPLACEMENT_DIM
SUPPORT_SIDE = 6


@dataclass(frozen=True, kw_only=True)
class CoTracker3Config:
    """Sizes of the network; the defaults are the published checkpoint's.

    On a CPU, small passes are fast: the feature net takes `frames_per_pass` frames at once, and features are gathered
    for `tracks_per_pass` tracks at once. All other passes are sized by the memory that `Compute` allows.
    Raises ValueError for frames that are too small, no iteration, or another token size.
    """

    height_px: int = 384
    width_px: int = 512
    iters: int = 4
    window_frames: int = 60
    trunk: TrackViTConfig = field(default_factory=lambda: TrackViTConfig(token_dim=TOKEN_DIM))
    frames_per_pass: int = 1
    tracks_per_pass: int = 16

    def __post_init__(self) -> None:
        if min(self.height_px, self.width_px) < STRIDE_PX * 2 ** (NUM_LEVELS - 1) or self.iters < 1:
            raise ValueError(f"need at least 32x32 model pixels and one iteration, got {self}")
        if self.trunk.token_dim != TOKEN_DIM:
            raise ValueError(f"the trunk must read tokens of {TOKEN_DIM}, got {self.trunk.token_dim}")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Tracks and the tokens that the long-term discriminator reads. The tracking of a single clip has no B.

    tracks      [B,T,N,2]    float32, (x, y) model pixels
    visibility  [B,T,N]      float32 0..1
    confidence  [B,T,N]      float32 0..1
    tokens      [B,N,T,1110] float32, the input of the last iteration, so they encode the state before the last
                update. With `tokens_only` the last update is left out, and the other three hold that state too.
    """

    tracks: Tensor
    visibility: Tensor
    confidence: Tensor
    tokens: Tensor


class CoTracker3(nn.Module):
    compute: Compute | None = None

    def __init__(self, config: CoTracker3Config | None = None, compute: Compute | None = None) -> None:
        super().__init__()
        self.config = config or CoTracker3Config()
        self.time_emb: Tensor
        self.register_buffer("time_emb", time_embedding(self.config.window_frames, TOKEN_DIM))
        self.fnet = FeatureNet()
        self.updateformer = UpdateFormer(self.config.trunk)
        self.corr_mlp = Mlp(WINDOW**4, 384, CORRELATION_DIM)
        self.requires_grad_(False)
        set_compute(self, compute or Compute())

    @releasing
    def forward(
        self, frames_BT3HW: Tensor, queries_BN3: Tensor, *, tokens_only: bool = False, keep_support: bool = False
    ) -> Tracking:
        """Track queries [B,N,3] (frame, x, y in input pixels) through frames [B,T,3,H,W] (RGB 0..255, uint8 or float).

        Leave the queries on the CPU: checking them there does not wait for the device. `tokens_only` leaves out the
        last update. `keep_support` appends the support grid's 36 tracks to the result.
        Raises ValueError for other shapes and for a query frame outside the clip.
        """
        _check(frames_BT3HW, queries_BN3)
        height, width = frames_BT3HW.shape[-2:]
        clips = []
        for frames_T3HW, queries_N3 in zip(frames_BT3HW, queries_BN3, strict=True):
            queries = self.model_queries(queries_N3, height, width).to(frames_T3HW.device, non_blocking=True)
            kept = len(queries) if keep_support else len(queries_N3)
            clips.append(self.track(self.encode(frames_T3HW), queries, kept, tokens_only=tokens_only))
        names = [f.name for f in dataclasses.fields(Tracking)]
        return Tracking(**{name: _stacked([getattr(clip, name) for clip in clips]) for name in names})

    def model_queries(self, queries_N3: Tensor, height: int, width: int) -> Tensor:
        """Scale queries from input pixels to model pixels and append the support grid of frame 0: [N,3] -> [N+36,3]."""
        config = self.config
        scale = [1, (config.width_px - 1) / max(width - 1, 1), (config.height_px - 1) / max(height - 1, 1)]
        queries = queries_N3.float() * queries_N3.new_tensor(scale, dtype=torch.float32)
        return torch.cat([queries, support_grid(config.height_px, config.width_px).to(queries)])

    def encode(self, frames_T3HW: Tensor) -> Pyramid:
        """Compute the feature pyramid of a clip [T,3,H,W]. It can be used for any number of query sets."""
        config = self.config
        size = (config.height_px // STRIDE_PX, config.width_px // STRIDE_PX)
        level = torch.empty(len(frames_T3HW), *size, FEATURE_DIM, device=frames_T3HW.device)
        bytes_each = 4 * 128 * config.height_px * config.width_px  # about what a frame takes inside the feature net
        num = per_pass(self.compute, frames_T3HW.device, config.frames_per_pass, bytes_each)
        for part in passes(len(frames_T3HW), num):
            level[part] = self._features(frames_T3HW[part]).permute(0, 2, 3, 1)
        levels = [level.permute(0, 3, 1, 2)]  # channels-last, like every coarser level
        for _ in range(NUM_LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return tuple(level_TCHW.permute(0, 2, 3, 1).contiguous() for level_TCHW in levels)

    def resized(self, frames_T3HW: Tensor) -> Tensor:
        """Resize frames to model pixels: [T,3,H,W] -> float32 [T,3,384,512], still 0..255."""
        size = (self.config.height_px, self.config.width_px)
        return F.interpolate(frames_T3HW.float(), size, mode="bilinear", align_corners=True)

    def _features(self, frames_T3HW: Tensor) -> Tensor:
        frames = 2 * (self.resized(frames_T3HW) / 255) - 1
        features = self.fnet(frames).float()
        return features * features.square().sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()  # type: ignore[no-any-return]

    def track(
        self, pyramid: Pyramid, queries_N3: Tensor, num_kept: int | None = None, *, tokens_only: bool = False
    ) -> Tracking:
        """Track one clip, given its pyramid and queries [N,3] in model pixels. The result has no B.

        Only the tracks of the first `num_kept` queries are returned; by default all are.
        """
        steps = self.refinements(pyramid, queries_N3, num_kept, tokens_only=tokens_only)
        for _ in range(self.config.iters):
            refined = None  # tokens take 100 MiB or more, so the previous ones are freed before the next are made
            refined = next(steps)
        assert refined is not None
        tokens, state = refined
        state_TN4 = state[:num_kept].transpose(0, 1)
        return Tracking(
            tracks=state_TN4[..., :2] * STRIDE_PX,
            visibility=state_TN4[..., 2].sigmoid(),
            confidence=state_TN4[..., 3].sigmoid(),
            tokens=tokens[:num_kept],
        )

    def refinements(
        self, pyramid: Pyramid, queries_N3: Tensor, num_kept: int | None = None, *, tokens_only: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each iteration, the tokens [N,T,D] it read and the state [N,T,4] after it.

        The state is (x, y) in level-0 cells, then the logits of visibility and confidence. With `tokens_only`, the
        last iteration computes only the tokens of the first `num_kept` queries and leaves the state as it was.
        """
        state = F.pad(queries_N3[:, 1:] / STRIDE_PX, (0, 2))[:, None].repeat(1, len(pyramid[0]), 1)
        for iteration in range(self.config.iters):
            final = tokens_only and iteration == self.config.iters - 1
            state = state[:num_kept] if final else state
            tokens = self.tokens(pyramid, queries_N3, state)
            if not final:
                state = state + self.updateformer(tokens[None])[0].float()
            yield tokens, state
            del tokens

    def tokens(self, pyramid: Pyramid, queries_N3: Tensor, state_NT4: Tensor) -> Tensor:
        """Compute the transformer's input tokens [N,T,D], in passes over tracks.

        If there are more queries than tracks, the first N are used. The features around the queries are gathered again
        in every iteration. That takes 1/T of the time spent on the tracks' features and saves 100 MiB.
        """
        tokens = state_NT4.new_empty(*state_NT4.shape[:2], TOKEN_DIM)
        tokens[..., :2] = state_NT4[..., 2:]
        tokens[..., -DISPLACEMENT_DIM:] = self._displacements(state_NT4)
        bytes_each = state_NT4.shape[1] * 4 * (WINDOW**4 + 2 * CORRELATION_DIM)
        for part in passes(len(state_NT4), (self.compute or Compute()).num_per_pass(bytes_each)):
            level = 2
            for match in self._matches(pyramid, queries_N3[part], state_NT4[part, :, :2]):
                tokens[part, :, level : level + CORRELATION_DIM] = match
                level += CORRELATION_DIM
        return tokens.add_(resampled(self.time_emb, state_NT4.shape[1]))

    def _matches(self, pyramid: Pyramid, queries_N3: Tensor, centres_NT2: Tensor) -> Iterator[Tensor]:
        """Yield, for each pyramid level, the correlation features [N,T,256] around every centre."""
        support = support_features(pyramid, queries_N3[:, 1:] / STRIDE_PX, queries_N3[:, 0].long())
        volume_NTV = centres_NT2.new_empty(*centres_NT2.shape[:2], WINDOW**4)
        bytes_each = 4 * centres_NT2.shape[1] * 64 * 3 * FEATURE_DIM  # per track: gathered cells and products
        num = per_pass(self.compute, centres_NT2.device, self.config.tracks_per_pass, bytes_each)
        for level, (features, support_NCK) in enumerate(zip(pyramid, support, strict=True)):
            for part in passes(len(centres_NT2), num):
                volume_NTV[part] = self._correlation(features, support_NCK[part], centres_NT2[part] / 2**level)
            yield self.corr_mlp(volume_NTV)

    @compilable
    def _correlation(self, features_ThwC: Tensor, support_NCK: Tensor, centres_NT2: Tensor) -> Tensor:
        return correlation(features_ThwC, support_NCK, centres_NT2)

    def _displacements(self, state_NT4: Tensor) -> Tensor:
        tracks_BTN2 = state_NT4[None, ..., :2].transpose(1, 2)
        scale = (self.config.width_px / STRIDE_PX, self.config.height_px / STRIDE_PX)
        return displacement_features(tracks_BTN2, scale)[0].transpose(0, 1)


class UpdateFormer(TrackTransformer):
    """The track transformer with two linear output layers: tokens [B,N,T,D] -> updates [B,N,T,4].

    An update is (dx, dy) in level-0 cells, then the changes of the visibility and confidence logits.
    """

    def __init__(self, config: TrackViTConfig) -> None:
        super().__init__(config)
        self.flow_head = Linear(config.dim, 2)
        self.vis_conf_head = Linear(config.dim, 2)
        self.flow_head.exact = self.vis_conf_head.exact = True

    def forward(self, tokens_BNTD: Tensor) -> Tensor:
        features = self.trunk(tokens_BNTD)
        return torch.cat([self.flow_head(features), self.vis_conf_head(features)], dim=-1)


def support_grid(height: int, width: int) -> Tensor:
    """6x6 extra queries [36,3] (frame 0, x, y) in model pixels, row by row, 1/64 of the width away from the borders."""
    margin = width / 64
    y = torch.linspace(margin, height - margin, SUPPORT_SIDE)
    x = torch.linspace(margin, width - margin, SUPPORT_SIDE)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.zeros_like(rows), columns, rows], dim=-1).flatten(0, 1)


def time_embedding(num_frames: int, dim: int) -> Tensor:
    """Time embedding [1,T,dim]: the sines of t * 10000^(-k/(dim/2)) for k = 0..dim/2-1, then the cosines."""
    rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    phase = torch.arange(num_frames, dtype=torch.float64)[:, None] * rates
    return torch.cat([phase.sin(), phase.cos()], dim=1).float()[None]


def resampled(time_1SD: Tensor, num_frames: int) -> Tensor:
    """Interpolate a time embedding [1,S,D] linearly to `num_frames`: [T,D]."""
    if num_frames == time_1SD.shape[1]:
        return time_1SD[0]
    stretched = F.interpolate(time_1SD.float().transpose(1, 2), num_frames, mode="linear", align_corners=False)
    return stretched[0].transpose(0, 1)


def _stacked(clips: list[Tensor]) -> Tensor:
    """Stack along a new first axis B. A single clip is not copied, because tokens take 100 MiB or more."""
    return torch.stack(clips) if len(clips) > 1 else clips[0][None]


def _check(frames: Tensor, queries: Tensor) -> None:
    if frames.dim() != 5 or frames.shape[2] != 3 or min(frames.shape) < 1:
        raise ValueError(f"frames must be [B,T,3,H,W], got {list(frames.shape)}")
    if queries.dim() != 3 or queries.shape[2] != 3 or len(queries) != len(frames) or queries.shape[1] < 1:
        raise ValueError(f"queries must be [{len(frames)},N,3] (frame, x, y), got {list(queries.shape)}")
    first, last = (float(bound) for bound in queries[..., 0].aminmax())
    if not 0 <= first <= last < frames.shape[1]:
        raise ValueError(f"query frames must be in 0..{frames.shape[1] - 1}, got {first:g}..{last:g}")
