"""The contract holds: values survive every wire form, stubs are current, rooms do not reach into each other,
and no setting is declared that nothing reads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import codec, json_codec
from protos import reward_pb2 as pb
from protos.types import (
    Bounds,
    Clip,
    ClipWarning,
    Context,
    ContractError,
    DiscriminatorRefresh,
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
from reward_server.settings import Settings

ROOT = Path(__file__).parents[2]
ROOMS = ("protos", "reward_server", "trainer")

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
)
separations = st.builds(Separation, auc=share, logit_gap=number)
discriminator_refreshes = st.builds(
    DiscriminatorRefresh, losses=st.lists(number, max_size=3).map(tuple), before=separations, after=separations
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
)


def through_wire(message: Message) -> object:
    return type(message).FromString(message.SerializeToString())


@settings(max_examples=50)
@given(outcomes, text)
def test_outcomes_survive_the_wire_unchanged(outcome: Outcome, cursor: str) -> None:
    awaited = replace(outcome, cursor=cursor)
    assert codec.outcome_from_message(through_wire(codec.outcome_to_message(awaited))) == awaited


@settings(max_examples=50)
@given(outcomes)
def test_outcomes_survive_json_unchanged(outcome: Outcome) -> None:
    text = json.dumps(json_codec.result_to_json(outcome), allow_nan=False)
    assert json_codec.result_from_json(json.loads(text)) == outcome


@settings(max_examples=25)
@given(models)
def test_a_model_survives_the_wire_and_json_unchanged(model: Model) -> None:
    assert codec.model_from_message(through_wire(codec.model_to_message(model))) == model
    assert json_codec.from_json(Model, json.loads(json.dumps(json_codec.to_json(model)))) == model


@settings(max_examples=25)
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


@settings(max_examples=25)
@given(contexts, st.sampled_from(Media), st.binary(max_size=64))
def test_a_submission_survives_the_wire_unchanged(context: Context, media: Media, payload: bytes) -> None:
    submission = Submission(payload=payload, media=media, context=context)
    assert codec.submission_from_message(through_wire(codec.submission_to_message(submission))) == submission


def test_json_whole_numbers_are_floats_where_the_contract_says_float() -> None:
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


def test_an_outcome_that_holds_a_reward_and_an_error_cannot_come_in() -> None:
    result = json_codec.result_to_json(Outcome(job_id="a", kind=OutcomeKind.FAILED, error=Error(code="x", message="y")))
    with pytest.raises(ContractError):
        json_codec.result_from_json({**result, "outcome": "ok"})


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
def test_a_tensor_clip_is_a_safetensors_file_and_its_bytes_do_not_vary(dtype: type[np.generic]) -> None:
    """The library's own writer orders the metadata at random: keys would conflict, seeds would change."""
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
def test_a_float_tensor_clip_comes_back_as_the_bytes_it_was_made_of(dtype: type[np.generic]) -> None:
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
def test_a_tensor_clip_outside_its_declaration_is_refused_by_name(frames: np.ndarray, named: str) -> None:
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


def imported_modules(path: Path) -> Iterator[str]:
    """Every absolute module name imported anywhere in a file, also inside functions and by importlib's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


@pytest.mark.parametrize(
    ("room", "allowed"),
    [("protos", {"protos"}), ("reward_server", {"protos", "reward_server"}), ("trainer", {"protos", "trainer"})],
)
def test_rooms_import_only_what_they_may(room: str, allowed: set[str]) -> None:
    reached = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / room).rglob("*.py")
        for name in imported_modules(path)
        if name.partition(".")[0] in set(ROOMS) - allowed
    }
    assert reached == set()


def test_the_import_rule_sees_every_way_to_import(tmp_path: Path) -> None:
    source = "import trainer.objective\ndef f():\n    from trainer import x\n    importlib.import_module('trainer.y')\n"
    (tmp_path / "m.py").write_text(source)
    assert list(imported_modules(tmp_path / "m.py")) == ["trainer.objective", "trainer", "trainer.y"]


def test_the_doors_load_neither_torch_nor_opencv() -> None:
    code = "import sys, reward_server.serving.serve; "
    code += "print([m for m in ('torch', 'cv2', 'timm', 'av') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"


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
    files = [path for path in (ROOT / "reward_server").rglob("*.py") if path.name != "settings.py"]
    read = set().union(*map(attributes_read, files))
    assert set(Settings.model_fields) - read - behind_properties(read) == set()


def behind_properties(read: set[str]) -> set[str]:
    """Fields that a property of Settings makes its value of, where that property is read."""
    properties = {name: value.fget for name, value in vars(Settings).items() if isinstance(value, property)}
    return {name for prop in read & set(properties) for name in properties[prop].__code__.co_names}


def test_every_setting_has_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_an_unknown_setting_is_an_error_in_code_and_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Settings(nonsense=1)
    monkeypatch.setenv("MOTION_REWARD_BATCH_JOB", "4")
    with pytest.raises(ValueError, match="MOTION_REWARD_BATCH_JOB"):
        Settings()
