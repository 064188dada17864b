"""Logs a run: a progress bar, TensorBoard (and W&B if enabled), metrics.jsonl, and sample clips with point tracks.

Values from the loop are means over processes, unless a docstring says that they are the main process's own. Only the
main process writes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch import Tensor

from protos.types import DYNAMICS, Clip
from trainer.checkpoint import Progress as Position
from trainer.config import Config, to_dict
from trainer.dose import faintness
from trainer.measures.dynamics import dynamic_degree
from trainer.measures.dynamics_floor import Floored
from trainer.measures.signal import SignalQuality
from trainer.measures.tracks import with_tracks
from trainer.objective import Advantages
from trainer.policies.protocol import Policy
from trainer.rewards.source import Collected
from trainer.rollout import Buffer
from trainer.video import gif_bytes, side_by_side, write_clip

log = logging.getLogger(__name__)

PROJECT = "shift"
RATIO = "gradient/aw_over_sft"
BOARD_WIDTH_PX = 480  # of clips in TensorBoard, whose files keep every one
SIGNAL_FIGURES = ("gap", "spread", "noise", "to_noise", "auc")  # of RewardSignal


class Board:
    """The logs of a run. Every process has a board, but only the main process's board writes."""

    def __init__(
        self, config: Config, policy: Policy, accelerator: Accelerator, run_id: str, bad: Mapping[Any, str]
    ) -> None:
        self.run_id = run_id
        self._config, self._policy, self._accelerator, self._bad = config, policy, accelerator, bad
        self._main = accelerator.is_main_process
        self._bar: Progress | None = None
        self._since_s = time.monotonic()  # when the last buffer was logged, or the run began
        self._task = TaskID(0)
        self._ratios: list[float] = []  # gradient/aw_over_sft of the logged steps since `passes` was called
        if self._main:
            config.out.mkdir(parents=True, exist_ok=True)
            self._lines = (config.out / "metrics.jsonl").open("a")

    def start(self, position: Position, num_steps: int) -> None:
        """Start the trackers and the progress bar, at optimizer step `position.step` of `num_steps` in total."""
        # Trackers take plain values only: each section becomes a JSON string.
        settings = {name: json.dumps(section) for name, section in to_dict(self._config).items()}
        wandb = {"wandb": {"id": self.run_id, "name": self.run_id, "resume": "allow"}}
        self._accelerator.init_trackers(PROJECT, config=settings, init_kwargs=wandb)
        if self._main:
            columns = (
                TextColumn("buffer {task.fields[buffer]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
            )
            console = Console(stderr=True)
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
            )
            self._task = self._bar.add_task("", total=num_steps, completed=position.step, buffer=position.buffer)
            self._bar.start()

    def advance(self, buffer: int) -> None:
        """Advance the progress bar by one optimizer step. `buffer` is the number of the current buffer."""
        if self._bar:
            self._bar.update(self._task, advance=1, buffer=buffer)

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars at an optimizer step."""
        self._log(step, scalars)
        if RATIO in scalars:
            self._ratios.append(scalars[RATIO])

    def passes(self, number: int) -> None:
        """The passes over a buffer have ended: warn if its rollouts hardly counted, unless that is asked for."""
        asked = self._config.objective
        if self._main and asked.lambda_aw and not asked.aw_dose and (told := faintness(self._ratios)):
            log.warning("buffer %d: %s", number, told)
        self._ratios.clear()

    def buffer(
        self, position: Position, buffer: Buffer, collected: Collected, *, waited_s: float, lags: Sequence[int]
    ) -> None:
        """Log how a buffer was sampled and scored, and write its sample clips: the main process's own share.

        `waited_s` is the time spent waiting for rewards. `lags` are the optimizer steps that the policy had taken since
        it sampled each group.
        """
        if not self._main:
            return
        now_s, since_s = time.monotonic(), self._since_s
        self._since_s = now_s
        latencies = collected.latencies_s or (0.0,)
        scalars = {
            "buffer/number": float(buffer.number),
            "buffer/waited_for_rewards_s": waited_s,
            "buffer/waited_share": min(1.0, waited_s / max(now_s - since_s, 1e-9)),
            "buffer/reward_latency_mean_s": float(np.mean(latencies)),
            "buffer/reward_latency_max_s": float(np.max(latencies)),
            "buffer/lag_max_steps": float(max(lags, default=0)),
            "buffer/lag_mean_steps": float(np.mean(lags)) if lags else 0.0,
            "buffer/clips_skipped": float(len(self._bad)),
            "buffer/missing_rewards": float(sum(collected.errors.values())),
            "buffer/clipped_rewards": float(collected.num_clipped),
        }
        scalars |= {f"missing/{code}": float(num) for code, num in collected.errors.items()}
        self._log(position.step, scalars | self._samples(buffer, position.step))

    def rewards(self, step: int, tables: Mapping[str, Tensor], found: Mapping[str, Advantages]) -> None:
        """Log rewards [G,1+P] and advantages of a buffer, over all processes: `combined`, and by discriminator."""
        scalars: dict[str, float] = {}
        for name, table in tables.items():
            gained = found[name]
            parts = {
                f"reward_real/{name}": table[:, 0],
                f"reward_rollouts/{name}": table[:, 1:],
                f"advantage_real/{name}": gained.real,
                f"advantage_rollouts/{name}": gained.rollouts,
            }
            known = {label: _known(values) for label, values in parts.items()}
            for label, values in known.items():
                self._histogram(label, values, step)
            scalars |= {label: float(values.mean()) for label, values in known.items() if values.size}
            scalars[f"advantage_clipped/{name}"] = gained.num_clipped / max(1, gained.num_known)
            if math.isfinite(spread := _spread(gained.rollouts)):
                scalars[f"advantage_spread/{name}"] = spread
        self._log(step, scalars)

    def dynamics(self, step: int, table: Tensor, floor: Floored | None) -> None:
        """Log dynamics [G,1+P,D] of a buffer, over all processes, and what the floor on them did, if there is one."""
        scalars: dict[str, float] = {}
        for name, values in zip(DYNAMICS, table.unbind(-1), strict=True):
            for label, part in (("dynamics_real", values[:, 0]), ("dynamics_rollouts", values[:, 1:])):
                if (known := _known(part)).size:
                    scalars[f"{label}/{name}"] = float(known.mean())
        if floor:
            scalars |= {
                "dynamics_floor/share": floor.share,
                "dynamics_floor/groups_below": float(floor.num_groups_below),
                "dynamics_floor/groups_unknown": float(floor.num_groups_unknown),
            }
        if scalars:
            self._log(step, scalars)

    def signal(self, step: int, quality: SignalQuality) -> None:
        """Log the quality of a buffer's rewards, over all processes. A figure that is not known is left out."""
        scalars = {
            "signal/head_ranks": quality.head_ranks,
            "signal/clipped_rewards": quality.clipped_rewards,
            "signal/clipped_advantages": quality.clipped_advantages,
            "signal/groups_scored_twice": float(quality.num_twice),
        }
        for name, one in quality.rewards.items():
            scalars |= {f"signal_{figure}/{name}": getattr(one, figure) for figure in SIGNAL_FIGURES}
        self._log(step, {name: value for name, value in scalars.items() if math.isfinite(value)})

    def close(self) -> None:
        """Stop the progress bar and close metrics.jsonl and the trackers."""
        if self._bar:
            self._bar.stop()
        if self._main:
            self._lines.close()
        self._accelerator.end_training()

    def _samples(self, buffer: Buffer, step: int) -> dict[str, float]:
        """Write rollouts beside their real clips with tracks drawn on. Returns how dynamic these rollouts are."""
        logs = self._config.logs
        if not logs.samples_every_buffers or buffer.number % logs.samples_every_buffers:
            return {}
        groups = [group for group in buffer.groups[: logs.num_samples] if group.rollouts]
        degrees = []
        for number, group in enumerate(groups):
            clips = self._policy.decode([group.example.latents, group.rollouts[0]])
            degrees.append(dynamic_degree(clips[1]))
            path = self._config.out / "samples" / f"buffer-{buffer.number:06d}-slot-{group.slot:08d}.mp4"
            drawn = side_by_side([with_tracks(clip) for clip in clips])
            write_clip(path, drawn)
            if logs.tensorboard_clips:
                self._show(f"samples/{number}", drawn, step)
        if not degrees:
            return {}
        return {
            "dynamic/share": float(np.mean([degree.dynamic for degree in degrees])),
            "dynamic/flow_px": float(np.mean([degree.flow_px for degree in degrees])),
        }

    def _log(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._main:
            self._accelerator.log(dict(scalars), step=step)
            self._lines.write(json.dumps({"step": step, "time_s": round(time.time(), 3), **scalars}) + "\n")
            self._lines.flush()

    def _show(self, name: str, clip: Clip, step: int) -> None:
        """Show a clip in TensorBoard, as a gif. Its own `add_video` needs moviepy for the same."""
        data = gif_bytes(clip, width_px=BOARD_WIDTH_PX)
        image = Summary.Image(encoded_image_string=data)
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.tracker.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def _histogram(self, name: str, values: NDArray[np.float64], step: int) -> None:
        if self._main and values.size:
            for tracker in self._accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.tracker.add_histogram(f"{name}/histogram", values, step)


def _spread(rollouts_GP: Tensor) -> float:
    """Standard deviation of the advantages within a group, as a mean over the groups. NaN if no group has two."""
    known = [row[row.isfinite()] for row in rollouts_GP]
    spreads = [float(row.std()) for row in known if len(row) > 1]
    return float(np.mean(spreads)) if spreads else math.nan


def _known(values: Tensor) -> NDArray[np.float64]:
    flat = values.flatten()
    known: NDArray[np.float64] = flat[flat.isfinite()].numpy()
    return known
