"""Converts the contract's Python values to bytes and protobuf messages, and back.

A tensor clip is a safetensors file with one tensor `frames` and the metadata `layout` ("TCHW"),
`range` ("0-255" for uint8, "0-1" for float16 and float32) and `fps`. Any other file is refused with
the reason, so that [0,1] and [0,255] can never be confused. JSON is in `json_codec.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from protos import reward_pb2 as pb
from protos.error_codes import ErrorCode
from protos.types import (
    DISCRIMINATORS,
    Bounds,
    Clip,
    ClipWarning,
    Context,
    ContractError,
    DiscriminatorRefresh,
    Dynamics,
    Error,
    Input,
    Limits,
    Logits,
    Media,
    Model,
    Origin,
    Outcome,
    OutcomeKind,
    Provenance,
    RefreshRequest,
    RefreshResponse,
    Reward,
    Separation,
    Source,
    Submission,
    Timings,
    WindowLogits,
)

V = TypeVar("V")

TENSOR_NAME = "frames"
MAX_HEADER_BYTES = 100_000  # of a tensor clip
RANGES = {"U8": "0-255", "F16": "0-1", "F32": "0-1"}
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
TENSOR_FORMS = ("uint8 TCHW 0-255", "float16 TCHW 0-1", "float32 TCHW 0-1")


# --- clips as tensors ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """What the header of a tensor clip declares. Reading it does not touch the frames.

    `first_byte` is the position of the first frame in the file, and `frame_bytes` the size of each.
    """

    dtype: str
    frames: int
    height_px: int
    width_px: int
    fps: float
    first_byte: int

    @property
    def frame_bytes(self) -> int:
        return int(3 * self.height_px * self.width_px * DTYPES[self.dtype].itemsize)


def clip_to_tensor(clip: Clip) -> bytes:
    """A tensor clip as bytes: lossless, uint8 TCHW 0-255. The same frames always give the same bytes."""
    return _tensor_bytes(clip.frames, "U8", clip.fps)


def frames_to_tensor(frames: NDArray[np.floating[Any]], fps: float) -> bytes:
    """A tensor clip as bytes, from float frames [T,3,H,W] in 0..1 such as a diffusion pipeline returns.

    float16 stays float16. Every other float type is stored as float32. `fps` is in frames per second.
    """
    half = frames.dtype == np.float16
    return _tensor_bytes(frames if half else frames.astype(np.float32), "F16" if half else "F32", fps)


def _tensor_bytes(frames: NDArray[Any], dtype: str, fps: float) -> bytes:
    """Write the safetensors file here, because its own library writes the metadata in random order.

    A clip's bytes must not vary: idempotency keys and query seeds are derived from them.
    """
    meta = {"layout": "TCHW", "range": RANGES[dtype], "fps": repr(float(fps))}
    tensor = {"dtype": dtype, "shape": list(frames.shape), "data_offsets": [0, frames.nbytes]}
    header = json.dumps({"__metadata__": meta, TENSOR_NAME: tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # align the data to 8 bytes
    return struct.pack("<Q", len(header)) + header + frames.tobytes()


def tensor_header(data: bytes) -> TensorHeader:
    """Read and check the header of a tensor clip. Raises ContractError("bad_tensor") that says what is wrong."""
    header = _safetensors_header(data)
    meta = header.pop("__metadata__", {})
    if set(header) != {TENSOR_NAME}:
        raise _bad(f"holds the tensors {sorted(header)}; store exactly one, named '{TENSOR_NAME}'")
    dtype, shape = header[TENSOR_NAME].get("dtype"), header[TENSOR_NAME].get("shape", [])
    if not (isinstance(dtype, str) and dtype in RANGES):
        raise _bad(f"dtype {dtype!r} is not one of {sorted(RANGES)} (uint8, float16, float32)")
    if meta.get("layout") != "TCHW":
        raise _bad(f"layout is {meta.get('layout')!r}; only 'TCHW' is accepted: permute the frames and declare it")
    sound = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not sound or len(shape) != 4 or shape[1] != 3:
        raise _bad(f"shape {shape} is not [T,3,H,W]")
    if meta.get("range") != RANGES[dtype]:
        raise _bad(f"range is {meta.get('range')!r}; {dtype} frames must be declared and scaled '{RANGES[dtype]}'")
    num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if header[TENSOR_NAME].get("data_offsets") != [0, num_bytes]:
        offsets = header[TENSOR_NAME].get("data_offsets")
        raise _bad(f"is damaged: data_offsets are {offsets}, but {dtype} frames of this shape need [0, {num_bytes}]")
    return TensorHeader(
        dtype=dtype,
        frames=shape[0],
        height_px=shape[2],
        width_px=shape[3],
        fps=_fps(meta.get("fps")),
        first_byte=8 + struct.unpack("<Q", data[:8])[0],
    )


def tensor_to_clip(data: bytes) -> Clip:
    """Decode and check a tensor clip. Raises ContractError("bad_tensor") that says what is wrong.

    Float frames are scaled to 0..255 and rounded to uint8.
    """
    header = tensor_header(data)
    try:
        frames = load(data)[TENSOR_NAME]
    except (SafetensorError, ValueError) as error:
        raise _bad(f"is damaged: {error}") from error
    check_values([frames])
    return Clip(frames=to_uint8(frames), fps=header.fps)


def check_length(header: TensorHeader, num_bytes: int) -> None:
    """Raises ContractError("bad_tensor") unless a file of `num_bytes` bytes ends with the header's last frame."""
    wanted = header.first_byte + header.frames * header.frame_bytes
    if num_bytes != wanted:
        raise _bad(f"is damaged: it has {num_bytes} bytes, but its header declares {wanted}; upload the whole file")


