"""The whole configuration of a run as one frozen value: a preset or YAML file, then `key=value` from the command line.

`load("svd", ["loop.batch_clips=2"])` starts from trainer/presets/svd.yaml. A file may build on a preset with
`preset: svd`. Every key must exist: an unknown one is an error that names the nearest there are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

import dacite
import yaml

from trainer.data import DataConfig
from trainer.errors import ConfigError
from trainer.policies.base import PolicyConfig
from trainer.policies.protocol import PolicyError
from trainer.policies.svd import SvdConfig
from trainer.policies.wan import WanConfig
from trainer.shift import Objective

PRESETS = Path(__file__).parent / "presets"
MODELS: dict[str, type[PolicyConfig]] = {"svd": SvdConfig, "wan": WanConfig}
POLICY_MODEL = "model"  # the key of the policy section that says which class the others belong to


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How much of what, in Algorithm 1. Counts of clips are over all processes, unless they say otherwise."""

    num_buffers: int = 10
    buffer_clips: int = 640  # real clips per buffer
    num_rollouts: int = 8  # P, per real clip; 0 is supervised fine-tuning
    batch_clips: int = 1  # B, real clips per optimizer step and process
    passes: int = 10  # K, over each buffer, shuffled from the second on
    max_lag: int = 0  # optimizer steps that a rollout's policy may be behind when its buffer begins; 0: on-policy

    def __post_init__(self) -> None:
        _at_least(self, "loop", {"num_buffers": 1, "buffer_clips": 1, "num_rollouts": 0, "batch_clips": 1, "passes": 1})
        _at_least(self, "loop", {"max_lag": 0})


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW over what the policy trains."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_steps: int = 20  # the rate rises linearly to `lr` over so many steps, then stays
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _at_least(self, "optimizer", {"lr": 0, "weight_decay": 0, "warmup_steps": 0, "max_grad_norm": 0})

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.lr


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """Where rewards come from, and what becomes of a clip without one."""

    server: str = "grpc://127.0.0.1:50051"  # the reward server's gRPC door
    redis_url: str = ""  # the queue's Redis, to read the run's results stream; empty: outcomes come over gRPC
    on_missing: Literal["mask", "retry", "abort_after_fraction"] = "retry"  # `retry` masks what fails for good
    max_retries: int = 2  # of one clip, where on_missing is retry
    max_missing_fraction: float = 0.1  # of a buffer's clips, where on_missing is abort_after_fraction
    max_in_flight: int = 64  # clips submitted by one process and not yet rewarded
    patience_s: float = 60.0  # silence after which everything awaited is submitted again, at no cost if it is known
    max_outage_s: float = 1800.0  # silence or refusals after which the run gives up
    real_as: Literal["pixels", "decoded"] = "pixels"  # score the real clip as it is, or through the policy's VAE

    def __post_init__(self) -> None:
        _at_least(self, "rewards", {"max_retries": 0, "max_missing_fraction": 0, "max_in_flight": 1})
        if self.patience_s <= 0 or self.max_outage_s < self.patience_s:
            raise ConfigError(
                f"rewards.patience_s is {self.patience_s:g} and rewards.max_outage_s {self.max_outage_s:g}; "
                "give 0 < patience_s <= max_outage_s"
            )


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """The adversarial refresh of the discriminators after each buffer (Eq. 7, on the server)."""

    enabled: bool = True
    steps_per_step: float = 1.0  # D:G: steps of the heads per optimizer step of the policy
    lr: float = 1e-5
    ema: float = 0.99  # of the heads that score
    clips_per_step: int = 8  # of each origin
    max_real: int = 0  # train on the newest so many real clips that the server keeps; 0: all
    max_rollouts: int = 0
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        _at_least(self, "refresh", {"steps_per_step": 0, "lr": 0, "clips_per_step": 1, "max_real": 0, "timeout_s": 0})


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Besides the one at the end of each buffer."""

    every_steps: int = 100  # optimizer steps; 0: at the end of buffers only
    keep: int = 3  # the latest so many

    def __post_init__(self) -> None:
        _at_least(self, "checkpoint", {"every_steps": 0, "keep": 1})


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written down on the way."""

    every_steps: int = 10
    samples_every_buffers: int = 1  # clips with their tracks drawn on; 0: none
    num_samples: int = 4  # rollouts among them
    wandb: bool = False  # log to Weights & Biases too, under the run's id

    def __post_init__(self) -> None:
        _at_least(self, "logs", {"every_steps": 1, "samples_every_buffers": 0, "num_samples": 0})


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `evaluate` and `rollout` make."""

    num_clips: int = 32  # first frames, taken in order
    per_clip: int = 1  # samples of each first frame
    discriminator_version: str = ""  # that scores; empty: the server's base version

    def __post_init__(self) -> None:
        _at_least(self, "evaluate", {"num_clips": 1, "per_clip": 1})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run hangs on."""

    out: Path = Path("runs/shift")  # folder of the run; the same folder resumes it
    run_id: str = ""  # name of the run on the reward server; empty: made once from the folder's name
    seed: int = 0
    device: str = ""  # torch device; empty: what Accelerate finds
    policy: PolicyConfig = field(default_factory=SvdConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    objective: Objective = field(default_factory=Objective)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logs: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def steps_per_pass(self, num_processes: int) -> int:
        """Optimizer steps in one pass over a buffer. Raises ConfigError where the buffer does not divide."""
        per_step = num_processes * self.loop.batch_clips
        if self.loop.buffer_clips % per_step:
            raise ConfigError(
                f"loop.buffer_clips is {self.loop.buffer_clips}, not a multiple of {per_step} "
                f"({num_processes} processes x loop.batch_clips {self.loop.batch_clips}); change one of them"
            )
        return self.loop.buffer_clips // per_step


def load(source: str | None, overrides: Sequence[str] = ()) -> Config:
    """A preset's name or a YAML file, then overrides `section.key=value` (values in YAML). Raises ConfigError."""
    data = _read(source) if source else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not key=value, for instance loop.batch_clips=2")
        _put(data, key.split("."), _yaml(value, override))
    return from_dict(data)


def _read(source: str) -> dict[str, Any]:
    path = PRESETS / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        names = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ConfigError(f"'{source}' is neither a preset ({names}) nor a YAML file")
    data = _yaml(path.read_text(), str(path)) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(data).__name__}")
    base = data.pop("preset", None)
    return _merged(_read(base), data) if base else data


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; we mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = data.get(key)
        data[key] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        data = inner
    data[keys[-1]] = value


