"""Tests that the reader gives the frames of odd files as a player shows them: order, times and geometry."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protos.reader import (
    ClipTooLarge,
    Picture,
    ReaderError,
    Source,
    UnreadableClip,
    decoding,
    open_source,
    with_true_times,
)
from protos.reader.files import clip_files
from protos.reader.guard import Guard
from protos.reader.pixels import over_black, picture
from protos.reader.scenes import SMALL, averaged
from protos.reader.tones import HLG, PQ, mapped
from tests import media, odd_files
from tests.odd_files import GOOD, LOSSLESS
from tests.paff import field_coded

FRAMES = media.texture(24, step=4)
STILL = np.repeat(media.texture(1, seed=9), 24, axis=0)


def read(payload: bytes, **options: Any) -> tuple[Source, NDArray[np.uint8]]:
    """The file and its frames [T,H,W,3] of all stretches that have the first stretch's size."""
    with open_source(payload, **options) as opened:
        return with_true_times(opened, _all)


def _all(source: Source) -> tuple[Source, NDArray[np.uint8]]:
    size = source.stretches[0].height_px, source.stretches[0].width_px
    same = [one for one in source.stretches if (one.height_px, one.width_px) == size]
    wanted = [index for one in same for index in range(one.first, one.last)]
    return source, np.stack([frame for _, frame in source.frames(wanted)])


