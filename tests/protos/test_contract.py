"""Tests the contract: values survive every wire format, error codes and stubs are as agreed, and every setting is
read by code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from inspect import getmembers
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import codec, json_codec
from protos import reward_pb2 as pb
from protos.client import RequestRefused
from protos.codec.messages import OF_ANCHOR
from protos.error_codes import ErrorCode
from protos.explanation import Explanation, PairMaps, TrackExplanation, WindowExplanation, WindowPercentiles
from protos.types import (
    Anchor,
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
    StandardError,
    Standing,
    Submission,
    Timings,
    WindowLogits,
)
from reward_server import errors
from reward_server.settings import Settings

ROOT = Path(__file__).parents[2]

# --- values for round trips ---------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
number = st.floats(-1e6, 1e6)
share = st.floats(0, 1)
count = st.integers(0, 2**32 - 1)
logits = st.builds(Logits, instantaneous=number, long_term=number)
contexts = st.builds(
    Context,
    group_id=text,
    run_id=text,
    origin=st.none() | st.sampled_from(Origin),
    query_seed=st.none() | st.integers(0, 2**64 - 1),
    deadline_s=st.none() | st.floats(1e-3, 1e9),
    idempotency_key=text,
    policy_version=text,
    discriminator_version=text,
    explain=st.booleans(),
)
provenances = st.builds(
    Provenance,
    profile=text,
    discriminator_version=text,
    weights_digest=text,
    preprocessing_digest=text,
    query_seed=st.integers(0, 2**64 - 1),
    num_tracks=count,
    source=st.builds(
        Source,
        frames=count,
        fps=number,
        duration_s=number,
        height_px=count,
        width_px=count,
        codec=text,
        rotation_deg=st.sampled_from([0, 90, 180, 270]),
    ),
    fps_used=number,
    frames_used=count,
    height_px=count,
    width_px=count,
    mean_visibility=share,
    mean_confidence=share,
    timings=st.builds(Timings, queue_ms=number, decode_ms=number, motion_ms=number, discriminator_ms=number),
    warnings=st.lists(st.builds(ClipWarning, code=text, message=text, share=share), max_size=2).map(tuple),
)
amount = st.floats(0, 1e6)
dynamics = st.builds(
    Dynamics,
    total_motion=amount,
    camera_motion=amount,
    object_motion=amount,
    dynamic_degree=share,
    tracks_alive=share,
)


percentile = st.none() | st.floats(0, 100)
window_percentiles = st.builds(WindowPercentiles, combined=percentile, instantaneous=percentile, long_term=percentile)


@st.composite
def explained_windows(draw: st.DrawFn) -> WindowExplanation:
    num_pairs, cells = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    pairs, frames = (st.lists(number, min_size=n, max_size=n).map(tuple) for n in (num_pairs, num_pairs + 1))
    maps = st.binary(min_size=num_pairs * cells**2, max_size=num_pairs * cells**2)
    track = st.builds(TrackExplanation, x_px=frames, y_px=frames, visibility=frames, confidence=frames, share=number)
    residual, confidence = (
        PairMaps.of(np.frombuffer(draw(maps), np.uint8).reshape(num_pairs, cells, cells), draw(amount)) for _ in "12"
    )
    return WindowExplanation(
        times_s=draw(frames),
        tracks=draw(st.lists(track, max_size=2).map(tuple)),
        residual=residual,
        flow_confidence=confidence,
        residual_curve=draw(pairs),
        flow_confidence_curve=draw(pairs),
        percentiles=draw(st.none() | window_percentiles),
    )


explanations = st.builds(Explanation, windows=st.lists(explained_windows(), max_size=2).map(tuple), reduced=text)
standings = st.builds(
    Standing,
    combined_percentile=percentile,
    instantaneous_percentile=percentile,
    long_term_percentile=percentile,
    nearest=text,
    band=text,
    num_clips=count,
    discriminator_version=text,
    missing=text,
)
standard_errors = st.builds(
    StandardError, combined=amount, instantaneous=amount, long_term=amount, num_windows=count, num_draws=count
)
rewards = st.builds(
    Reward,
    combined=st.floats(-10, 10),
    instantaneous=st.floats(-10, 10),
    long_term=st.floats(-10, 10),
    logits=logits,
    clipped=st.booleans(),
    bounds=st.just(Bounds(min=-10.0, max=10.0)),
    windows=st.lists(st.builds(WindowLogits, start_s=number, logits=logits), max_size=3).map(tuple),
    provenance=provenances,
    dynamics=st.none() | dynamics,
    explanation=st.none() | explanations,
    standing=st.none() | standings,
    standard_error=st.none() | standard_errors,
)
outcomes = st.builds(Outcome, job_id=text, kind=st.just(OutcomeKind.OK), reward=rewards, context=contexts) | st.builds(
    Outcome,
    job_id=text,
    kind=st.sampled_from([kind for kind in OutcomeKind if kind is not OutcomeKind.OK]),
    error=st.builds(Error, code=text, message=text),
    context=contexts,
)
models = st.builds(
    Model,
    profile=text,
    discriminator_version=text,
    weights_digest=text,
    preprocessing_digest=text,
    bounds=st.just(Bounds(min=-10.0, max=10.0)),
    weights=logits,
    limits=st.builds(
        Limits,
        max_bytes=count,
        max_frames=count,
        max_frame_pixels=count,
        max_duration_s=number,
        max_clips_per_request=count,
        score_timeout_s=st.none() | number,
        refresh_timeout_s=st.none() | number,
    ),
    input=st.builds(
        Input,
        fps=number,
        window_frames=count,
        min_frames=count,
        num_tracks=count,
        area_px=count,
        containers=st.lists(text, max_size=3).map(tuple),
        tensor_forms=st.lists(text, max_size=3).map(tuple),
    ),
    architecture_digest=text,
)


refresh_requests = st.builds(
    RefreshRequest,
    run_id=text.filter(bool),
    steps=st.integers(1, 100_000),
    learning_rate=st.floats(1e-9, 1),
    ema=st.floats(0, 1, exclude_max=True),
    clips_per_step=st.integers(1, 1024),
    seed=st.integers(0, 2**64 - 1),
    max_real=count,
    max_rollouts=count,
    deadline_s=st.none() | st.floats(1e-6, 1e9),
    idempotency_key=text,
    max_passes=st.floats(0, 1e6),
    keep_optimizer=st.booleans(),
)
separations = st.builds(Separation, auc=share, logit_gap=number)
anchors = st.builds(
    Anchor,
    before=separations,
    after=separations,
    drift=number,
    saturation_before=share,
    saturation_after=share,
    **dict.fromkeys(OF_ANCHOR, st.none() | share),
)
discriminator_refreshes = st.builds(
    DiscriminatorRefresh,
    losses=st.lists(number, max_size=3).map(tuple),
    before=separations,
    after=separations,
    anchor=st.none() | anchors,
)
refresh_responses = st.builds(
    RefreshResponse,
    discriminator_version=text,
    weights_digest=text,
    previous_version=text,
    steps=count,
    num_real=count,
    num_rollouts=count,
    num_held_out=count,
    instantaneous=discriminator_refreshes,
    long_term=discriminator_refreshes,
    seconds=number,
    missing_real=st.lists(text, max_size=3).map(tuple),
    missing_rollouts=st.lists(text, max_size=3).map(tuple),
    scored_real=count,
    scored_rollouts=count,
    older_real=count,
    older_rollouts=count,
    anchor_real=count,
    anchor_rollouts=count,
)


def through_wire(message: Message) -> object:
    return type(message).FromString(message.SerializeToString())


@settings(max_examples=50, deadline=None)
@given(outcomes, text)
def test_outcomes_survive_the_wire_unchanged(outcome: Outcome, cursor: str) -> None:
    awaited = replace(outcome, cursor=cursor)
    assert codec.outcome_from_message(through_wire(codec.outcome_to_message(awaited))) == awaited


@settings(max_examples=50, deadline=None)
@given(outcomes)
def test_outcomes_survive_json_unchanged(outcome: Outcome) -> None:
    text = json.dumps(json_codec.result_to_json(outcome), allow_nan=False)
    assert json_codec.result_from_json(json.loads(text)) == outcome


@settings(max_examples=25, deadline=None)
@given(outcomes.filter(lambda outcome: outcome.reward is not None))
def test_an_answer_of_an_older_server_has_no_dynamics_and_no_standing(outcome: Outcome) -> None:
    """What such a server leaves out is absent, never zeros."""
    message, result = codec.outcome_to_message(outcome), json_codec.result_to_json(outcome)
    for name in ("dynamics", "standing", "standard_error"):
        message.reward.ClearField(name)
        del result["reward"][name]
    for told in (codec.outcome_from_message(through_wire(message)), json_codec.result_from_json(result)):
        assert told.reward and told.reward.dynamics is None
        assert told.reward.standing is None and told.reward.standard_error is None


def test_a_percentile_of_zero_and_an_absent_one_stay_what_they_are() -> None:
    lowest = Standing(combined_percentile=0.0, missing="the table has none for the other two")
    message = pb.Reward(bounds=pb.Bounds(min=-1, max=1), standing=pb.Standing(combined_percentile=0.0))
    message.standing.missing = lowest.missing
    read = codec.outcome_from_message(pb.Outcome(kind=pb.OK, reward=message)).reward
    assert read and read.standing == lowest and read.standard_error is None


@pytest.mark.parametrize("value", [-0.1, 100.1, float("nan")])
def test_percentiles_and_errors_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ContractError, match=r"standing\.long_term_percentile must be in 0\.\.100"):
        Standing(long_term_percentile=value)
    with pytest.raises(ContractError, match=r"standard_error\.combined must be finite and 0 or more"):
        StandardError(combined=-abs(value), instantaneous=0, long_term=0, num_windows=2, num_draws=1)


@pytest.mark.parametrize(
    "change",
    [
        {"residual_curve": (1.0,)},
        {"times_s": (0.0, 1.0)},
        {"residual": {"height": 2, "width": 3, "top": 1.0, "cells": "AAAA"}},
        {"residual": {"height": 1, "width": 3, "top": 1.0, "cells": "no base64"}},
        {"residual": {"height": 0, "width": 0, "top": 1.0, "cells": "AAAA"}},
    ],
)
def test_an_explanation_that_does_not_fit_together_is_refused(change: dict[str, object]) -> None:
    maps = {"height": 1, "width": 3, "top": 1.0, "cells": "AAAAAAAA"}
    window = {"times_s": [0.0, 0.5, 1.0], "tracks": [], "residual": maps, "flow_confidence": maps}
    window |= {"residual_curve": [1.0, 2.0], "flow_confidence_curve": [0.5, 0.5]}
    read = json_codec.from_json(Explanation, {"windows": [window], "reduced": ""})
    assert read.windows[0].residual.values().shape == (2, 1, 3)
    with pytest.raises(ContractError, match="not an explanation"):
        json_codec.from_json(Explanation, {"windows": [window | change], "reduced": ""})


def test_the_bytes_of_a_map_stand_for_values_up_to_its_top() -> None:
    maps = PairMaps.of(np.array([[[0, 51, 255]]], np.uint8), top=10.0)
    assert maps.values().tolist() == [[[0.0, 2.0, 10.0]]]
    assert PairMaps.of(np.zeros((3, 0, 0), np.uint8), top=0.0).values().size == 0


def test_dynamics_of_a_still_clip_are_zeros_and_not_absent() -> None:
    still = Dynamics(total_motion=0, camera_motion=0, object_motion=0, dynamic_degree=0, tracks_alive=0)
    message = pb.Reward(bounds=pb.Bounds(min=-1, max=1), dynamics=pb.Dynamics())
    assert codec.outcome_from_message(pb.Outcome(kind=pb.OK, reward=message)).reward.dynamics == still


@settings(max_examples=25, deadline=None)
@given(models)
def test_a_model_survives_the_wire_and_json_unchanged(model: Model) -> None:
    assert codec.model_from_message(through_wire(codec.model_to_message(model))) == model
    assert json_codec.from_json(Model, json.loads(json.dumps(json_codec.to_json(model)))) == model


def test_a_model_of_an_older_server_has_no_timeouts() -> None:
    limits = {"max_bytes": 1, "max_frames": 2, "max_frame_pixels": 3, "max_duration_s": 4.0, "max_clips_per_request": 5}
    assert json_codec.from_json(Limits, limits) == Limits(**limits)  # type: ignore[arg-type]
    message = pb.Model(limits=pb.Limits(**limits), bounds=pb.Bounds(min=-1, max=1))  # type: ignore[arg-type]
    assert codec.model_from_message(message).limits.refresh_timeout_s is None


@settings(max_examples=25, deadline=None)
@given(refresh_requests, refresh_responses)
def test_a_refresh_survives_the_wire_and_json_unchanged(request: RefreshRequest, response: RefreshResponse) -> None:
    assert codec.refresh_from_message(through_wire(codec.refresh_to_message(request))) == request
    assert codec.refreshed_from_message(through_wire(codec.refreshed_to_message(response))) == response
    for value in (request, response):
        assert json_codec.from_json(type(value), json.loads(json.dumps(json_codec.to_json(value)))) == value


def test_what_a_refresh_request_leaves_out_has_its_default() -> None:
    message = pb.RefreshRequest(run_id="r", steps=3)
    assert codec.refresh_from_message(message) == RefreshRequest(run_id="r", steps=3)
    assert codec.refresh_from_message(pb.RefreshRequest(run_id="r", steps=3, ema=0.0)).ema == 0.0


@settings(max_examples=25, deadline=None)
@given(contexts, st.sampled_from(Media), st.binary(max_size=64))
def test_a_submission_survives_the_wire_unchanged(context: Context, media: Media, payload: bytes) -> None:
    submission = Submission(payload=payload, media=media, context=context)
    assert codec.submission_from_message(through_wire(codec.submission_to_message(submission))) == submission


def test_whole_numbers_in_json_become_floats_for_float_fields() -> None:
    assert json_codec.from_json(Logits, {"instantaneous": 1, "long_term": -2}) == Logits(
        instantaneous=1.0, long_term=-2.0
    )


@pytest.mark.parametrize(
    "data",
    [None, {}, {"instantaneous": "1", "long_term": 2.0}, {"instantaneous": True, "long_term": 2.0}, [1.0, 2.0]],
)
def test_json_of_another_type_is_refused_not_coerced(data: object) -> None:
    with pytest.raises(ContractError) as refused:
        json_codec.from_json(Logits, data)
    assert refused.value.code == "bad_json"


def test_a_result_without_a_field_is_refused() -> None:
    outcome = Outcome(job_id="a", kind=OutcomeKind.FAILED, error=Error(code="x", message="y"))
    for name in (whole := json_codec.result_to_json(outcome)):
        if name != "provenance":  # read only beside a reward
            with pytest.raises(ContractError):
                json_codec.result_from_json({key: value for key, value in whole.items() if key != name})


def test_an_outcome_with_a_reward_and_an_error_is_refused() -> None:
    result = json_codec.result_to_json(Outcome(job_id="a", kind=OutcomeKind.FAILED, error=Error(code="x", message="y")))
    with pytest.raises(ContractError):
        json_codec.result_from_json({**result, "outcome": "ok"})


# --- error codes --------------------------------------------------------------------------------

SERVER_CODES = {
    "RewardServerError": "reward_server_error",
    "InvalidClip": "invalid_clip",
    "EmptyPayload": "empty_payload",
    "ClipTooLarge": "clip_too_large",
    "ClipTooShort": "clip_too_short",
    "UnreadableClip": "unreadable_clip",
    "DecodeTooSlow": "decode_too_slow",
    "DecodeMemory": "decode_memory",
    "DecoderCrashed": "decoder_crashed",
    "BadTensor": "bad_tensor",
    "DeadlinePassed": "deadline_passed",
    "Overloaded": "overloaded",
    "ScoringFailed": "scoring_failed",
    "NonFiniteLogit": "non_finite_logit",
    "AttemptsExhausted": "attempts_exhausted",
    "VersionNotServed": "version_not_served",
    "VersionConflict": "version_conflict",
    "BadRequest": "bad_request",
    "RequestTooLarge": "request_too_large",
    "UnsupportedMedia": "unsupported_media",
    "Unauthenticated": "unauthenticated",
    "Forbidden": "forbidden",
    "UnknownJob": "unknown_job",
    "IdempotencyConflict": "idempotency_conflict",
    "NotReady": "not_ready",
    "RefreshError": "refresh_error",
    "UnknownRun": "unknown_run",
    "TooFewClips": "too_few_clips",
    "RefreshRunning": "refresh_running",
    "RefreshRejected": "refresh_rejected",
    "GateFailed": "gate_failed",
    "RefreshFailed": "refresh_failed",
}


OTHER_CODES = {
    "not_found",
    "method_not_allowed",
    "unreachable",
    "no_answer",
    "bad_answer",
    "bad_frames",
    "bad_fps",
    "bad_context",
    "bad_media",
    "bad_bounds",
    "bad_reward",
    "bad_outcome",
    "bad_refresh",
    "bad_result",
    "bad_json",
    "non_finite",
}


def server_errors() -> dict[str, type[errors.RewardServerError]]:
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type))
    return {kind.__name__: kind for kind in kinds if issubclass(kind, errors.RewardServerError)}


def test_the_error_codes_are_these_and_match_their_members() -> None:
    assert {code.value for code in ErrorCode} == {*SERVER_CODES.values(), *OTHER_CODES}
    assert all(code.name == code.value.upper() for code in ErrorCode)


def test_every_error_of_the_server_names_a_code_of_its_own() -> None:
    assert {name: kind.code.value for name, kind in server_errors().items()} == SERVER_CODES
    assert all("code" in vars(kind) for kind in server_errors().values())


def test_renaming_an_error_changes_nothing_on_the_wire() -> None:
    renamed = type("ClipWithTooFewFrames", errors.ClipTooShort.__bases__, dict(vars(errors.ClipTooShort)))
    outcome = errors.error_outcome("a", renamed("3 frames"), Context())
    assert codec.outcome_to_message(outcome).error.code == "clip_too_short"
    assert json_codec.result_to_json(outcome)["error"]["code"] == "clip_too_short"


def test_a_code_of_a_newer_server_passes_through() -> None:
    told = Outcome(job_id="a", kind=OutcomeKind.INVALID, error=Error(code="clip_too_dull", message="m"))
    assert codec.outcome_from_message(through_wire(codec.outcome_to_message(told))) == told
    assert json_codec.result_from_json(json_codec.result_to_json(told)) == told
    assert RequestRefused("clip_too_dull", "m").code == "clip_too_dull"


# --- clips as tensors ---------------------------------------------------------------------------


def frames_of(dtype: type[np.generic]) -> np.ndarray:
    frames = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5), dtype=np.uint8)
    return frames if dtype is np.uint8 else (frames / 255).astype(dtype)


def test_a_uint8_tensor_clip_is_lossless() -> None:
    clip = Clip(frames=frames_of(np.uint8), fps=23.976)
    back = codec.tensor_to_clip(codec.clip_to_tensor(clip))
    assert back.fps == clip.fps
    assert np.array_equal(back.frames, clip.frames)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_a_tensor_clip_is_safetensors_and_its_bytes_do_not_vary(dtype: type[np.generic]) -> None:
    """The library's own writer orders metadata at random, so keys would conflict and seeds would change."""
    frames = frames_of(dtype)[:, :, ::-1]  # not contiguous
    made = [
        codec.clip_to_tensor(Clip(frames=frames, fps=12.0))
        if dtype is np.uint8
        else codec.frames_to_tensor(frames, 12.0)
        for _ in range(20)
    ]
    assert len(set(made)) == 1
    assert np.array_equal(safetensors.numpy.load(made[0])["frames"], frames)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_float_tensor_clip_round_trips_to_its_bytes(dtype: type[np.generic]) -> None:
    back = codec.tensor_to_clip(codec.frames_to_tensor(frames_of(dtype), 12.0))
    assert np.array_equal(back.frames, frames_of(np.uint8))


