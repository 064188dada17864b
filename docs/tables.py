"""Write the generated tables of docs/serving.md and docs/operations.md anew: `make docs`, or `python docs/tables.py`.

Settings come from reward_server/settings, errors from reward_server/errors.py, metrics from the registry of a door.
A test compares the files with what this program would write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from prometheus_client.core import Metric
from pydantic_core import PydanticUndefined

from protos.types import DiscriminatorRefresh, RefreshResponse, Separation
from reward_server.doors.metrics import Metrics
from reward_server.doors.queue_metrics import Snapshot
from reward_server.errors import (
    DeadlinePassed,
    InvalidClip,
    RewardServerError,
    ScoringFailed,
    VersionNotServed,
    door,
    outcome_kind,
)
from reward_server.queue.door_queue import Vitals
from reward_server.queue.quota import QueueDepth
from reward_server.settings import MIB, PREFIX, Settings

SERVING = Path(__file__).parent / "serving.md"
OPERATIONS = Path(__file__).parent / "operations.md"
FIRST_OF_SECTION = {
    "profile": "What is served",
    "reward_min": "Rewards",
    "max_bytes": "Limits of clips and requests",
    "http": "HTTP, gRPC and logs",
    "redis_url": "Queue",
    "feature_max_clips": "Refresh",
    "batch_jobs": "Batches",
}
COMPUTED = {"data_dir": "`$XDG_DATA_HOME/motion-reward` or `~/.local/share/motion-reward`"}

CLIP_ERRORS = (InvalidClip, DeadlinePassed, ScoringFailed, VersionNotServed)
"""What may end one clip while the rest of its request goes on."""

MEANINGS = {
    "invalid_clip": "The clip cannot be scored. Sending it again will not help. The next eight codes say why.",
    "empty_payload": "The clip has no bytes.",
    "clip_too_large": "Too many bytes, frames, pixels or seconds.",
    "clip_too_short": "Too few frames after sampling at the profile's rate.",
    "unreadable_clip": "Not a video, damaged in the middle, without a video stream, or nothing can be decoded.",
    "decode_too_slow": "Decoding took longer than `MOTION_REWARD_MAX_DECODE_S`.",
    "decode_memory": "Decoding needed more memory than `MOTION_REWARD_DECODE_MEMORY_MIB`.",
    "decoder_crashed": "The process that decoded the clip died. The file breaks the decoder.",
    "bad_tensor": "The tensor's declaration or values break the [tensor format](formats.md#tensors).",
    "deadline_passed": "The deadline passed first. Or a synchronous call waited too long; then the job goes on.",
    "overloaded": "The queue, a quota or a limit of a door is full. Nothing was queued. Retry after the stated time.",
    "scoring_failed": "The server failed on this clip.",
    "non_finite_logit": "A discriminator returned NaN or infinity.",
    "attempts_exhausted": "Every worker that tried to score this clip died.",
    "version_not_served": "The pinned discriminator version is no longer kept.",
    "version_conflict": "Another version than the pinned one already judges the clip's group.",
    "bad_request": "The request itself is malformed. The message names the field.",
    "request_too_large": "The clips of the request have too many bytes in total.",
    "unsupported_media": "The content type is neither a video nor safetensors.",
    "unauthenticated": "The request has no key, or one that is unknown or revoked.",
    "forbidden": "The key lacks the scope of this call. Or the request names another host or comes from a foreign web "
    "page.",
    "unknown_job": "There is no such job, or its result has expired.",
    "idempotency_conflict": "The idempotency key was used for a different submission.",
    "not_ready": "Redis is unreachable, or no live worker has loaded its weights.",
    "refresh_error": "The refresh published no version. The next six codes say why. The old version still serves.",
    "unknown_run": "The server keeps no clips of this run.",
    "too_few_clips": "There are fewer real clips, or fewer rollouts, than `MOTION_REWARD_REFRESH_MIN_CLIPS`.",
    "refresh_running": "Another refresh of this run is under way.",
    "refresh_rejected": "The newly trained weights failed the checks, for instance because they are not finite.",
    "gate_failed": "On the run's anchor set they are worse than their parent: see [the gate](weights.md#the-gate).",
    "refresh_failed": "The server failed during the refresh.",
    "reward_server_error": "The server failed on this request. Its log has the request id.",
}


def settings_table() -> str:
    """Every setting by section: variable, default, meaning."""
    parts: list[str] = []
    for name, field in Settings.model_fields.items():
        if name in FIRST_OF_SECTION:
            parts.append(f"\n**{FIRST_OF_SECTION[name]}**\n\n| variable | default | meaning |\n|---|---|---|\n")
        if not is_undocumented(field):
            parts.append(f"| `{PREFIX}{name.upper()}` | {_default(name, field)} | {_meaning(field)} |\n")
    return "".join(parts).lstrip()


def is_undocumented(field: Any) -> bool:
    """Whether the settings keep this setting out of the documents, for instance until it is proven on a GPU."""
    return "undocumented" in (field.json_schema_extra or {})


def _default(name: str, field: Any) -> str:
    if name in COMPUTED:
        return COMPUTED[name]
    value = field.default
    assert value is not PydanticUndefined, f"{name} has no default; add it to COMPUTED"
    if value is None:
        return "none"
    if name.endswith("_bytes"):
        return f"`{value}` ({value // MIB} MiB)"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _meaning(field: Any) -> str:
    """The description, and the values there are to choose from."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    told = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return f"{field.description}{told}"