def which(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> list[int]:
    """The position of the most similar reference frame, for each frame."""
    distances = [[np.abs(frame.astype(int) - other).mean() for other in reference] for frame in frames]
    return [int(np.argmin(row)) for row in distances]


def codes(source: Source) -> list[str]:
    return [warning.code for warning in source.warnings]


# --- order and count ---


def test_an_avi_with_b_frames_is_in_display_order() -> None:
    payload = odd_files.b_frames_in_avi(FRAMES)
    source, frames = read(payload)
    assert which(frames, FRAMES) == list(range(24))
    assert np.diff(source.times_s) == pytest.approx(1 / 12)


@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
def test_two_fields_are_one_frame(container: str) -> None:
    luma = np.repeat(np.repeat(np.arange(24, dtype=np.uint8)[:, None, None] * 8 + 20, 64, axis=1), 64, axis=2)
    source, frames = read(field_coded(luma, container))
    assert source.fps == pytest.approx(30, rel=0.02)
    assert source.times_s.size == 24
    levels = frames.mean(axis=(1, 2, 3))
    assert np.all(np.diff(levels) > 4)


def test_hidden_frames_are_not_shown() -> None:
    payload = odd_files.hidden_vp9(FRAMES)
    with av.open(io.BytesIO(payload)) as container:
        packets = sum(bool(packet.size) for packet in container.demux(video=0))
    assert packets > 24, "this libvpx hides no frame"
    source, frames = read(payload)
    assert source.times_s.size == 24
    assert source.fps == pytest.approx(12, rel=0.01)
    assert which(frames, FRAMES) == list(range(24))


# --- time ---


def test_a_clock_that_restarts_ends_a_stretch() -> None:
    source, frames = read(odd_files.concatenated_ts(FRAMES))
    assert [(one.first, one.last) for one in source.stretches] == [(0, 12), (12, 24)]
    assert which(frames, FRAMES) == list(range(24))
    assert np.diff(source.times_s) == pytest.approx(1 / 12)


def test_a_gap_of_over_a_second_ends_a_stretch() -> None:
    source, _ = read(odd_files.with_gap(FRAMES, after=10, gap_ms=2000))
    assert [(one.first, one.last) for one in source.stretches] == [(0, 10), (10, 24)]
    held, _ = read(odd_files.with_gap(FRAMES, after=10, gap_ms=500))
    assert len(held.stretches) == 1


def test_the_first_of_frames_with_one_time_is_shown() -> None:
    """Regression: the trainer divided by the median gap, which was 0."""
    source, frames = read(odd_files.in_threes(FRAMES))
    assert which(frames, FRAMES) == list(range(0, 24, 3))
    assert codes(source) == ["repeated_times"]
    assert source.warnings[0].share == pytest.approx(2 / 3)


@pytest.mark.parametrize("delay_ms", [0, 10, 20, 50])
def test_a_gif_shows_its_frames_as_long_as_a_browser_does(delay_ms: int) -> None:
    source, frames = read(odd_files.gif_of(FRAMES, delay_ms))
    assert len(frames) == 24
    assert source.fps == pytest.approx(1000 / (100 if delay_ms < 20 else delay_ms), rel=0.01)
    assert codes(source) == (["quick_frames"] if delay_ms == 10 else [])


def test_frames_cut_off_by_an_edit_list_are_not_read() -> None:
    ticks = list(range(-400, 800, 50))
    payload = media.video(FRAMES, ticks=ticks, container="mov", codec="qtrle", pix_fmt="rgb24")
    source, frames = read(payload)
    assert which(frames, FRAMES) == list(range(8, 24))
    assert source.fps == pytest.approx(20)


# --- geometry ---


def upright() -> bytes:
    return media.video(FRAMES, fps=12, codec_options=GOOD)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        (odd_files.TURNED, lambda frame: np.rot90(frame, -1)),
        (odd_files.MIRRORED, lambda frame: frame[:, ::-1]),
        ((-1, 0, 0, -1), lambda frame: frame[::-1, ::-1]),
    ],
)
def test_a_turned_or_mirrored_clip_is_upright(
    matrix: tuple[int, int, int, int], turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    _, plain = read(upright())
    source, frames = read(media.with_display_matrix(upright(), matrix))
    assert np.array_equal(frames[3], turn(plain[3]))
    assert (source.height_px, source.width_px) == frames.shape[1:3]


def test_wide_pixels_are_stretched() -> None:
    source, frames = read(media.video(FRAMES, fps=12, pixel_aspect=Fraction(3, 2), codec_options=GOOD))
    assert (source.height_px, source.width_px) == frames.shape[1:3] == (64, 144)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_what_is_transparent_is_black(kind: str) -> None:
    rgba = odd_files.see_through(FRAMES)
    payload = media.webp(rgba) if kind == "webp" else odd_files.gif_of(rgba, 100)
    _, frames = read(payload)
    assert frames[5][:, :40].max() == 0
    assert frames[5][:, 56:].max() > 100


def with_frame_flags(webp: bytes, flags: int) -> bytes:
    """The animation with other flags on all its frames: 1 clears a frame's place afterwards, 2 does not blend it."""
    data, at = bytearray(webp), 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"ANMF":
            data[at + 8 + 15] = flags
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    return bytes(data)


@pytest.mark.parametrize("form", ["bgra", "rgba"])
def test_packed_frames_are_read_as_conversion_gives_them(form: str) -> None:
    """They are used without a copy. Rows of 95 pixels have bytes after their end."""
    rgba = np.random.default_rng(0).integers(0, 256, (63, 95, 4), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=form)
    assert np.array_equal(picture(frame, 1.0, (1, 0, 0, 1)).rgb(), over_black(rgba))
    assert frame.planes[0].line_size > 4 * 95


@pytest.mark.parametrize("flags", range(4))
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_s_frames_are_put_together_as_pillow_does(flags: int, lossless: bool) -> None:
    """Small frames on a larger canvas, half transparent: the reader gives Pillow one frame at a time."""
    pictures = np.full((12, 48, 64, 4), 255, np.uint8)
    pictures[..., :3] = media.texture(1, 48, 64)[0]
    for at, canvas in enumerate(pictures):
        canvas[10:30, 3 * at : 3 * at + 20] = (200, 10 * at, 50, 128 + 8 * at)
    images, buffer = [Image.fromarray(canvas) for canvas in pictures], io.BytesIO()
    options = {"duration": 80, "lossless": lossless, "minimize_size": True, "exact": True, "quality": 80}
    images[0].save(buffer, "WEBP", save_all=True, append_images=images[1:], **options)
    payload = with_frame_flags(buffer.getvalue(), flags)
    _, frames = read(payload)
    with Image.open(io.BytesIO(payload)) as whole:
        for at, frame in enumerate(frames):
            whole.seek(at)
            expected = over_black(np.asarray(whole.convert("RGBA")))
            assert np.abs(frame.astype(int) - expected).max() <= 2, at


MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # shares of red and blue (ITU-T H.273)
COLOURS = np.array([[200, 60, 30], [30, 200, 60], [60, 30, 200], [250, 240, 10], [0, 0, 0], [255, 255, 255]]) / 255


def in_yuv(matrix: int, *, full: bool, bits: int = 8, curve: int = 2) -> bytes:
    """Lossless frames of COLOURS, in stripes of 16 pixels, converted to Y'CbCr by the formula of their matrix."""
    red, blue = MATRICES.get(matrix, MATRICES[9])
    luma = COLOURS @ (red, 1 - red - blue, blue)
    parts = [luma, (COLOURS[:, 2] - luma) / (1 - blue) / 2 + 0.5, (COLOURS[:, 0] - luma) / (1 - red) / 2 + 0.5]
    unit = 2 ** (bits - 8)
    spans = (
        [(0, 2**bits - 1)] * 3 if full else [(16 * unit, 219 * unit), (16 * unit, 224 * unit), (16 * unit, 224 * unit)]
    )
    kind, form = (np.uint8, "yuv444p") if bits == 8 else (np.uint16, "yuv444p10le")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=12)
        stream.height, stream.width, stream.pix_fmt = 16, 96, form
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc = matrix, 2 if full else 1, curve
        for _ in range(8):
            frame = av.VideoFrame(96, 16, form)
            for plane, values, (low, span) in zip(frame.planes, parts, spans, strict=True):
                row = np.repeat(np.rint(low + span * values), 16).astype(kind)
                plane.update(np.repeat(row[None], 16, axis=0).tobytes())
            frame.colorspace, frame.color_range, frame.color_trc = matrix, 2 if full else 1, curve
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_are_those_of_the_declared_matrix_by_its_formula(matrix: int, full: bool, bits: int) -> None:
    _, frames = read(in_yuv(matrix, full=full, bits=bits))
    assert np.abs(frames[3, 8, 8::16] - 255 * COLOURS).max() <= 2