@pytest.mark.parametrize(
    ("frames", "named"),
    [
        (np.full((2, 3, 4, 4), 1.5, np.float32), "0 to 1|1.5"),
        (np.full((2, 3, 4, 4), -0.1, np.float32), "-0.1"),
        (np.full((2, 3, 4, 4), np.nan, np.float32), "finite"),
        (np.ones((2, 3, 4, 4), np.uint8), "scale"),
        (np.ones((2, 4, 4, 3), np.float32), r"\[T,3,H,W\]"),
    ],
    ids=["above one", "below zero", "nan", "uint8 zero to one", "channels last"],
)
def test_a_tensor_clip_outside_its_declaration_is_refused(frames: np.ndarray, named: str) -> None:
    as_float = frames.dtype != np.uint8
    data = codec.frames_to_tensor(frames, 8.0) if as_float else codec.clip_to_tensor(Clip(frames=frames, fps=8.0))
    with pytest.raises(ContractError, match=named) as refused:
        codec.tensor_to_clip(data)
    assert refused.value.code == "bad_tensor"


# --- the repository -----------------------------------------------------------------------------


def test_the_committed_stubs_are_what_the_proto_generates(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a dev dependency")
    source = ROOT / "protos" / "reward.proto"
    plugin = f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}"
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", plugin, *out, str(source)]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("reward_pb2.py", "reward_pb2_grpc.py", "reward_pb2.pyi"):
        assert (tmp_path / "protos" / name).read_text() == (ROOT / "protos" / name).read_text(), f"regenerate {name}"


def attributes_read(path: Path) -> set[str]:
    """Names read as `settings.NAME`, `self._settings.NAME`, or through a variable that is one of these."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    aliases = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and "settings" in ast.unparse(node.value).split(".")[-1]
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and ("settings" in ast.unparse(node.value) or ast.unparse(node.value) in aliases)
    }


def test_every_setting_is_read_by_code() -> None:
    files = [path for path in (ROOT / "reward_server").rglob("*.py") if path.parent.name != "settings"]
    read = set().union(*map(attributes_read, files))
    assert set(Settings.model_fields) - read - behind_properties(read) == set()


def behind_properties(read: set[str]) -> set[str]:
    """Fields from which a property of Settings computes its value, if that property is read."""
    properties = {name: value.fget for name, value in getmembers(Settings, lambda one: isinstance(one, property))}
    return {name for prop in read & set(properties) for name in properties[prop].__code__.co_names}


def test_every_setting_has_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_an_unknown_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Settings(nonsense=1)
    monkeypatch.setenv("MOTION_REWARD_BATCH_JOB", "4")
    with pytest.raises(ValueError, match="MOTION_REWARD_BATCH_JOB"):
        Settings()
