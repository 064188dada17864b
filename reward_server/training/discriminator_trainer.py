"""Trains one discriminator from cached motion features, with BCE: real clips as 1, the others as 0 (SHIFT, Eq. 7).

The two discriminators share no weights and no features. So each is trained separately, in its own process if there
are enough cores. A step takes views of one shape: of each view the real clip and a few of its negatives, and of each
clip a random subset of tracks or frame pairs. Evaluation uses an exponential moving average of the weights. The
average that is best on held-out clips is kept. Training stops when it has not improved for a while, or at a stated
held-out AUC: past it, mostly the logits grow, and with them the differences that mean nothing.
SHIFT is arXiv 2603.17426.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter

from protos.types import DiscriminatorName
from reward_server.errors import BadRequest
from reward_server.networks.bf16 import has_bf16
from reward_server.networks.prepacked import passes
from reward_server.profiles import Profile
from reward_server.profiles.discriminators import new_discriminators
from reward_server.replacing import replacing
from reward_server.stats import auc
from reward_server.training.examples import View, clips_of
from reward_server.training.feature_cache import FeatureCache, Sample
from reward_server.training.generated import GeneratedClips
from reward_server.training.losses import Generated, adversarial_bce, view_loss, with_noise
from reward_server.training.symmetry import PLAIN, Symmetry


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a discriminator is trained. Weight decay, betas and clipping are the paper's; the sizes suit a laptop."""

    steps: int = 3600
    views_per_step: int = 6
    views_at_once: int = 6  # views per pass; fewer need less memory; same gradients, but for slope and instance noise
    negatives_per_view: int = 3
    tracks_per_step: int = 32
    pairs_per_step: int = 3
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    pair_weight: float = 2.0  # weight of `pair_bce`, the loss on each real clip against its own negatives
    amount_weight: float = 0.0  # weight of `amount_slope`, which keeps the logit from measuring the amount of motion
    symmetries: bool = False  # mirror and transpose the motion at random in every step
    ema: float = 0.995
    grad_clip: float = 1.0
    bf16: bool = True  # train in bf16 if the device supports it
    evaluate_every: int = 300
    evaluate_tracks: int = 96
    patience: int = 8  # training stops after this many evaluations without a better average
    stop_auc: float = 0.0  # training stops at the first evaluation with this held-out AUC; 0: off
    keep: Literal["figures", "loss"] = "figures"  # the best average has the highest `HeldOut.mean` or the lowest `loss`
    instance_noise: float = 0.0  # noise on the inputs of both sides, in standard deviations of each channel
    label_smoothing: float = 0.0  # how far the targets are from 1 and 0
    penalty_weight: float = 0.0  # weight of `logit_penalty`
    generated_share: float = 0.0  # of the negatives' loss, for generated clips beside faulty ones
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well a discriminator separates held-out real clips from their negatives."""

    auc: float
    pairs: float  # share ordered right of pairs of a real clip and a negative of its scene; without any, `auc`
    loss: float  # `adversarial_bce`; it rises again once logits are larger than the separation warrants

    @property
    def mean(self) -> float:
        """Mean of `auc` and `pairs`."""
        return (self.auc + self.pairs) / 2


class DiscriminatorTrainer:
    """One training run of one discriminator, with its average and its optimizer. The run's state is in `folder`."""

    def __init__(
        self,
        name: DiscriminatorName,
        profile: Profile,
        cache: FeatureCache,
        config: TrainingConfig,
        folder: Path,
        *,
        generated: GeneratedClips | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(config.seed)
        self.name, self.profile, self.cache, self.config, self.folder = name, profile, cache, config, folder
        self.generated, self.device = generated, device
        instantaneous, long_term = new_discriminators(profile)
        self.discriminator = (instantaneous if name == "instantaneous" else long_term).to(device)
        self.average = copy.deepcopy(self.discriminator).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.schedule = LambdaLR(self.optimizer, lambda step: _rate(step, config))
        self.step, self.best_step, self.auc = 0, 0, 0.0
        self.best, self.best_score = -1.0, -math.inf  # `HeldOut.mean` of the kept average, and what it was chosen by

    def train(
        self, views: Sequence[View], held_out: Sequence[View], report: Callable[[int, str], None] = lambda *_: None
    ) -> float:
        """Train until all steps are done, or until `patience` or `stop_auc` ends it. Resumes the run in the folder.

        Leaves the best averaged weights in `self.average` and returns their `HeldOut.mean`. `report` is called with
        the step and a text, which is empty except after an evaluation. Raises BadRequest if the folder holds a run on
        other clips or settings.
        """
        self._resume([*views, *held_out])
        with SummaryWriter(str(self.folder)) as log:
            for batch in self._batches(views):
                if self.step >= self.config.steps or self._stalled() or self._separated():
                    break
                for key, value in self._train_step(batch).items():
                    log.add_scalar(f"train/{key}", value, self.step)
                report(self.step, "")
                if self.step % self.config.evaluate_every == 0 or self.step >= self.config.steps:
                    report(self.step, self._checkpoint(held_out, log))
        self.average.load_state_dict(_load(self.folder / "best.pt")["average"])
        return self.best

    def evaluate(self, views: Sequence[View]) -> HeldOut:
        """Evaluate the averaged discriminator on views."""
        logits = {sample.key: self.logit(sample) for sample in clips_of(views).values()}
        real = [logits[view.real.key] for view in views]
        fake = [[logits[sample.key] for sample in view.negatives] for view in views]
        right = [
            own > other for view, own, group in zip(views, real, fake, strict=True) if view.shared for other in group
        ]
        fakes = [logit for group in fake for logit in group]
        loss = adversarial_bce(torch.tensor(real), torch.tensor(fakes))
        area = auc(real, fakes)
        return HeldOut(auc=area, pairs=float(np.mean(right)) if right else area, loss=float(loss))

    @torch.inference_mode()
    def logit(self, sample: Sample) -> float:
        """The averaged discriminator's logit of one clip, from its first tracks or all its cached pairs."""
        return float(self.average(self._whole(sample, self.config.evaluate_tracks)))

    def _whole(self, sample: Sample, num_tracks: int) -> Tensor:
        """A clip's first tracks, or all its cached pairs, as a batch of one."""
        if self.name == "instantaneous":
            inputs = self.cache.maps(sample, 0, self.cache.num_pairs(sample))
        else:
            inputs = self.cache.tokens(sample, self.profile, 0, min(num_tracks, self.cache.num_tracks(sample)))
        return inputs[None].to(self.device)

    def _train_step(self, batch: Sequence[View]) -> dict[str, float]:
        rng = np.random.default_rng((self.config.seed, self.step))
        torch.manual_seed(int(rng.integers(2**31)))  # seeds dropout, so that a resumed run equals an uninterrupted one
        symmetry = Symmetry.draw(rng) if self.config.symmetries else PLAIN
        self.optimizer.zero_grad()
        loss = 0.0
        for part in passes(len(batch), self.config.views_at_once):
            share = self._loss(batch[part], symmetry, rng) * (len(batch[part]) / len(batch))
            share.backward()  # type: ignore[no-untyped-call]
            loss += float(share.detach())
        norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        update_average(self.average, self.discriminator, min(self.config.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return {"loss": loss, "grad_norm": float(norm), "rate": float(self.schedule.get_last_lr()[0])}

    def _loss(self, views: Sequence[View], symmetry: Symmetry, rng: np.random.Generator) -> Tensor:
        """The loss of the real clips of these views and a few negatives of each."""
        real = [view.real for view in views]
        negatives = [view.negatives[i] for view in views for i in _choose(view, self.config.negatives_per_view, rng)]
        generated = self._drawn_generated(real, rng)
        clips = real + negatives + generated
        inputs = torch.stack([self._subset(sample, symmetry, rng) for sample in clips]).to(self.device)
        if self.config.instance_noise:
            channels = 2 if self.name == "instantaneous" else -1  # maps [N,P,M,H,W], tokens [N,K,T,D]
            inputs = with_noise(inputs, self.config.instance_noise, channels=channels)
        with fast_forward(bf16=self.config.bf16, device=self.device):
            logits = self.discriminator(inputs).float()
        of_real, of_negatives, of_generated = logits.split([len(real), len(negatives), len(generated)])
        return view_loss(
            of_real,
            of_negatives,
            self._amounts(real),
            pair_weight=self.config.pair_weight,
            amount_weight=self.config.amount_weight,
            shared=[view.shared for view in views],
            smoothing=self.config.label_smoothing,
            penalty_weight=self.config.penalty_weight,
            generated=Generated(
                logits=of_generated, amounts=self._amounts(generated), share=self.config.generated_share
            )
            if generated
            else None,
        )

    def _drawn_generated(self, real: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """As many generated clips as real ones, of their shape; none without a share for them."""
        if self.generated is None or not self.config.generated_share:
            return []
        return self.generated.draw(real[0].shape, len(real), rng)

    def _amounts(self, samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([sample.amount for sample in samples], device=self.device)

    def _subset(self, sample: Sample, symmetry: Symmetry, rng: np.random.Generator) -> Tensor:
        """A random subset of a sample's frame pairs or tracks."""
        if self.name == "instantaneous":
            num_pairs = self.cache.num_pairs(sample)
            taken = min(self.config.pairs_per_step, num_pairs)
            return self.cache.maps(sample, int(rng.integers(num_pairs - taken + 1)), taken, symmetry)
        num = self.config.tracks_per_step
        first = int(rng.integers(self.cache.num_tracks(sample) - num + 1))
        return self.cache.tokens(sample, self.profile, first, num, symmetry)

    def _batches(self, views: Sequence[View]) -> Iterator[Sequence[View]]:
        """Endless batches of one shape each. They depend only on seed and step, so that a run can resume."""
        shapes = defaultdict(list)
        for view in views:
            shapes[view.real.shape].append(view)
        buckets = [shapes[shape] for shape in sorted(shapes)]
        share = np.array([len(bucket) for bucket in buckets]) / len(views)
        while True:
            rng = np.random.default_rng((self.config.seed, self.step, 1))
            bucket = buckets[int(rng.choice(len(buckets), p=share))]
            chosen = rng.choice(len(bucket), size=min(self.config.views_per_step, len(bucket)), replace=False)
            yield [bucket[i] for i in chosen]

    def _checkpoint(self, held_out: Sequence[View], log: SummaryWriter) -> str:
        figures = self.evaluate(held_out)
        log.add_scalar("held_out/auc", figures.auc, self.step)
        log.add_scalar("held_out/pairs", figures.pairs, self.step)
        log.add_scalar("held_out/loss", figures.loss, self.step)
        self.auc = figures.auc
        score = figures.mean if self.config.keep == "figures" else -figures.loss
        if score > self.best_score:
            self.best, self.best_score, self.best_step = figures.mean, score, self.step
            _save(self.folder / "best.pt", {"average": self.average.state_dict()})
        _save(self.folder / "last.pt", self._state())
        told = f"held-out AUC {figures.auc:.3f}, pairs {figures.pairs:.3f}, loss {figures.loss:.3f}"
        return f"{self.name} at step {self.step}: {told}{'; far enough apart' if self._separated() else ''}"

    def _stalled(self) -> bool:
        return self.step - self.best_step >= self.config.patience * self.config.evaluate_every

    def _separated(self) -> bool:
        return 0 < self.config.stop_auc <= self.auc

    def _state(self) -> dict[str, object]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.last_epoch,
            "progress": [self.step, self.best, self.best_step],
            "held_out": [self.auc, self.best_score],
            "config": asdict(self.config),
            "clips": self._clips,
        }

    def _resume(self, views: Sequence[View]) -> None:
        """Continue the run in the folder, if there is one.

        Raises BadRequest if it has other clips or another configuration; only `steps`, `patience` and `stop_auc` may
        differ. Settings that an older run does not have count as having their defaults.
        """
        generated = self.generated.samples if self.generated else ()
        keys = sorted({*clips_of(views), *(sample.key for sample in generated)})
        self._clips = hashlib.sha256(" ".join(keys).encode()).hexdigest()
        path = self.folder / "last.pt"
        if not path.is_file():
            return
        state = _load(path)
        anything = {"steps": 0, "patience": 0, "stop_auc": 0.0}
        old = asdict(TrainingConfig()) | state["config"]
        ours, theirs = (config | anything for config in (asdict(self.config), old))
        if (theirs, state.get("clips")) != (ours, self._clips):
            raise BadRequest(
                f"{self.folder} holds a run on other clips or settings; give another --work folder or delete this one"
            )
        self.discriminator.load_state_dict(state["discriminator"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]
        self.step, self.best, self.best_step = state["progress"]
        self.auc, self.best_score = state.get("held_out", [0.0, self.best])


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Update every parameter in place: average <- decay x average + (1 - decay) x module."""
    for kept, current in zip(average.parameters(), module.parameters(), strict=True):
        kept.lerp_(current, 1 - decay)


@contextlib.contextmanager
def fast_forward(*, bf16: bool = True, device: str = "cpu") -> Iterator[None]:
    """A context for fast training passes: autocast to bf16, if `bf16` is set and the device supports it.

    On the CPU it also selects plain attention, because the bf16 backward of the fused kernel is many times slower.
    """
    kind = torch.device(device).type
    attention = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else contextlib.nullcontext()
    with torch.autocast(kind, torch.bfloat16, enabled=bf16 and has_bf16(device)), attention:
        yield


def _choose(view: View, num: int, rng: np.random.Generator) -> list[int]:
    return list(rng.choice(len(view.negatives), size=num, replace=len(view.negatives) < num))


def _rate(step: int, config: TrainingConfig) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to 0.1."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return float(0.1 + 0.45 * (1 + np.cos(np.pi * done)))


def _save(path: Path, state: dict[str, object]) -> None:
    with replacing(path) as partial:
        torch.save(state, partial)


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