@pytest.mark.parametrize("curve", [PQ, HLG])
def test_hdr_colours_are_those_of_bt_2020_before_they_are_mapped(curve: int) -> None:
    _, frames = read(in_yuv(9, full=False, bits=10, curve=curve))
    expected = mapped(np.rint(65535 * COLOURS)[None].astype(np.uint16), curve)[0]
    assert np.abs(frames[3, 8, 8::16].astype(int) - expected).max() <= 4


@pytest.mark.parametrize("matrix", [8, 10, 14])  # YCgCo, BT.2020 of constant luminance, ICtCp
def test_a_matrix_that_cannot_be_converted_is_refused_by_name(matrix: int) -> None:
    with pytest.raises(UnreadableClip, match=f"colour matrix {matrix} cannot be converted"):
        read(in_yuv(matrix, full=False))


def hdr(curve: str, levels: list[int]) -> bytes:
    """Flat 10-bit grey frames, one for each level 0..255, on an HDR curve."""
    frames = np.repeat(np.array(levels, np.uint8), 64 * 96 * 3).reshape(-1, 64, 96, 3)
    told = f"log-level=none:qp=0:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc:range=limited"
    options = {"codec": "libx265", "pix_fmt": "yuv420p10le", "codec_options": {"x265-params": told}}
    return media.video(frames, fps=12, **options)


