"""Refreshes both discriminators adversarially: BCE with a run's real clips as 1 and its rollouts as 0 (SHIFT, Eq. 7).

Two sets of weights are carried from refresh to refresh: the trained weights, and their exponential moving average,
which scores. A training step takes clips of one shape, up to `clips_per_step` real clips and as many rollouts, and a
random subset of each clip's tracks or frame pairs, as many of every clip of the step. One clip in eight is held out, in
whole groups, so that the figures in the response do not come from training clips. A run keeps the held-out clips of its
first large refresh as its anchor set, on which all later ones are compared with their parent. The same clips, weights
and seed give the same result bit for bit on one machine. SHIFT is arXiv 2603.17426.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protos.types import (
    DISCRIMINATORS,
    Bounds,
    DiscriminatorName,
    DiscriminatorRefresh,
    RefreshRequest,
)
from reward_server.discriminators.residual_vit import ResidualViT
from reward_server.discriminators.track_vit import TrackViT
from reward_server.errors import RefreshRejected
from reward_server.networks.prepacked import passes
from reward_server.profiles import Profile
from reward_server.profiles.discriminators import Discriminators
from reward_server.profiles.run_clips import RunClip
from reward_server.training.buffers import Buffers, batch_of
from reward_server.training.discriminator_trainer import fast_forward, update_average
from reward_server.training.judged import Anchored, Judged, Logits, anchored, attacked
from reward_server.training.optimizer_state import restore, saved

Weights: TypeAlias = dict[DiscriminatorName, dict[str, Tensor]]  # a state dict per discriminator

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
GRAD_CLIP = 1.0
TRACKS_PER_STEP = 32
PAIRS_PER_STEP = 3
PAIRS_OF_LARGE = 1  # if one clip fills the device; another clip's pair teaches more than a neighbouring pair
TRACKS_JUDGED = 128  # tracks scored per held-out clip
PAIRS_JUDGED = 16


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The result of a refresh: state dicts of the average and of the trained weights by discriminator, and a report."""

    average: Weights
    training: Weights
    optimizer: Mapping[str, Tensor] = field(repr=False)  # empty unless the request keeps it
    report: dict[DiscriminatorName, DiscriminatorRefresh]
    steps: int
    clips: Buffers
    held_out: Buffers  # part of `clips`
    anchor: Buffers | None

    @property
    def name(self) -> str:
        """Eight hex digits that identify the averaged weights."""
        digest = hashlib.sha256()
        for discriminator in DISCRIMINATORS:
            for name, value in sorted(self.average[discriminator].items()):
                digest.update(name.encode() + value.cpu().float().numpy().tobytes())
        return digest.hexdigest()[:8]


def refresh_discriminators(
    profile: Profile,
    buffers: Buffers,
    request: RefreshRequest,
    *,
    average: Discriminators,
    training: Discriminators,
    optimizer: Mapping[str, Tensor] | None = None,
    device: str,
    before_step: Callable[[int], None],
    anchor: Buffers | None = None,
    freeze_at: int = 0,
    bounds: Bounds = Bounds(min=-math.inf, max=math.inf),  # noqa: B008 - frozen
) -> Candidate:
    """Train copies of both discriminators on a run's clips.

    `training` holds the weights to train further, `average` their average so far, `optimizer` the state with which the
    optimizers go on. `before_step` is called with the number of each step and may raise to stop the refresh. Without an
    `anchor`, the held-out clips are the run's anchor set, if they are at least `freeze_at` of each origin (0: never).
    `bounds` are those of rewards, by which saturation and drift are measured. Raises RefreshRejected if a loss or a
    held-out logit is not finite, and TooFewClips if holding out clips leaves no shape with clips of both origins.
    """
    train, held_out = buffers.split(request.seed, copied_first=anchor is None)
    if anchor is None and 0 < freeze_at <= held_out.smaller:
        anchor = held_out
    discriminators = [
        _Discriminator(name, profile, request, average=average, training=training, device=device)
        for name in DISCRIMINATORS
    ]
    for discriminator in discriminators:
        restore(discriminator.optimizer, discriminator.module, optimizer or {}, discriminator.name)
    before = [discriminator.judged(held_out, anchor) for discriminator in discriminators]
    steps = num_steps(request, train)
    for step in range(steps):
        before_step(step)
        for discriminator in discriminators:
            discriminator.step(step, batch_of(train, request, step))
    after = [discriminator.judged(held_out, anchor) for discriminator in discriminators]
    kept = discriminators if request.keep_optimizer else []
    return Candidate(
        average={discriminator.name: discriminator.average.state_dict() for discriminator in discriminators},
        training={discriminator.name: discriminator.module.state_dict() for discriminator in discriminators},
        optimizer={name: tensor for one in kept for name, tensor in saved(one.optimizer, one.module, one.name).items()},
        report={
            discriminator.name: DiscriminatorRefresh(
                losses=tuple(discriminator.losses),
                before=old.held_out.separation,
                after=new.held_out.separation,
                anchor=anchored(old, new, bounds),
            )
            for discriminator, old, new in zip(discriminators, before, after, strict=True)
        },
        steps=steps,
        clips=buffers,
        held_out=held_out,
        anchor=anchor,
    )


