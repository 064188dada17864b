"""Computes a second logit for the long-term discriminator, from statistics of plain cues over tracks and frames.

From few training clips, a transformer that pools by the mean learns such statistics poorly. Given as input, they
generalise. The embedded profile's long-term discriminator uses this.

Shapes: B clips, N tracks, T frames, C cues, Q statistics over tracks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUANTILES = (0.1, 0.5, 0.9)
HIDDEN = 64
DROPOUT = 0.3
BOUND = 3.0  # on the logit, so that statistics far outside the training data cannot outvote the transformer


class StatisticsLogit(nn.Module):
    """Maps cues [B,N,T,C] to logits [B] by an MLP on `statistics`.

    In eval mode the logits are bounded to +-BOUND. In training they are not, because a bound there gave worse
    discriminators.
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
    """Statistics [B,17C] of cues [B,N,T,C].

    In every frame but the first, which has no drift, the quantiles and the mean over tracks are taken. Of these,
    the mean, standard deviation, minimum and maximum over frames are returned, and then the median over tracks of
    each cue's standard deviation over frames.
    """
    cues = cues_BNTC[:, :, 1:].float()
    levels = torch.tensor(QUANTILES, device=cues.device)
    course = torch.cat([torch.quantile(cues, levels, dim=1), cues.mean(dim=1)[None]])  # [Q,B,T,C]
    over_frames = [course.mean(2), course.std(2, correction=0), course.amin(2), course.amax(2)]
    varying = cues.std(dim=2, correction=0).median(dim=1).values
    return torch.cat([torch.cat(over_frames).transpose(0, 1).flatten(1), varying], dim=1)
