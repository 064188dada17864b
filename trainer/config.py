"""Defines the configuration of a run as one frozen value, read from a preset or YAML file and `key=value` overrides.

`load("svd", ["loop.batch_clips=2"])` starts from trainer/presets/svd.yaml. A file may build on a preset with
`preset: svd`. An unknown key is an error that names the most similar known one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from protos.client import RewardClient, read_api_key
from protos.types import ContractError, RefreshRequest
from trainer.config_tree import built, check_keys, flat, merged, overridden, plain, read, read_own
from trainer.data import DataConfig
from trainer.errors import ConfigError
from trainer.objective import Objective, RewardWeights
from trainer.policies.base import PolicyConfig
from trainer.policies.svd import SvdConfig
from trainer.policies.wan import WanConfig

PRESETS = Path(__file__).parent / "presets"
MODELS: dict[str, type[PolicyConfig]] = {"svd": SvdConfig, "wan": WanConfig}
POLICY_MODEL = "model"  # key of the policy section that selects the model's class


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Sizes in Algorithm 1. Counts of clips are over all processes, unless the field says otherwise."""

    num_buffers: int = 10
    buffer_clips: int = 640  # real clips per buffer
    num_rollouts: int = 8  # P, per real clip; 0 is supervised fine-tuning
    batch_clips: int = 1  # B, real clips per optimizer step and process
    passes: int = 10  # K, passes over each buffer; the second and later ones are shuffled
    max_lag: int = 0  # optimizer steps by which a rollout's policy may lag when its buffer begins; 0: on-policy

    def __post_init__(self) -> None:
        _at_least(self, "loop", {"num_buffers": 1, "buffer_clips": 1, "num_rollouts": 0, "batch_clips": 1, "passes": 1})
        _at_least(self, "loop", {"max_lag": 0})


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW over the policy's trained parameters."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_steps: int = 20  # the rate rises linearly to `lr` over this many steps, then stays
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self, "optimizer", {"lr": 0, "weight_decay": 0, "warmup_steps": 0})
        if not self.max_grad_norm > 0:
            raise ConfigError(
                f"optimizer.max_grad_norm is {self.max_grad_norm:g}; give more than 0, or .inf for no clipping"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas is {list(self.betas)}; give two numbers from 0 to below 1")

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.lr


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """Where rewards come from, and what happens to a clip that gets none."""

    server: str = "grpc://127.0.0.1:50051"  # address of the reward server, gRPC
    api_key_file: str = ""  # file with the server's API key; empty: MOTION_REWARD_API_KEY, if the server requires one
    ca: str = ""  # file of certificates to trust at a grpcs:// address; empty: MOTION_REWARD_CA, or the system's
    cert: str = ""  # file of the certificate to present, if the server asks; empty: MOTION_REWARD_CERT
    cert_key: str = ""  # file of its private key; empty: MOTION_REWARD_CERT_KEY, or in the same file
    redis_url: str = ""  # the server's Redis, to read the run's results stream; empty: outcomes come over gRPC
    on_missing: Literal["mask", "retry", "abort_after_fraction"] = "retry"  # `retry` masks a clip after its last retry
    max_retries: int = 2  # retries of one clip, if on_missing is retry
    max_missing_fraction: float = 0.1  # share of a buffer's clips, if on_missing is abort_after_fraction
    max_in_flight: int = 64  # clips that one process has submitted and that have no outcome yet
    patience_s: float = 60.0  # silence after which the trainer asks the server and submits lost clips again
    max_outage_s: float = 1800.0  # silence or refusals after which the run stops
    real_as: Literal["pixels", "decoded"] = "decoded"  # real clips through the policy's VAE, or as they are read
    weights: RewardWeights | None = None  # of the discriminators in the combined reward; None: the server's
    min_dynamics: float = 0.0  # share of its real clip's motion below which a rollout is worst in its group; 0: off

    def __post_init__(self) -> None:
        _at_least(self, "rewards", {"max_retries": 0, "max_in_flight": 1})
        if not 0 <= self.max_missing_fraction <= 1:
            raise ConfigError(
                f"rewards.max_missing_fraction is {self.max_missing_fraction:g}; give a share from 0 to 1"
            )
        if not 0 <= self.min_dynamics <= 1:
            raise ConfigError(f"rewards.min_dynamics is {self.min_dynamics:g}; give a share from 0 (off) to 1")
        if self.patience_s <= 0 or self.max_outage_s < self.patience_s:
            raise ConfigError(
                f"rewards.patience_s is {self.patience_s:g} and rewards.max_outage_s {self.max_outage_s:g}; "
                "give 0 < patience_s <= max_outage_s"
            )

    def client(self, **options: Any) -> RewardClient:
        """A client of the server. Raises ConfigError if its key or its certificates cannot be used."""
        api_key = self.api_key()
        try:
            return RewardClient(
                self.server,
                api_key=api_key,
                ca=self.ca or None,
                cert=self.cert or None,
                cert_key=self.cert_key or None,
                **options,
            )
        except ValueError as error:
            raise ConfigError(f"rewards: {error}") from error

    def api_key(self) -> str | None:
        """The key in `api_key_file`, or None without one. Raises ConfigError if it cannot be read."""
        try:
            return read_api_key(Path(self.api_key_file)) if self.api_key_file else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"rewards.api_key_file: {error}") from error