def num_steps(request: RefreshRequest, clips: Buffers) -> int:
    """The steps that a refresh takes on these clips: those asked for, or fewer by the request's `max_passes`."""
    if not request.max_passes:
        return request.steps
    most = min(
        request.max_passes * len(some) / min(request.clips_per_step, len(some))
        for some in (clips.real, clips.rollouts)
        if some
    )
    return max(1, min(request.steps, math.floor(most)))


class _Discriminator:
    """One discriminator with its average and its optimizer."""

    def __init__(
        self,
        name: DiscriminatorName,
        profile: Profile,
        request: RefreshRequest,
        *,
        average: Discriminators,
        training: Discriminators,
        device: str,
    ) -> None:
        self.name, self._profile, self._request, self._device = name, profile, request, device
        self.module = _copy(getattr(training, name), device).train()
        self.average = _copy(getattr(average, name), device).eval().requires_grad_(False)
        self.losses: list[float] = []
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=request.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self, step: int, batch: Buffers) -> None:
        rng = np.random.default_rng((self._request.seed, step, DISCRIMINATORS.index(self.name)))
        torch.manual_seed(int(rng.integers(2**31)))  # dropout
        self.optimizer.zero_grad()
        self.losses.append(self._gradients(batch, rng))
        if not np.isfinite(self.losses[-1]):
            raise RefreshRejected(
                f"the loss of the {self.name} discriminator was {self.losses[-1]} at step {step}; lower the learning "
                f"rate ({self._request.learning_rate:g})"
            )
        nn.utils.clip_grad_norm_(self.module.parameters(), GRAD_CLIP)
        self.optimizer.step()
        update_average(self.average, self.module, self._request.ema)

    def _gradients(self, batch: Buffers, rng: np.random.Generator) -> float:
        """Compute the loss of a batch, and its gradients in the module.

        Large clips go through the module one by one, so that memory does not grow with the number of clips.
        """
        clips = [*batch.real, *batch.rollouts]
        num_real, num_rollouts = len(batch.real), len(batch.rollouts)
        targets = torch.tensor([1.0] * num_real + [0.0] * num_rollouts, device=self._device)
        weights = torch.tensor([1 / num_real] * num_real + [1 / num_rollouts] * num_rollouts, device=self._device)
        total = 0.0
        pairs = PAIRS_PER_STEP if self._profile.parallel_clips else PAIRS_OF_LARGE
        num = self._num(clips, TRACKS_PER_STEP, pairs)
        for part in passes(len(clips), len(clips) if self._profile.parallel_clips else 1):
            inputs = torch.stack([self._drawn(clip, num, rng) for clip in clips[part]]).to(self._device)
            with fast_forward(device=self._device):
                logits = self.module(inputs).float()
            loss = F.binary_cross_entropy_with_logits(logits, targets[part], weights[part], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def judged(self, held_out: Buffers, anchor: Buffers | None) -> Judged:
        """The average on held-out clips and on the anchor set."""
        if anchor is None:
            return Judged(held_out=self.logits(held_out), anchor=None)
        logits, term = self.logits(anchor), DISCRIMINATORS.index(self.name)
        found = attacked(self._logit, anchor, logits, self._size, term)
        return Judged(held_out=self.logits(held_out), anchor=Anchored(logits=logits, attacked=found))

    def logits(self, clips: Buffers) -> Logits:
        """Logits of the average, from as many kept pairs or tracks of each clip. Raises RefreshRejected."""
        num = self._num([*clips.real, *clips.rollouts], TRACKS_JUDGED, PAIRS_JUDGED)
        real, rollouts = (np.array([self._logit(clip, num) for clip in some]) for some in (clips.real, clips.rollouts))
        if not (np.isfinite(real).all() and np.isfinite(rollouts).all()):
            raise RefreshRejected(
                f"on held-out clips, logits of the {self.name} discriminator are not finite; lower the learning rate "
                f"({self._request.learning_rate:g})"
            )
        return Logits(real=real, rollouts=rollouts)

    @torch.inference_mode()
    def _logit(self, clip: RunClip, num: int) -> float:
        return float(self.average(self._inputs(clip, 0, num)[None].to(self._device)))

    def _drawn(self, clip: RunClip, num: int, rng: np.random.Generator) -> Tensor:
        """A random stretch of a clip's tracks or pairs."""
        return self._inputs(clip, int(rng.integers(self._size(clip) - num + 1)), num)

    def _size(self, clip: RunClip) -> int:
        """The number of the clip's pairs or tracks."""
        return clip.num_pairs if self.name == "instantaneous" else clip.num_tracks

    def _inputs(self, clip: RunClip, start: int, num: int) -> Tensor:
        return clip.maps(start, num) if self.name == "instantaneous" else clip.tokens(self._profile, start, num)

    def _num(self, clips: Sequence[RunClip], tracks: int, pairs: int) -> int:
        """How many tracks or pairs to take of each clip: what all of them have, so that it tells nothing of a clip."""
        return min(pairs if self.name == "instantaneous" else tracks, *map(self._size, clips))


def _copy(discriminator: ResidualViT | TrackViT, device: str) -> ResidualViT | TrackViT:
    """Copy the weights only, without the converted weights that a serving discriminator may hold."""
    fresh = type(discriminator)(discriminator.config)  # type: ignore[arg-type]
    fresh.load_state_dict(discriminator.state_dict())
    return fresh.to(device)
