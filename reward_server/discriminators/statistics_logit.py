"""Computes a second logit for a discriminator, from statistics of plain cues over places and frames.

From few training clips, a transformer that pools by the mean learns such statistics poorly. Given as input, they
generalise. Both discriminators of the embedded profile use this: the places are tracks or pixels.

Shapes: B clips, N places, T frames or frame pairs, C cues, Q statistics over places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUANTILES = (0.1, 0.5, 0.9)
HIDDEN = 64
DROPOUT = 0.3
FARTHEST = 3.0  # deviations; a statistic farther from the mean counts as this far
LEAST_DEVIATION = 1e-3
BOUND = 3.0  # on the logit, so that statistics far outside the training data cannot outvote the transformer


class StatisticsLogit(nn.Module):
    """Maps cues [B,N,T,C] to logits [B] by an MLP on `statistics`, in deviations from their mean in training clips.

    In eval mode the logits are bounded to +-BOUND. In training they are not, because a bound there gave worse
    discriminators.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_cues: int) -> None:
        super().__init__()
        num_statistics = ((len(QUANTILES) + 1) * 4 + 1) * num_cues
        self.register_buffer("mean", torch.zeros(num_statistics))
        self.register_buffer("deviation", torch.ones(num_statistics))
        self.classifier = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(num_statistics, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 1)
        )

    @torch.no_grad()
    def standardise(self, statistics_BS: Tensor) -> None:
        """Set the mean and deviation to those of training clips [B,17C]."""
        self.mean.copy_(statistics_BS.mean(dim=0))
        self.deviation.copy_(statistics_BS.std(dim=0).clamp_min(LEAST_DEVIATION))

    def forward(self, cues_BNTC: Tensor) -> Tensor:
        return self.judge(statistics(cues_BNTC))

    def judge(self, statistics_BS: Tensor) -> Tensor:
        """Logits [B] from `statistics` [B,17C]."""
        known = ((statistics_BS - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST)
        logits: Tensor = self.classifier(known.to(self.mean.dtype)).squeeze(-1)
        return logits if self.training else BOUND * torch.tanh(logits / BOUND)


def statistics(cues_BNTC: Tensor) -> Tensor:
    """Statistics [B,17C] of cues [B,N,T,C].

    In every frame, the quantiles and the mean over places are taken. Of these, the mean, standard deviation, minimum
    and maximum over frames are returned, and then the median over places of each cue's standard deviation over frames.
    """
    cues = cues_BNTC.float()
    levels = torch.tensor(QUANTILES, device=cues.device)
    course = torch.cat([torch.quantile(cues, levels, dim=1), cues.mean(dim=1)[None]])  # [Q,B,T,C]
    over_frames = [course.mean(2), course.std(2, correction=0), course.amin(2), course.amax(2)]
    varying = cues.std(dim=2, correction=0).median(dim=1).values
    return torch.cat([torch.cat(over_frames).transpose(0, 1).flatten(1), varying], dim=1)