def from_dict(data: Mapping[str, Any]) -> Config:
    """Raises ConfigError for an unknown key, a value of another type and a value out of range."""
    policy = dict(data.get("policy") or {})
    model = policy.pop(POLICY_MODEL, "svd")
    if model not in MODELS:
        raise ConfigError(f"policy.{POLICY_MODEL} is {model!r}; give one of {', '.join(MODELS)}")
    _check_keys(Config, {key: value for key, value in data.items() if key != "policy"}, "")
    _check_keys(MODELS[model], policy, "policy.")
    rest = {**data, "policy": _built(MODELS[model], policy, "policy.")}
    config: Config = _built(Config, rest, "")
    return config


def _built(kind: type, data: Mapping[str, Any], where: str) -> Any:
    try:
        hooks: dict[Any, Callable[[Any], Any]] = {int: _no_truth, float: _number}
        return dacite.from_dict(kind, data, dacite.Config(type_hooks=hooks, cast=[Path, tuple], strict=True))
    except dacite.WrongTypeError as error:
        given = type(error.value).__name__
        wanted = _type_name(error.field_type)
        raise ConfigError(f"{where}{error.field_path} is {error.value!r} ({given}); give {wanted}") from error
    except (dacite.DaciteError, TypeError, PolicyError) as error:
        raise ConfigError(f"{where.rstrip('.') or 'the configuration'}: {error}") from error


def _no_truth(value: Any) -> Any:
    """True is no count, although Python has it as 1."""
    return str(value).lower() if isinstance(value, bool) else value


def _number(value: Any) -> Any:
    return float(value) if type(value) is int else _no_truth(value)


def _type_name(kind: Any) -> str:
    if getattr(kind, "__origin__", None) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _check_keys(kind: type, data: Mapping[str, Any], where: str) -> None:
    known = get_type_hints(kind)
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(known)
            hint = ", ".join(f"{where}{name}" for name in near)
            raise ConfigError(f"there is no key '{where}{key}'; did you mean {hint}?")
        inner = _dataclass_in(known[key])
        if inner and isinstance(value, Mapping):
            _check_keys(inner, value, f"{where}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, for YAML and JSON; `from_dict` makes the same configuration of them."""
    data: dict[str, Any] = _plain(asdict(config))
    model = next(name for name, kind in MODELS.items() if type(config.policy) is kind)
    data["policy"] = {POLICY_MODEL: model, **data["policy"]}
    return data


def to_yaml(config: Config) -> str:
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def differences(ours: Config, theirs: Mapping[str, Any], *, ignore: Sequence[str]) -> list[str]:
    """Keys whose values differ, as `loop.passes: 10, was 5`; keys that begin with one of `ignore` are passed over."""
    mine, other = _flat(to_dict(ours)), _flat(theirs)
    keys = [key for key in sorted(mine.keys() | other.keys()) if not key.startswith(tuple(ignore))]
    return [f"{key}: {mine.get(key)!r}, was {other.get(key)!r}" for key in keys if mine.get(key) != other.get(key)]


def _flat(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _at_least(section: Any, name: str, limits: Mapping[str, float]) -> None:
    known = {item.name for item in fields(section)}
    for key, least in limits.items():
        assert key in known, key
        if getattr(section, key) < least:
            raise ConfigError(f"{name}.{key} is {getattr(section, key)}; give {least} or more")