def errors_table() -> str:
    """Every error code in the order of the tree: outcome of a clip, HTTP status, gRPC code, meaning."""
    rows = [
        f"| `{code}` | {_outcome(error)} | {door(error).http} | {door(error).grpc} | {MEANINGS[code]} |\n"
        for error in errors()
        for code in [str(error.code)]
    ]
    return "| code | outcome of a clip | HTTP | gRPC | meaning |\n|---|---|---|---|---|\n" + "".join(rows)


def errors(kind: type[RewardServerError] = RewardServerError) -> Iterator[RewardServerError]:
    """One of each error below `kind`, then one of `kind` itself where it is the root."""
    for below in kind.__subclasses__():
        if below.__module__ != RewardServerError.__module__:
            continue  # of an experiment
        yield below.__new__(below)
        yield from errors(below)
    if kind is RewardServerError:
        yield kind.__new__(kind)


def _outcome(error: RewardServerError) -> str:
    return f"`{outcome_kind(error).value}`" if isinstance(error, CLIP_ERRORS) else "the request fails"


EXAMPLE_HEAD = DiscriminatorRefresh(
    losses=(1.0,), before=Separation(auc=0.5, logit_gap=0.0), after=Separation(auc=0.5, logit_gap=0.0)
)
EXAMPLE = Snapshot(  # of a queue in which everything has happened that a metric tells of
    depth=QueueDepth(),
    counts={},
    workers=1,
    unjudged={"version": 1},
    ready=True,
    vitals=Vitals(
        last_refresh=RefreshResponse(
            discriminator_version="version",
            weights_digest="",
            previous_version="",
            steps=1,
            num_real=2,
            num_rollouts=2,
            num_held_out=0,
            instantaneous=EXAMPLE_HEAD,
            long_term=EXAMPLE_HEAD,
            seconds=1.0,
        )
    ),
)


def metrics_table() -> str:
    """Every metric of ours, by name: type, labels, meaning."""
    metrics = Metrics()
    metrics.render(EXAMPLE)
    families = sorted(metrics.registry.collect(), key=lambda family: family.name)
    rows = [_metric_row(metrics, family) for family in families if family.name.startswith("motion_reward_")]
    return "| metric | type | labels | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _metric_row(metrics: Metrics, family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    # prometheus_client tells the labels of a family without a series only in this attribute
    collector = metrics.registry._names_to_collectors.get(family.name)
    labels = getattr(collector, "_labelnames", None) or [*family.samples[0].labels]
    told = ", ".join(f"`{label}`" for label in labels if label != "le")
    return f"| `{name}` | {family.type} | {told} | {family.documentation} |\n"


def generated(text: str) -> str:
    """docs/serving.md with its tables written anew."""
    return filled(text, {"settings": settings_table(), "errors": errors_table()})


def generated_operations(text: str) -> str:
    """docs/operations.md with its table written anew."""
    return filled(text, {"metrics": metrics_table()})


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A document with its tables, by name, written anew between their markers."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: written by `make docs` -->\n", f"<!-- end of {name} -->"
        parts = re.split(f"({re.escape(begin)}).*?({re.escape(end)})", text, flags=re.S)
        assert len(parts) == 4, f"the document must have one place for the table of {name}"
        text = f"{parts[0]}{begin}\n{table}\n{end}{parts[3]}"
    return text


if __name__ == "__main__":
    SERVING.write_text(generated(SERVING.read_text()))
    OPERATIONS.write_text(generated_operations(OPERATIONS.read_text()))