@pytest.mark.parametrize(
    ("curve", "expected"),
    # paper white (203 cd/m2) is 58 % of PQ and 75 % of HLG; black stays black; 1000 cd/m2 is the brightest value
    [("smpte2084", {0: 0, 148: 190, 192: 255}), ("arib-std-b67", {0: 0, 191: 190, 255: 255})],
)
def test_hdr_is_mapped_to_standard_dynamic_range(curve: str, expected: dict[int, int]) -> None:
    _, frames = read(hdr(curve, list(expected)))
    assert frames.mean(axis=(1, 2, 3)) == pytest.approx(list(expected.values()), abs=4)


@pytest.mark.parametrize("size", [(320, 576), (720, 1280), (426, 240), (63, 95), (576, 1024)])
def test_frames_are_compared_by_the_mean_of_their_cells(size: tuple[int, int]) -> None:
    luma = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8), (0, 0), 3)
    means = cv2.resize(luma.astype(np.float32), SMALL, interpolation=cv2.INTER_AREA)
    assert np.abs(averaged(luma) - means).max() <= 1.5


def test_interlaced_frames_show_no_combs() -> None:
    frames = np.full((24, 64, 96, 3), 40, np.uint8)
    for at in range(24):
        frames[at, 0::2, 2 * at : 2 * at + 30] = 220
        frames[at, 1::2, 2 * at + 8 : 2 * at + 38] = 220
    options = {"codec": "mpeg2video", "container": "mpeg", "codec_options": {"flags": "+ildct+ilme", "b": "6M"}}
    payload = media.video(frames, fps=24, **options)
    _, found = read(payload)
    assert np.abs(np.diff(frames[9].astype(int), axis=0)).mean() > 20
    assert np.abs(np.diff(found[9].astype(int), axis=0)).mean() < 8


def test_a_changed_size_ends_a_stretch_and_the_rest_is_used() -> None:
    """Regression: pretraining ended with a ValueError that named no file."""
    source, frames = read(odd_files.two_sizes(FRAMES))
    sizes = [(one.first, one.last, one.height_px, one.width_px) for one in source.stretches]
    assert sizes == [(0, 12, 64, 96), (12, 24, 96, 64)]
    assert which(frames, FRAMES) == list(range(12))


# --- tracks ---


def test_the_default_track_is_read_unless_another_is_chosen() -> None:
    payload = odd_files.two_tracks(STILL, FRAMES)
    source, frames = read(payload)
    assert np.array_equal(frames, FRAMES)
    assert codes(source) == ["several_tracks"]
    assert "track 1 is read" in source.warnings[0].message
    assert [track.default for track in source.tracks] == [False, True]
    assert np.array_equal(read(payload, track=0)[1], STILL)
    with pytest.raises(UnreadableClip, match="track=2 does not exist: the file has 2 video"):
        read(payload, track=2)


def test_a_track_with_one_picture_is_not_chosen() -> None:
    assert np.array_equal(read(odd_files.with_cover(FRAMES))[1], FRAMES)


# --- decoding on request ---


class Counted:
    """Counts the pictures that are decoded."""

    pictures = 0

    def __call__(self, time_s: float, picture: Picture, follows: bool) -> None:
        self.pictures += 1


