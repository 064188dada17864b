"""Tests the errors of `submission()`: they describe the input and what is accepted, and give a line that converts it.
The tests run these lines, which must give the intended frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from protos.client import submission as exported
from protos.codec import tensor_to_clip
from protos.submissions import WANTED, submission
from protos.types import ContractError, Media

T, H, W = 5, 8, 6
TCHW: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (T, 3, H, W), dtype=np.uint8)
TCHW[0, 0, 0, :2] = 0, 255
THWC = np.ascontiguousarray(TCHW.transpose(0, 2, 3, 1))
GREY = TCHW[:, :1].repeat(3, axis=1)
UNIT = (TCHW / 255).astype(np.float32)
MASK = np.where(TCHW > 127, np.uint8(255), np.uint8(0))
RGBA = np.concatenate([THWC, THWC[..., :1]], axis=3)
NAN = UNIT.copy()
NAN[2, 1, 0, 3] = np.nan
ABOVE = np.where(TCHW == 255, np.nextafter(np.float32(1), np.float32(2)), UNIT)


def pictures(mode: str = "RGB") -> list[Image.Image]:
    return [Image.fromarray(frame).convert(mode) for frame in THWC]


def refusal(source: Any, **options: Any) -> ContractError:
    with pytest.raises(ContractError) as refused:
        submission(source, **{"fps": 8, **options})
    return refused.value


CONVERTED: dict[str, tuple[Any, str, NDArray[Any]]] = {
    "torch": (torch.from_numpy(UNIT), r"a torch tensor, torch.float32 [5, 3, 8, 6], values 0 to 1", TCHW),
    "torch uint8": (torch.from_numpy(TCHW), "a torch tensor, torch.uint8 [5, 3, 8, 6], values 0 to 255", TCHW),
    "torch with a gradient": (torch.from_numpy(UNIT).requires_grad_(), "a torch tensor, torch.float32", TCHW),
    "torch parameter": (torch.nn.Parameter(torch.from_numpy(UNIT)), "a torch tensor, torch.float32", TCHW),
    "torch bfloat16": (torch.from_numpy(MASK / 255).bfloat16(), "torch.bfloat16 [5, 3, 8, 6], values 0 to 1", MASK),
    "torch THWC": (torch.from_numpy(THWC), "torch.uint8 [5, 8, 6, 3]", TCHW),
    "torch BTCHW -1..1": (torch.from_numpy(UNIT * 2 - 1)[None], "[1, 5, 3, 8, 6], values -1 to 1", TCHW),
    "torch B3THW": (torch.from_numpy(UNIT.transpose(1, 0, 2, 3).copy())[None], "[1, 3, 5, 8, 6]", TCHW),
    "list of torch": (list(torch.from_numpy(UNIT)), "a list of 5 torch tensors, stacked, float32 [5, 3, 8, 6]", TCHW),
    "tuple of torch": (tuple(torch.from_numpy(THWC)), "a tuple of 5 torch tensors, stacked, uint8", TCHW),
    "PIL": (pictures(), "a list of 5 PIL images, first RGB 6x8", TCHW),
    "PIL RGBA": (tuple(pictures("RGBA")), "a tuple of 5 PIL images, first RGBA 6x8", TCHW),
    "PIL of a pipeline": ([pictures()], "a list of 5 PIL images", TCHW),
    "list of HWC": (list(THWC), "a list of 5 numpy arrays, stacked, uint8 [5, 8, 6, 3], values 0 to 255", TCHW),
    "list of CHW": (list(UNIT), "a list of 5 numpy arrays, stacked, float32 [5, 3, 8, 6], values 0 to 1", TCHW),
    "list of HW": (list(TCHW[:, 0]), "a list of 5 numpy arrays, stacked, uint8 [5, 8, 6]", GREY),
    "list of one clip": ([UNIT], "a list of 1 numpy arrays, stacked, float32 [1, 5, 3, 8, 6]", TCHW),
    "THWC": (THWC, "a numpy array, uint8 [5, 8, 6, 3], values 0 to 255", TCHW),
    "THWC of floats": (UNIT.transpose(0, 2, 3, 1), "a numpy array, float32 [5, 8, 6, 3], values 0 to 1", TCHW),
    "RGBA": (RGBA, "a numpy array, uint8 [5, 8, 6, 4]", TCHW),
    "CTHW": (TCHW.transpose(1, 0, 2, 3), "a numpy array, uint8 [3, 5, 8, 6]", TCHW),
    "THW": (TCHW[:, 0], "a numpy array, uint8 [5, 8, 6], values 0 to 255", GREY),
    "T1HW": (TCHW[:, :1], "a numpy array, uint8 [5, 1, 8, 6]", GREY),
    "THW1": (TCHW[:, 0, :, :, None], "a numpy array, uint8 [5, 8, 6, 1]", GREY),
    "BTHWC": (THWC[None], "a numpy array, uint8 [1, 5, 8, 6, 3]", TCHW),
    "int32": (TCHW.astype(np.int32), "a numpy array, int32 [5, 3, 8, 6], values 0 to 255", TCHW),
    "int32 0..1": (MASK.astype(np.int32) // 255, "a numpy array, int32 [5, 3, 8, 6], values 0 to 1", MASK),
    "int16 outside": (MASK.astype(np.int16) * 2 - 10, "int16 [5, 3, 8, 6], values -10 to 500", MASK),
    "uint16": (TCHW.astype(np.uint16) * 257, "a numpy array, uint16 [5, 3, 8, 6], values 0 to 65535", TCHW),
    "bool": (MASK > 0, "a numpy array, bool [5, 3, 8, 6], values 0 to 1", MASK),
    "float 0..255": (TCHW.astype(np.float32), "a numpy array, float32 [5, 3, 8, 6], values 0 to 255", TCHW),
    "float -1..1": (UNIT * 2 - 1, "a numpy array, float32 [5, 3, 8, 6], values -1 to 1", TCHW),
    "half -1..1": ((MASK / 127.5 - 1).astype(np.float16), "float16 [5, 3, 8, 6], values -1 to 1", MASK),
    "overshoot": (MASK / 255 * 1.04 - 0.02, "a numpy array, float64 [5, 3, 8, 6], values -0.02 to 1.02", MASK),
    "one rounding above": (ABOVE, "a numpy array, float32 [5, 3, 8, 6], values 0 to 1.00000012", TCHW),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_came_is_named_and_the_line_converts_it(name: str) -> None:
    source, what, meant = CONVERTED[name]
    message = str(refusal(source))
    said, wanted, line = message.split("; ")
    assert said.startswith("submission() got a ")
    assert what in said
    assert wanted == WANTED
    room = {"np": np, "torch": torch, "frames": source}
    exec(line.removeprefix("convert: "), room)
    assert np.array_equal(tensor_to_clip(submission(room["frames"], fps=8).payload).frames, meant)


ADVISED: dict[str, tuple[Any, str, str]] = {
    "NaN": (NAN, "1 of 720 values NaN or infinite, first at [2, 1, 0, 3]", "find the step that makes them"),
    "infinite": (np.full((1, 3, 1, 1), -np.inf), "3 of 3 values NaN or infinite", "find the step that makes them"),
    "torch NaN": (torch.from_numpy(NAN), "torch.float32 [5, 3, 8, 6], 1 of 720 values NaN", "find the step"),
    "normalised": (UNIT * 4 - 2, "values -2 to 2", "undo the normalisation"),
    "huge": (UNIT.astype(np.float64) * 1e300, "values 0 to 1e+300", "undo the normalisation"),
    "empty": (TCHW[:0], "uint8 [0, 3, 8, 6]", "give at least one frame"),
    "empty floats": (UNIT[..., :0], "float32 [5, 3, 8, 0]", "give at least one frame"),
    "empty torch": (torch.zeros(0, 3, 8, 6), "torch.float32 [0, 3, 8, 6]", "give at least one frame"),
    "empty list": ([], "a list of 0", "give at least one frame"),
    "one picture": (THWC[0], "uint8 [8, 6, 3]", "bring the frames of one clip to [T,3,H,W]"),
    "one PIL image": (pictures()[0], "one PIL image, RGB 6x8", "give the list of its images"),
    "latents": (np.zeros((5, 4, 8, 6), np.float32), "float32 [5, 4, 8, 6]", "bring the frames of one clip to"),
    "no number": (np.zeros(()), "float64 []", "bring the frames of one clip to [T,3,H,W]"),
    "complex": (UNIT.astype(np.complex64), "complex64 [5, 3, 8, 6]", "make them uint8 or float"),
    "text": (np.full((1, 3, 2, 2), "a"), "<U1 [1, 3, 2, 2]", "make them uint8 or float"),
    "two clips": (np.stack([TCHW] * 2), "[2, 5, 3, 8, 6]", "[submission(clip, fps=fps) for clip in frames]"),
    "two pipelines": ([pictures()] * 2, "a list of 2, first a list", "[submission(clip, fps=fps) for clip in frames]"),
    "files": (["a.mp4", "b.mp4"], "a list of 2, first a str", "[submission(file) for file in frames]"),
    "paths": ([Path("a.mp4")], "a list of 1, first a pathlib.PosixPath", "[submission(file) for file in frames]"),
    "mixed": ([THWC[0], None], "a list of 2, first a numpy.ndarray", "give frames of one kind"),
    "arrays of two shapes": (
        [THWC[0], THWC[0, :4]],
        "of 2 shapes, [4, 6, 3] and [8, 6, 3]",
        "resize them to one shape",
    ),
    "pictures of two sizes": ([*pictures(), Image.new("RGB", (9, 9))], "PIL images of 2 sizes", "resize them to one"),
    "bytearray": (bytearray(b"abc"), "a bytearray of 3 bytes", "convert: source = bytes(source)"),
    "none": (None, "an object of type NoneType", "give one of these"),
    "number": (7, "an object of type int", "give one of these"),
}


@pytest.mark.parametrize("name", ADVISED)
def test_what_no_line_converts_is_named_with_the_next_step(name: str) -> None:
    source, what, step = ADVISED[name]
    said, wanted, next_step = str(refusal(source)).split("; ", 2)
    assert what in said
    assert wanted == WANTED
    assert step in next_step


def test_another_library_s_array_is_converted_by_numpy() -> None:
    class Array:
        def __array__(self) -> NDArray[np.uint8]:
            return TCHW

    assert "convert: frames = np.asarray(frames)" in str(refusal(Array()))


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (THWC, "bad_frames"),
        (TCHW.astype(np.int32), "bad_frames"),
        (TCHW[:0], "bad_frames"),
        (torch.from_numpy(NAN), "bad_frames"),
        (NAN, "bad_tensor"),
        (UNIT * 2, "bad_tensor"),
        (ABOVE, "bad_tensor"),
    ],
)
def test_codes_are_the_contract_s(source: Any, code: str) -> None:
    assert refusal(source).code == code


@pytest.mark.parametrize("frames", [TCHW, UNIT])
@pytest.mark.parametrize("fps", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_frames_need_a_lawful_rate(frames: NDArray[Any], fps: float | None) -> None:
    assert refusal(frames, fps=fps).code == "bad_fps"


def test_floats_that_round_to_0_and_1_in_float32_are_accepted() -> None:
    frames = UNIT.astype(np.float64)
    frames[TCHW == 255] += 1e-9
    frames[TCHW == 0] -= 1e-60
    assert np.array_equal(tensor_to_clip(submission(frames, fps=8).payload).frames, TCHW)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_of_nothing_is_told_with_where_it_was_looked_for(kind: type) -> None:
    with pytest.raises(FileNotFoundError, match=r"seen from .*: 'clips/none\.mp4'") as told:
        submission(kind("clips/none.mp4"))
    assert told.value.filename == "clips/none.mp4"
    assert f"seen from {Path.cwd()}; give the path of a video" in str(told.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_told_with_the_line_that_takes_its_files(kind: type, tmp_path: Path) -> None:
    match = r"A folder.*\[submission\(file\) for file in Path\(folder\).iterdir\(\)\]"
    with pytest.raises(IsADirectoryError, match=match) as told:
        submission(kind(tmp_path))
    assert told.value.filename == str(tmp_path)


def test_it_needs_no_transport_and_no_library_of_the_caller_s() -> None:
    heavy = ("grpc", "httpx", "torch", "PIL")
    code = f"import sys, protos.submissions; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert exported is submission


def test_a_tensor_clip_is_known_by_its_bytes(tmp_path: Path) -> None:
    tensor = submission(TCHW, fps=8).payload
    (tmp_path / "clip.bin").write_bytes(tensor)
    (tmp_path / "clip.safetensors").write_bytes(b"damaged")
    assert submission(tmp_path / "clip.bin").media is Media.TENSOR
    assert submission(tensor).media is Media.TENSOR
    assert submission(b"\0\0\0\x18ftypisom").media is Media.CONTAINER
    assert submission(tmp_path / "clip.safetensors").media is Media.TENSOR
