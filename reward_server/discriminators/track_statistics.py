"""A second opinion beside the track transformer's: the spread of plain cues over tracks and frames.

With few training clips a transformer that pools by the mean learns such statistics poorly; given, they
generalise. Used by the embedded profile's long-term discriminator. B clips, N tracks, T frames, C cues.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUANTILES = (0.1, 0.5, 0.9)
HIDDEN = 64
DROPOUT = 0.3
BOUND = 3.0  # logits: statistics far from all that training saw must not outvote the transformer


class StatisticsLogit(nn.Module):
    """Cues [B,N,T,C] -> logits [B], by quantiles over tracks, their course over frames, and an MLP.

    Within +-BOUND when it judges. Not when it trains: a bound on what it may learn made worse heads.
    """

    def __init__(self, num_cues: int) -> None:
        super().__init__()
        num_statistics = ((len(QUANTILES) + 1) * 4 + 1) * num_cues
        self.norm = nn.LayerNorm(num_statistics)
        self.classifier = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(num_statistics, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 1)
        )

    def forward(self, cues_BNTC: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(statistics(cues_BNTC))).squeeze(-1)
        return logits if self.training else BOUND * torch.tanh(logits / BOUND)


def statistics(cues_BNTC: Tensor) -> Tensor:
    """[B,17C]: per frame (the first has no drift) mean and quantiles over tracks; mean, deviation and extremes of
    these over frames; and how much the median track itself varies."""
    cues = cues_BNTC[:, :, 1:].float()
    levels = torch.tensor(QUANTILES, device=cues.device)
    course = torch.cat([torch.quantile(cues, levels, dim=1), cues.mean(dim=1)[None]])  # [Q,B,T,C]
    over_frames = [course.mean(2), course.std(2, correction=0), course.amin(2), course.amax(2)]
    varying = cues.std(dim=2, correction=0).median(dim=1).values
    return torch.cat([torch.cat(over_frames).transpose(0, 1).flatten(1), varying], dim=1)