def test_a_window_equals_the_same_frames_of_a_full_decode() -> None:
    frames = media.texture(96, step=3)
    for options in (
        {"codec_options": {**GOOD, "g": "12", "bf": "2"}},
        {"codec_options": {**GOOD, "g": "12", "bf": "2", "x264-params": "open-gop=1"}},
        {"container": "webm", "codec": "libvpx-vp9", "codec_options": {"g": "12", "crf": "20", "deadline": "realtime"}},
        {"container": "matroska", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
        {"container": "mpegts", "codec_options": {**GOOD, "g": "12"}},
        LOSSLESS,
    ):
        payload = media.video(frames, fps=24, **options)
        _, whole = read(payload)
        assert len(whole) == 96
        with open_source(payload) as source:
            decoded = 0
            for wanted in ([50, 51, 57], [3, 90], list(range(20, 40)), [95]):
                for index, frame in source.frames(wanted, watch=(seen := Counted())):
                    assert np.array_equal(frame, whole[index]), (options, index)
                decoded += seen.pictures
        assert decoded < 96 + 48 or options.get("container") == "mpegts", options


def test_a_short_file_is_decoded_once_and_no_frame_is_held_while_the_next_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: the first frames were decoded twice, and at 4K two frames of up to 66 MB were held."""
    made: list[av.VideoFrame] = []
    held: list[int] = []
    picture, decoded = decoding.picture, decoding.Decoding._decoded

    def recorded(frame: av.VideoFrame, *arguments: Any) -> Picture:
        made.append(frame)
        return picture(frame, *arguments)

    def watched(self: decoding.Decoding, *arguments: Any) -> Iterator[av.VideoFrame]:
        # Others than two lists, `one` and the argument. The first frame is held by its side data, which is read once.
        held.append(sum(sys.getrefcount(one) > 4 for one in made[1:]))
        yield from decoded(self, *arguments)

    monkeypatch.setattr(decoding, "picture", recorded)
    monkeypatch.setattr(decoding.Decoding, "_decoded", watched)
    _, frames = read(upright())
    assert which(frames, FRAMES) == list(range(24))
    assert len(made) == 24
    assert not any(held)


def test_more_threads_give_the_same_frames() -> None:
    for payload in (upright(), odd_files.b_frames_in_avi(FRAMES), odd_files.concatenated_ts(FRAMES)):
        assert np.array_equal(read(payload, threads=4)[1], read(payload)[1])


def test_the_number_of_threads_comes_from_the_environment_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = media.video(FRAMES, fps=12)
    given: list[int] = []
    monkeypatch.setattr(
        "protos.reader.source.Guard", lambda **values: given.append(values["threads"]) or Guard(**values)
    )
    read(payload)
    monkeypatch.setenv("MOTION_REWARD_DECODER_THREADS", "3")
    read(payload)
    read(payload, threads=2)
    assert given == [1, 3, 2]
    monkeypatch.setenv("MOTION_REWARD_DECODER_THREADS", "many")
    with pytest.raises(ValueError, match="MOTION_REWARD_DECODER_THREADS='many' must be a whole number from 1 to 64"):
        read(payload)


def test_a_path_and_its_bytes_give_the_same_frames(tmp_path) -> None:
    path, payload = tmp_path / "clip.txt", upright()  # made once: an encoder's threads can change a few pixels
    path.write_bytes(payload)
    with open_source(path) as source:
        assert np.array_equal(np.stack([frame for _, frame in source.frames(range(24))]), read(payload)[1])


def test_limits_hold_before_anything_is_decoded() -> None:
    for name, limit in (("max_frames", 23), ("max_duration_s", 1.0), ("max_frame_pixels", 6143), ("max_bytes", 100)):
        limits = dataclasses.replace(media.LIMITS, **{name: limit})
        with pytest.raises(ClipTooLarge, match=name):
            read(upright(), limits=limits)


def test_every_error_has_its_code() -> None:
    found = {kind.__name__: kind.code for kind in ReaderError.__subclasses__()}
    assert found == {
        "EmptyPayload": "empty_payload",
        "ClipTooLarge": "clip_too_large",
        "ClipTooShort": "clip_too_short",
        "UnreadableClip": "unreadable_clip",
        "DecodeTooSlow": "decode_too_slow",
        "BadTensor": "bad_tensor",
    }


def test_the_client_needs_no_reader() -> None:
    code = "import sys, protos.client; print({'av', 'cv2', 'PIL', 'protos.reader'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# --- formats ---


def test_clip_files_are_recognised_by_their_bytes(tmp_path) -> None:
    stream = media.video(FRAMES, fps=12, container="mpegts", codec_options=GOOD)
    m2ts = b"".join(bytes(4) + stream[at : at + 188] for at in range(0, len(stream), 188))
    files = {"a.ts": stream, "b.m2ts": m2ts, "c": upright(), "script.ts": b"export const a = 1;" * 99, "notes.txt": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert [path.name for path in clip_files(tmp_path)] == ["a.ts", "b.m2ts", "broken.mp4", "c", "script.ts"]
    for name in ("a.ts", "b.m2ts", "c"):
        assert which(read((tmp_path / name).read_bytes())[1], FRAMES) == list(range(24))


def test_a_transport_stream_can_begin_within_a_packet() -> None:
    stream = media.video(FRAMES, fps=12, container="mpegts", codec_options=GOOD)
    assert which(read(bytes(range(100)) + stream)[1], FRAMES) == list(range(24))


# --- numbers of packets and of frames ---


@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
def test_packets_do_not_count_as_frames(container: str) -> None:
    """Regression: of field-coded H.264, two packets a frame, half of the allowed frames were refused."""
    luma = np.full((24, 32, 64), 100, np.uint8)
    payload = field_coded(luma, container)
    source, _ = read(payload, limits=dataclasses.replace(media.LIMITS, max_frames=24))
    assert source.times_s.size == 24
    with pytest.raises(ClipTooLarge, match=r"4\d packets of video, over the limit of 46 for 23 frames"):
        read(payload, limits=dataclasses.replace(media.LIMITS, max_frames=23))


@pytest.mark.parametrize("container", ["mpeg", "matroska"])
def test_frames_whose_fields_share_a_packet_are_counted_as_they_are_decoded(container: str) -> None:
    options = {"codec": "mpeg2video", "codec_options": {"flags": "+ildct+ilme", "g": "6"}}
    payload = media.video(FRAMES, fps=24, container=container, **options)
    assert read(payload, limits=dataclasses.replace(media.LIMITS, max_frames=24))[0].times_s.size == 24
    with (
        pytest.raises(ClipTooLarge, match="23 frames, over the limit of 22"),
        open_source(payload, dataclasses.replace(media.LIMITS, max_frames=22)) as source,
    ):
        with_true_times(source, lambda source: list(source.frames([0])))


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4", "ffv1"])
def test_of_other_files_no_frame_more_is_read_than_the_limit_allows(codec: str) -> None:
    """Whether a packet is a frame is known at once or, of codecs with fields, after the first frame."""
    payload = media.video(FRAMES, fps=24, container="matroska", codec=codec, codec_options={})
    assert read(payload, limits=dataclasses.replace(media.LIMITS, max_frames=24))[0].times_s.size == 24
    with (
        pytest.raises(ClipTooLarge, match="24 frames, over the limit of 23"),
        open_source(payload, dataclasses.replace(media.LIMITS, max_frames=23)),
    ):
        pass


def test_the_tracks_that_are_not_read_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = odd_files.two_tracks(np.repeat(STILL, 3, axis=0), FRAMES)
    limits = dataclasses.replace(media.LIMITS, max_frames=24)
    assert np.array_equal(read(payload, limits=limits)[1], FRAMES)
    with pytest.raises(ClipTooLarge, match="72 packets of video, over the limit of 48 for 24 frames; cut the clip"):
        read(payload, limits=limits, track=0)
    monkeypatch.setattr("protos.reader.guard.MAX_OTHER_PACKETS", 40)
    with pytest.raises(ClipTooLarge, match="89 packets of video, over the limit of 88 for 24 frames and other tracks"):
        read(payload, limits=limits)


# --- counts claimed by an index ---


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (odd_files.claiming(25_000_000), "25000000 packets of video, over the limit of 200600 for 300 frames"),
        (odd_files.claiming(10, edits=100_000), "edit list has 100000 entries, over the limit of 100"),
        (odd_files.claiming(25_000_000, handler=b"soun"), "25000000 samples beside its video"),
    ],
)
def test_an_index_over_the_limits_is_refused_before_it_is_built(payload: bytes, words: str) -> None:
    """Regression: ffmpeg used gigabytes for tables of frames that a file of 1.5 kB merely claimed to have."""
    with pytest.raises(ClipTooLarge, match=words):
        read(payload, limits=media.LIMITS)