def check_values(parts: Iterable[NDArray[Any]]) -> None:
    """Raises ContractError("bad_tensor") if the stored values are out of range. `parts` together are all frames."""
    found = [(part.dtype, float(part.min()), float(part.max())) for part in parts]
    low, high = float(np.min([low for _, low, _ in found])), float(np.max([high for _, _, high in found]))
    if found[0][0] == np.uint8:
        if high == 1:
            raise _bad("uint8 values are all 0 or 1; scale them to 0..255 before you cast them")
        return
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _bad("values are not all finite; look for NaN in the code that made them")
    if low < 0 or high > 1:
        raise _bad(f"values range from {low:.9g} to {high:.9g}, but float frames must lie in 0..1; rescale them")


def to_uint8(frames: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames of checked values as 0..255. Floats are scaled and rounded."""
    return frames if frames.dtype == np.uint8 else np.asarray(np.rint(frames.astype(np.float32) * 255), dtype=np.uint8)


def _safetensors_header(data: bytes) -> dict[str, Any]:
    try:
        (size,) = struct.unpack("<Q", data[:8])
        if not 0 < size <= min(len(data) - 8, MAX_HEADER_BYTES):
            raise ValueError(f"header size {size}")
        header = json.loads(data[8 : 8 + size])
        if not (isinstance(header, dict) and all(isinstance(value, dict) for value in header.values())):
            raise ValueError("header is not an object of objects")
    except (struct.error, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"is not a safetensors file ({error}); send videos as media 'container'") from error
    return header


def _fps(text: str | None) -> float:
    try:
        fps = float(text or "")
    except (TypeError, ValueError):
        fps = math.nan
    if not (math.isfinite(fps) and fps > 0):
        raise _bad(f"fps is {text!r}; declare the frame rate as a positive number")
    return fps


def _bad(what: str) -> ContractError:
    return ContractError(ErrorCode.BAD_TENSOR, f"tensor clip {what}")


# --- values <-> messages ------------------------------------------------------------------------


def context_to_message(context: Context) -> pb.Context:
    fields = {name: value for name, value in _fields(context).items() if value is not None and name != "origin"}
    origin = pb.Origin.Value(context.origin.name) if context.origin else pb.ORIGIN_UNSPECIFIED
    return pb.Context(**fields, origin=origin)


def context_from_message(message: pb.Context) -> Context:
    return Context(
        group_id=message.group_id,
        run_id=message.run_id,
        origin=Origin[pb.Origin.Name(message.origin)] if message.origin else None,
        query_seed=message.query_seed if message.HasField("query_seed") else None,
        deadline_s=message.deadline_s if message.HasField("deadline_s") else None,
        idempotency_key=message.idempotency_key,
        policy_version=message.policy_version,
        discriminator_version=message.discriminator_version,
    )


def submission_to_message(submission: Submission) -> pb.Clip:
    media = pb.Media.Value(submission.media.name)
    return pb.Clip(media=media, payload=submission.payload, context=context_to_message(submission.context))


def media_from_message(media: pb.Media.ValueType) -> Media:
    if media not in (pb.CONTAINER, pb.TENSOR):
        raise ContractError(
            ErrorCode.BAD_MEDIA, f"media is {media}; set CONTAINER (a video file) or TENSOR (safetensors)"
        )
    return Media[pb.Media.Name(media)]


def submission_from_message(message: pb.Clip) -> Submission:
    context = context_from_message(message.context)
    return Submission(payload=message.payload, media=media_from_message(message.media), context=context)


def outcome_to_message(outcome: Outcome) -> pb.Outcome:
    return pb.Outcome(
        job_id=outcome.job_id,
        kind=pb.OutcomeKind.Value(outcome.kind.name),
        reward=_reward_to_message(outcome.reward) if outcome.reward else None,
        error=pb.Error(**_fields(outcome.error)) if outcome.error else None,
        context=context_to_message(outcome.context),
        cursor=outcome.cursor,
    )


def outcome_from_message(message: pb.Outcome) -> Outcome:
    return Outcome(
        job_id=message.job_id,
        kind=OutcomeKind[pb.OutcomeKind.Name(message.kind)],
        reward=_reward_from_message(message.reward) if message.HasField("reward") else None,
        error=Error(code=message.error.code, message=message.error.message) if message.HasField("error") else None,
        context=context_from_message(message.context),
        cursor=message.cursor,
    )


def model_to_message(model: Model) -> pb.Model:
    nested = {"bounds": pb.Bounds, "weights": pb.Logits, "limits": pb.Limits, "input": pb.Input}
    fields = _fields(model)
    return pb.Model(**{name: nested[name](**_fields(v)) if name in nested else v for name, v in fields.items()})


def model_from_message(message: pb.Model) -> Model:
    return Model(
        profile=message.profile,
        discriminator_version=message.discriminator_version,
        weights_digest=message.weights_digest,
        preprocessing_digest=message.preprocessing_digest,
        bounds=_scalars(Bounds, message.bounds),
        weights=_scalars(Logits, message.weights),
        limits=_limits_from_message(message.limits),
        input=_scalars(Input, message.input),
    )


def _limits_from_message(message: pb.Limits) -> Limits:
    names: tuple[Literal["score_timeout_s", "refresh_timeout_s"], ...] = ("score_timeout_s", "refresh_timeout_s")
    return _scalars(Limits, message, **{n: getattr(message, n) if message.HasField(n) else None for n in names})


def refresh_to_message(request: RefreshRequest) -> pb.RefreshRequest:
    return pb.RefreshRequest(**{name: value for name, value in _fields(request).items() if value is not None})


def refresh_from_message(message: pb.RefreshRequest) -> RefreshRequest:
    """The request, with defaults for absent fields. Raises ContractError("bad_refresh")."""
    optional = ("learning_rate", "ema", "clips_per_step", "seed", "deadline_s")
    given = {name: getattr(message, name) for name in optional if message.HasField(name)}  # type: ignore[arg-type]
    return RefreshRequest(
        run_id=message.run_id,
        steps=message.steps,
        max_real=message.max_real,
        max_rollouts=message.max_rollouts,
        idempotency_key=message.idempotency_key,
        **given,
    )


def refreshed_to_message(response: RefreshResponse) -> pb.RefreshResponse:
    discriminators: dict[str, Any] = {
        name: _discriminator_to_message(getattr(response, name)) for name in DISCRIMINATORS
    }
    return pb.RefreshResponse(**{**_fields(response), **discriminators})


def refreshed_from_message(message: pb.RefreshResponse) -> RefreshResponse:
    return _scalars(
        RefreshResponse,
        message,
        instantaneous=_discriminator_from_message(message.instantaneous),
        long_term=_discriminator_from_message(message.long_term),
    )


def _discriminator_to_message(discriminator: DiscriminatorRefresh) -> pb.DiscriminatorRefresh:
    before, after = pb.Separation(**_fields(discriminator.before)), pb.Separation(**_fields(discriminator.after))
    return pb.DiscriminatorRefresh(losses=discriminator.losses, before=before, after=after)


def _discriminator_from_message(message: pb.DiscriminatorRefresh) -> DiscriminatorRefresh:
    before, after = _scalars(Separation, message.before), _scalars(Separation, message.after)
    return DiscriminatorRefresh(losses=tuple(message.losses), before=before, after=after)


def _reward_to_message(reward: Reward) -> pb.Reward:
    provenance = _fields(reward.provenance)
    provenance["source"] = pb.Source(**_fields(reward.provenance.source))
    provenance["timings"] = pb.Timings(**_fields(reward.provenance.timings))
    provenance["warnings"] = [pb.ClipWarning(**_fields(warning)) for warning in reward.provenance.warnings]
    return pb.Reward(
        combined=reward.combined,
        instantaneous=reward.instantaneous,
        long_term=reward.long_term,
        logits=pb.Logits(**_fields(reward.logits)),
        clipped=reward.clipped,
        bounds=pb.Bounds(**_fields(reward.bounds)),
        windows=[pb.WindowLogits(start_s=w.start_s, logits=pb.Logits(**_fields(w.logits))) for w in reward.windows],
        provenance=pb.Provenance(**provenance),
        dynamics=pb.Dynamics(**_fields(reward.dynamics)) if reward.dynamics else None,
    )


def _reward_from_message(message: pb.Reward) -> Reward:
    return Reward(
        combined=message.combined,
        instantaneous=message.instantaneous,
        long_term=message.long_term,
        logits=_scalars(Logits, message.logits),
        clipped=message.clipped,
        bounds=_scalars(Bounds, message.bounds),
        windows=tuple(WindowLogits(start_s=w.start_s, logits=_scalars(Logits, w.logits)) for w in message.windows),
        provenance=_scalars(
            Provenance,
            message.provenance,
            source=_scalars(Source, message.provenance.source),
            timings=_scalars(Timings, message.provenance.timings),
            warnings=tuple(_scalars(ClipWarning, warning) for warning in message.provenance.warnings),
        ),
        dynamics=_scalars(Dynamics, message.dynamics) if message.HasField("dynamics") else None,
    )


# --- shared ---------------------------------------------------------------------------------------


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _scalars(kind: type[V], message: Any, **given: Any) -> V:
    """A `kind` from a message with the same field names. Fields in `given` are taken from there."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in given]  # type: ignore[arg-type]
    values = {name: getattr(message, name) for name in names}
    repeated = {name: tuple(v) for name, v in values.items() if not isinstance(v, (str, bytes, int, float))}
    return kind(**{**values, **repeated, **given})
