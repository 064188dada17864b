"""Measures what each track adds to the long-term logit, by leaving it out of the discriminator's pools over tracks.

The long-term discriminator pools twice over tracks: the mean of the transformer's features, and the statistics of the
cues. `PoolWatch` keeps what both pools read while a batch is scored, so that nothing is computed twice. The pools are
then recomputed exactly without one track at a time. A sorted list gives every quantile without a track at once.

Legend: N tracks, K chosen tracks, T frames, C features or cues, Q statistics over tracks.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from reward_server.discriminators.track_statistics import BOUND, QUANTILES, StatisticsLogit
from reward_server.discriminators.track_vit import PooledLogit, TrackViT

DECIMALS = 6  # of a share; float32 logits have no more


@dataclass(kw_only=True)
class PoolWatch:
    """Keeps what the pools of a TrackViT read while this thread scores. Use it as a context manager.

    features  one [N,C] per scored window: normed, mean over time
    cues      one [N,T,C] per scored window; empty if the discriminator has no statistics
    """

    network: TrackViT
    features: list[Tensor] = field(default_factory=list)
    cues: list[Tensor] = field(default_factory=list)

    def __enter__(self) -> Self:
        thread, self._hooks = threading.get_ident(), ExitStack()

        def keep_features(head: PooledLogit, inputs: tuple[Any, ...]) -> None:
            if threading.get_ident() == thread:
                self.features += head.norm(inputs[0].to(head.norm.weight.dtype)).mean(dim=2)

        def keep_cues(_: StatisticsLogit, inputs: tuple[Any, ...]) -> None:
            if threading.get_ident() == thread:
                self.cues += inputs[0]

        head, statistics = self.network.classfier_head, self.network.statistics
        self._hooks.callback(head.register_forward_pre_hook(keep_features).remove)
        if statistics is not None:
            self._hooks.callback(statistics.register_forward_pre_hook(keep_cues).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    @torch.inference_mode()
    def shares(self, window: int, num: int) -> list[float]:
        """The shares of the first `num` tracks of a scored window: the logit minus the logit without the track."""
        if not num:
            return []
        head, statistics = self.network.classfier_head, self.network.statistics
        features = self.features[window]
        without = _mean_without(features, num)
        share = head.classifier(features.mean(dim=0)) - head.classifier(without).squeeze(-1)
        if statistics is not None:
            cues = self.cues[window][:, 1:].float()
            whole, less = (_bounded_logits(statistics, values) for values in _statistics(cues, num))
            share = share + whole - less
        return [round(value, DECIMALS) for value in share.double().cpu().tolist()]


def _bounded_logits(network: StatisticsLogit, statistics: Tensor) -> Tensor:
    logits: Tensor = network.classifier(network.norm(statistics)).squeeze(-1)
    return BOUND * torch.tanh(logits / BOUND)


def _statistics(cues_NTC: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Statistics [1,17C] of all tracks, and [K,17C] without each of the first `num`, as in `track_statistics.py`."""
    ordered, ranks = _ordered(cues_NTC, num)
    varying, varying_ranks = _ordered(cues_NTC.std(dim=1, correction=0), num)
    middle, middle_less = (len(cues_NTC) - 1) // 2, (len(cues_NTC) - 2) // 2  # torch's median is the lower middle one
    course = torch.stack([*(_quantile(ordered, level) for level in QUANTILES), cues_NTC.mean(dim=0)])
    course_less = torch.stack(
        [*(_quantile_without(ordered, ranks, level) for level in QUANTILES), _mean_without(cues_NTC, num)]
    )
    less = varying.gather(0, middle_less + (middle_less >= varying_ranks).long())
    return _over_frames(course[:, None], varying[middle][None]), _over_frames(course_less, less)


def _over_frames(course_QKTC: Tensor, varying_KC: Tensor) -> Tensor:
    """Statistics [K,17C] from the course of the statistics over tracks, and how much a track varies."""
    over = [course_QKTC.mean(2), course_QKTC.std(2, correction=0), course_QKTC.amin(2), course_QKTC.amax(2)]
    return torch.cat([torch.cat(over).transpose(0, 1).flatten(1), varying_KC], dim=1)


def _ordered(values: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The values [N,...] in rising order over tracks, and the ranks of the first `num` tracks."""
    ordered, order = values.sort(dim=0, stable=True)
    return ordered, order.argsort(dim=0)[:num]


def _quantile(ordered: Tensor, level: float) -> Tensor:
    low, part = _position(len(ordered), level)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], part)


def _quantile_without(ordered: Tensor, ranks: Tensor, level: float) -> Tensor:
    """The quantile without each ranked value. Past its own rank, every place holds the next value."""
    low, part = _position(len(ordered) - 1, level)
    ends = (min(place, len(ordered) - 2) for place in (low, low + 1))
    below, above = (ordered.gather(0, place + (place >= ranks).long()) for place in ends)
    return torch.lerp(below, above, part)


def _position(num: int, level: float) -> tuple[int, float]:
    place = level * (num - 1)
    return int(place), place - int(place)


def _mean_without(values: Tensor, num: int) -> Tensor:
    return (values.sum(dim=0) - values[:num]) / (len(values) - 1)