@dataclass(frozen=True, kw_only=True)
class SignalConfig:
    """How the rewards' own noise is measured, and what happens if rewards within groups differ by less than it."""

    noise_share: float = 0.05  # share of a buffer's groups that are scored again with other query points; 0: none
    min_to_noise: float = 1.0  # rewards are weak if signal over noise, both within groups, is below this
    on_weak: Literal["warn", "stop", "refresh"] = "warn"  # `refresh` refreshes and scores the buffer again, once

    def __post_init__(self) -> None:
        _at_least(self, "signal", {"min_to_noise": 0})
        if not 0 <= self.noise_share <= 1:
            raise ConfigError(f"signal.noise_share is {self.noise_share:g}; give a share from 0 (off) to 1")
        if self.on_weak != "warn" and not self.noise_share:
            raise ConfigError(
                f"signal.on_weak is {self.on_weak}, but signal.noise_share is 0, so the noise is not known; set "
                "signal.noise_share above 0, or signal.on_weak=warn"
            )


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """The adversarial refresh of the discriminators after each buffer (Eq. 7, on the server)."""

    enabled: bool = True
    steps_per_step: float = 1.0  # D:G ratio: discriminator steps per optimizer step of the policy
    lr: float = RefreshRequest.learning_rate
    ema: float = RefreshRequest.ema  # decay of the averaged weights that score
    clips_per_step: int = RefreshRequest.clips_per_step  # of each origin
    # Fewer steps, so that no clip is used more often on average; 0: no limit. 80 is how often the presets' steps would
    # use each clip if the server kept all of a buffer's first frames: 10 passes x 8 clips a step.
    max_passes: float = 80.0
    keep_optimizer: bool = RefreshRequest.keep_optimizer  # carry the optimizer's state from refresh to refresh
    max_real: int = RefreshRequest.max_real  # train on this many real clips of those on the server; 0: all
    max_rollouts: int = RefreshRequest.max_rollouts
    recompute: bool = False  # measure the buffer's motion from other query points at its end, and train on that
    on_gate: Literal["keep", "stop"] = "keep"  # if the server's gate refuses a version: keep the one before, or stop
    timeout_s: float = 0.0  # 0: the server's own limit, MOTION_REWARD_REFRESH_TIMEOUT_S and _STEP_S

    def __post_init__(self) -> None:
        _at_least(self, "refresh", {"steps_per_step": 0, "timeout_s": 0})
        try:
            self.request(run_id="any", steps=1, seed=0)
        except ContractError as error:
            raise ConfigError(f"refresh: {error}") from error

    def request(self, *, run_id: str, steps: int, seed: int) -> RefreshRequest:
        """The request to the server. Raises ContractError if a value is outside the contract's bounds."""
        return RefreshRequest(
            run_id=run_id,
            steps=steps,
            learning_rate=self.lr,
            ema=self.ema,
            clips_per_step=self.clips_per_step,
            seed=seed,
            max_real=self.max_real,
            max_rollouts=self.max_rollouts,
            max_passes=self.max_passes,
            keep_optimizer=self.keep_optimizer,
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints within a buffer. One is always written at the end of each buffer."""

    every_steps: int = 100  # optimizer steps; 0: only at the end of a buffer
    keep: int = 3  # keep this many of the latest, and the one at the start of the current buffer

    def __post_init__(self) -> None:
        _at_least(self, "checkpoint", {"every_steps": 0, "keep": 1})


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged during training."""

    every_steps: int = 10
    samples_every_buffers: int = 1  # buffers between saved sample clips with their tracks drawn on; 0: none
    num_samples: int = 4  # rollouts among the sample clips
    tensorboard_clips: bool = True  # also show the sample clips in TensorBoard, as gifs
    report: bool = True  # write run.html at the end of the run
    wandb: bool = False  # also log to Weights & Biases, under the run's id

    def __post_init__(self) -> None:
        _at_least(self, "logs", {"every_steps": 1, "samples_every_buffers": 0, "num_samples": 0})


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the commands `evaluate` and `rollout` sample."""

    num_clips: int = 32  # first frames, taken in order
    per_clip: int = 1  # samples of each first frame
    discriminator_version: str = ""  # discriminators that score; empty: the server's base version

    def __post_init__(self) -> None:
        _at_least(self, "evaluate", {"num_clips": 1, "per_clip": 1})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run."""

    out: Path = Path("runs/shift")  # folder of the run; the same folder resumes it
    run_id: str = ""  # name of the run on the reward server; empty: made once from the folder's name
    seed: int = 0
    device: str = ""  # cpu; empty: what Accelerate finds among the GPUs in CUDA_VISIBLE_DEVICES
    # CPU threads of torch. 0: torch's default. Use 1 for tiny models, where threads mostly wait for each other.
    threads: int = 0
    policy: PolicyConfig = field(default_factory=SvdConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    objective: Objective = field(default_factory=Objective)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logs: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ConfigError(f"threads is {self.threads}; give 0 or more")
        if self.device not in ("", "cpu"):
            raise ConfigError(
                f"device is {self.device!r}; give cpu, or leave it empty to use the GPU that CUDA_VISIBLE_DEVICES names"
            )
        if self.rewards.min_dynamics and (self.loop.num_rollouts == 0 or self.objective.weighting == "uniform"):
            raise ConfigError(
                f"rewards.min_dynamics is {self.rewards.min_dynamics:g}, but without rollouts, or with "
                "objective.weighting=uniform, no advantage has an effect; set rewards.min_dynamics=0"
            )

        if self.objective.per_discriminator and self.rewards.weights is None:
            raise ConfigError(
                "objective.per_discriminator is true, but rewards.weights, by which advantages are joined, is not set; "
                "set it, for instance rewards.weights={instantaneous: 1, long_term: 1}"
            )
        if self.signal.on_weak == "refresh" and not self.refresh.enabled:
            raise ConfigError(
                "signal.on_weak is refresh, but refresh.enabled is false; set refresh.enabled=true, or "
                "signal.on_weak=warn"
            )

    def steps_per_pass(self, num_processes: int) -> int:
        """Optimizer steps in one pass over a buffer. Raises ConfigError if the buffer does not divide evenly."""
        per_step = num_processes * self.loop.batch_clips
        if self.loop.buffer_clips % per_step:
            raise ConfigError(
                f"loop.buffer_clips is {self.loop.buffer_clips}, not a multiple of {per_step} "
                f"({num_processes} processes x loop.batch_clips {self.loop.batch_clips}); change one of them"
            )
        return self.loop.buffer_clips // per_step


def load(source: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a preset or YAML file with overrides `section.key=value`. Raises ConfigError.

    `source` is a preset's name or a file's path; None starts from the defaults. Values are parsed as YAML. A preset's
    lambda_aw gives way to an aw_dose that the file or an override sets.
    """
    data = overridden(read(source, PRESETS) if source else {}, overrides)
    own = overridden(read_own(source, PRESETS) if source else {}, overrides)
    if _has(own, "aw_dose") and not _has(own, "lambda_aw"):
        data["objective"] = {key: value for key, value in data["objective"].items() if key != "lambda_aw"}
    return from_dict(data)


def _has(data: Mapping[str, Any], key: str) -> bool:
    """Whether the objective has a value for `key` that turns it on."""
    objective = data.get("objective")
    return isinstance(objective, Mapping) and bool(objective.get(key))


def from_dict(data: Mapping[str, Any]) -> Config:
    """The configuration of plain values. Raises ConfigError for an unknown key, or a wrong type or value."""
    policy = dict(data.get("policy") or {})
    model = policy.pop(POLICY_MODEL, "svd")
    if model not in MODELS:
        raise ConfigError(f"policy.{POLICY_MODEL} is {model!r}; give one of {', '.join(MODELS)}")
    check_keys(Config, {key: value for key, value in data.items() if key != "policy"}, "")
    check_keys(MODELS[model], policy, "policy.")
    rest = {**data, "policy": built(MODELS[model], policy, "policy.")}
    if _has(data, "aw_dose") and "lambda_aw" not in data["objective"]:
        rest["objective"] = {**data["objective"], "lambda_aw": 0.0}  # the dose takes its place
    config: Config = built(Config, rest, "")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values for YAML and JSON. `from_dict` restores the same configuration."""
    data: dict[str, Any] = plain(asdict(config))
    model = next(name for name, kind in MODELS.items() if type(config.policy) is kind)
    data["policy"] = {POLICY_MODEL: model, **data["policy"]}
    return data


def to_yaml(config: Config) -> str:
    """The configuration as YAML text that `load` reads."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def differences(ours: Config, theirs: Mapping[str, Any], *, ignore: Sequence[str]) -> list[str]:
    """Keys whose values differ, as `loop.passes: 10, was 5`. Keys that start with one of `ignore` are skipped.

    `theirs` may be of an older version. A key that it does not have is taken to have had its default.
    """
    model = (theirs.get("policy") or {}).get(POLICY_MODEL, "svd")
    defaults = to_dict(from_dict({"policy": {POLICY_MODEL: model}}))
    mine, other = flat(to_dict(ours)), flat(merged(defaults, theirs))
    keys = [key for key in sorted(mine.keys() | other.keys()) if not key.startswith(tuple(ignore))]
    return [f"{key}: {mine.get(key)!r}, was {other.get(key)!r}" for key in keys if mine.get(key) != other.get(key)]


def _at_least(section: Any, name: str, limits: Mapping[str, float]) -> None:
    known = {item.name for item in fields(section)}
    for key, least in limits.items():
        assert key in known, key
        if getattr(section, key) < least:
            raise ConfigError(f"{name}.{key} is {getattr(section, key)}; give {least} or more")
