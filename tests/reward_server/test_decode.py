"""Tests decoding: equal pixels from every lossless format, the right frames at the right times, upright."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from protos.codec import frames_to_tensor
from protos.types import Media
from reward_server.decoding.decode import Sampling, decode
from tests import media

# With this area a 64x96 clip keeps its size, so that pixels can be compared one by one.
SAME_SIZE = Sampling(area_px=64 * 96)
LOSSLESS = {"container": "matroska", "codec": "ffv1", "pix_fmt": "bgr0"}


def run(payload, kind=Media.CONTAINER, sampling=SAME_SIZE, limits=media.LIMITS):
    return decode(media.submission(payload, kind), sampling, limits, 60.0)


def frames_of(payload, sampling=SAME_SIZE):
    """All frames of the first window as uint8 [T,H,W,3]."""
    return run(payload, sampling=sampling).windows[0].clip.frames.transpose(0, 2, 3, 1)


def shown(payload, sampling=SAME_SIZE, kind=Media.CONTAINER):
    """Which frames of media.numbered are in each window."""
    return [media.numbers(window.clip.frames) for window in run(payload, kind, sampling).windows]


def error(frames, reference):
    return np.abs(frames.astype(int) - reference.astype(int)).mean()


# --- pixels ---


def test_a_clip_with_a_title_that_is_not_utf_8_is_read():
    named = media.video(media.texture(16), fps=12, **LOSSLESS)
    assert b"Lavf" in named  # the muxer's name, in the file's metadata
    mangled = named.replace(b"Lavf", b"\xff\xfe\xe9\xff")
    np.testing.assert_array_equal(frames_of(mangled), frames_of(named))


def test_every_lossless_format_gives_the_same_pixels():
    frames = media.texture(16)
    truth = run(media.tensor(frames, 10.0), Media.TENSOR).windows[0].clip
    assert np.array_equal(truth.frames.transpose(0, 2, 3, 1), frames)
    roads = [
        media.video(frames, fps=10, **LOSSLESS),
        media.video(frames, fps=10, container="avi", codec="rawvideo", pix_fmt="bgr24"),
        media.video(frames, fps=10, container="mov", codec="qtrle", pix_fmt="rgb24"),
        media.webp(frames),
    ]
    for road in roads:
        assert np.array_equal(run(road).windows[0].clip.frames, truth.frames)


def test_float_tensors_give_the_pixels_they_were_made_of():
    frames = media.texture(16).transpose(0, 3, 1, 2)
    for dtype in (np.float16, np.float32):
        payload = frames_to_tensor((frames / 255).astype(dtype), 10.0)
        assert np.array_equal(run(payload, Media.TENSOR).windows[0].clip.frames, frames)


def test_a_tensor_and_a_container_are_resized_alike():
    frames = media.texture(16, 90, 160)
    tensor = run(media.tensor(frames, 10.0), Media.TENSOR, Sampling())
    container = run(media.video(frames, fps=10, **LOSSLESS), sampling=Sampling())
    assert tensor.windows[0].clip.frames.shape == (16, 3, 144, 256)
    assert np.array_equal(tensor.windows[0].clip.frames, container.windows[0].clip.frames)
    assert tensor.source.codec == "safetensors"
    assert container.source.codec == "ffv1"


GOOD = {"crf": "10"}
CODECS = {
    "mp4 h264": {"codec_options": GOOD},
    "mp4 h264 10 bit": {"pix_fmt": "yuv420p10le", "codec_options": GOOD},
    "mp4 h264 444": {"pix_fmt": "yuv444p", "codec_options": GOOD},
    "mp4 hevc": {"codec": "libx265", "codec_options": {"x265-params": "log-level=none:crf=10"}},
    "mp4 fragmented": {"options": {"movflags": "frag_keyframe+empty_moov"}, "codec_options": GOOD},
    "mov prores": {"container": "mov", "codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "webm vp9": {"container": "webm", "codec": "libvpx-vp9", "codec_options": GOOD},
    "webm vp8": {"container": "webm", "codec": "libvpx", "codec_options": {"crf": "4", "b": "4M"}},
    "mkv h264": {"container": "matroska", "codec_options": GOOD},
    "avi mpeg4": {"container": "avi", "codec": "mpeg4", "codec_options": {"bf": "2", "q": "2", "flags": "+qscale"}},
    "avi h264": {"container": "avi", "codec_options": GOOD},
    "avi mjpeg": {"container": "avi", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpg mpeg2": {"container": "mpeg", "codec": "mpeg2video", "codec_options": {"b": "4M"}},
    "ts h264": {"container": "mpegts", "codec_options": GOOD},
    "with sound": {"with_audio": True, "codec_options": GOOD},
}


@pytest.mark.parametrize("name", CODECS)
def test_every_container_and_codec_gives_all_frames_in_order(name):
    frames = media.texture(24, step=3)
    decoded = run(media.video(frames, fps=14 if "mpg" not in name else 24, **CODECS[name]))
    stride = 1 if "mpg" not in name else 2
    picked = decoded.windows[0].clip.frames.transpose(0, 2, 3, 1)
    for index, frame in enumerate(picked):
        errors = [error(frame, candidate) for candidate in frames]
        assert int(np.argmin(errors)) == stride * index
        assert min(errors) < 12  # the next frame is over 20 away
    assert decoded.source.frames in ((24,) if "mpg" not in name else (23, 24, 25))
    assert (decoded.source.height_px, decoded.source.width_px) == (64, 96)


def test_gif_gives_its_frames():
    frames = media.numbered(12, 64, 96)
    decoded = run(media.gif(frames[..., :1], fps=10))
    assert media.numbers(decoded.windows[0].clip.frames) == list(range(12))
    assert decoded.source.codec == "gif"
    assert decoded.source.duration_s == pytest.approx(1.2)


def test_gray_stays_gray():
    levels = np.broadcast_to(np.arange(96, dtype=np.uint8)[:, None] * 2, (96, 64)).T[None, ..., None]
    frames = np.repeat(levels, 10, axis=0)
    decoded = frames_of(media.video(frames, fps=10, container="matroska", codec="ffv1", pix_fmt="gray"))
    assert np.array_equal(decoded, np.repeat(frames, 3, axis=-1))


@pytest.mark.parametrize("road", ["webp", "ffv1", "qtrle", "vp9"])
def test_transparency_is_shown_over_black(road):
    rgba = np.full((10, 64, 96, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[:, :, 32:64, 3] = 0
    rgba[:, :, 64:, 3] = 128
    rgba[:, 0, 0, 0] = range(10)  # so that the encoder does not merge equal frames
    payload = {
        "webp": lambda: media.webp(rgba),
        "ffv1": lambda: media.video(rgba, fps=10, container="matroska", codec="ffv1", pix_fmt="bgra"),
        "qtrle": lambda: media.video(rgba, fps=10, container="mov", codec="qtrle", pix_fmt="argb"),
        "vp9": lambda: media.video(
            rgba, fps=10, container="webm", codec="libvpx-vp9", pix_fmt="yuva420p", codec_options={"crf": "0"}
        ),
    }[road]()
    columns = frames_of(payload)[:, :, [16, 48, 80]]
    expected = np.array([200, 0, 100])[None, None, :, None]
    assert np.abs(columns - expected).max() <= (3 if road == "vp9" else 0)


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("colour_range", [1, 2])
def test_declared_colour_matrix_and_range_are_undone(matrix, colour_range):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 240, 10], [0, 0, 0], [255, 255, 255]], np.uint8)
    frames = np.broadcast_to(np.repeat(colours, 16, axis=0)[None, None], (10, 64, 96, 3)).copy()
    payload = media.video(frames, fps=10, pix_fmt="yuv444p", codec_options={"qp": "0"}, colour=(matrix, colour_range))
    assert np.abs(frames_of(payload).astype(int) - frames).max() <= 3


@pytest.mark.parametrize(("height", "width"), [(63, 95), (17, 31), (1, 7), (200, 20)])
def test_odd_sizes(height, width):
    frames = media.numbered(10, height, width)
    for payload in (media.video(frames, fps=10, container="webm", codec="libvpx-vp9"), media.webp(frames)):
        decoded = run(payload)
        assert (decoded.source.height_px, decoded.source.width_px) == (height, width)
        levels = decoded.windows[0].clip.frames.astype(int)
        assert np.abs(levels - 2 * np.arange(10)[:, None, None, None]).max() <= 2


# --- upright, as displayed ---

TURNS = {
    "upright": ((1, 0, 0, 1), 0, lambda image: image),
    "clockwise": ((0, 1, -1, 0), 90, lambda image: np.rot90(image, -1)),
    "upside down": ((-1, 0, 0, -1), 180, lambda image: np.rot90(image, 2)),
    "anticlockwise": ((0, -1, 1, 0), 270, np.rot90),
    "mirrored": ((-1, 0, 0, 1), 0, lambda image: image[:, ::-1]),
    "flipped": ((1, 0, 0, -1), 180, lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), 270, lambda image: image.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), 90, lambda image: np.rot90(image, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", TURNS)
def test_rotated_and_mirrored_clips_are_read_as_displayed(name):
    matrix, degrees, turn = TURNS[name]
    mp4 = media.video(media.texture(10), fps=10, codec_options=GOOD)
    upright = frames_of(mp4)
    decoded = run(media.with_display_matrix(mp4, matrix))
    assert np.array_equal(decoded.windows[0].clip.frames[3].transpose(1, 2, 0), turn(upright[3]))
    assert (decoded.source.height_px, decoded.source.width_px) == turn(upright[3]).shape[:2]
    assert decoded.source.rotation_deg == degrees


def test_pixels_that_are_not_square_give_the_displayed_size():
    payload = media.video(media.texture(10, 64, 48), fps=10, pixel_aspect=Fraction(2))
    decoded = run(payload)
    assert (decoded.source.height_px, decoded.source.width_px) == (64, 96)
    assert decoded.windows[0].clip.frames.shape == (10, 3, 64, 96)


# --- the right frames at the right times ---


@pytest.mark.parametrize(("fps", "stride", "used"), [(10, 1, 10), (14, 1, 14), (24, 2, 12), (30, 2, 15), (60, 5, 12)])
def test_a_constant_rate_is_thinned_evenly(fps, stride, used):
    frames = media.numbered(100)
    for payload in (
        media.video(frames, fps=fps, **LOSSLESS),
        media.video(frames, fps=fps, container="avi", codec="ffv1", pix_fmt="bgr0"),
    ):
        decoded = run(payload)
        assert decoded.fps_used == pytest.approx(used, rel=1e-3)
        assert decoded.source.fps == pytest.approx(fps, rel=1e-3)
        assert decoded.source.frames == 100
        assert decoded.source.duration_s == pytest.approx(100 / fps, rel=1e-3)
        assert [np.diff(window).tolist() for window in shown(payload)] == [[stride] * 15] * len(decoded.windows)
    assert shown(media.tensor(frames, fps), kind=Media.TENSOR) == shown(payload)


def test_windows_have_their_start_times():
    decoded = run(media.video(media.numbered(100), fps=10, **LOSSLESS))
    starts = [0, 28, 56, 84]
    assert [window.start_s for window in decoded.windows] == pytest.approx([start / 10 for start in starts])
    for window, start in zip(decoded.windows, starts, strict=True):
        assert media.numbers(window.clip.frames) == list(range(start, start + 16))
        assert window.clip.fps == decoded.fps_used


def test_a_clip_shorter_than_a_window_is_one_shorter_window():
    assert shown(media.video(media.numbered(9), fps=10, **LOSSLESS)) == [list(range(9))]


VARIABLE_MS = [*range(0, 1000, 100), *range(1000, 2000, 50)]  # 10 fps, then 20 fps


@pytest.mark.parametrize("first_ms", [0, 7300])
def test_timestamps_decide_whatever_the_first_one_is(first_ms):
    ticks = [first_ms + ms for ms in VARIABLE_MS]
    payload = media.video(media.numbered(30), ticks=ticks, **LOSSLESS)
    decoded = run(payload, sampling=Sampling(window_frames=20, fps=10))
    assert media.numbers(decoded.windows[0].clip.frames) == [*range(10), *range(10, 30, 2)]
    assert decoded.source.duration_s == pytest.approx(2.0)
    assert decoded.windows[0].start_s == 0


def test_animated_webp_shows_each_frame_as_long_as_it_says():
    durations = [int(ms) for ms in np.diff([*VARIABLE_MS, 2000])]
    payload = media.webp(media.numbered(30), durations)
    assert shown(payload, Sampling(window_frames=20, fps=10)) == [[*range(10), *range(10, 30, 2)]]


def test_the_first_of_frames_with_one_timestamp_is_shown():
    ticks = [0, 100, 200, 300, 400, 400, 400, *range(500, 1200, 100)]
    payload = media.video(media.numbered(14), ticks=ticks, **LOSSLESS)
    assert shown(payload) == [[0, 1, 2, 3, 4, *range(7, 14)]]


def test_frames_cut_off_by_an_edit_list_do_not_count():
    ticks = list(range(-500, 1000, 100))  # the muxer cuts off the frames before 0 with an edit list
    payload = media.video(media.numbered(15), ticks=ticks, container="mov", codec="qtrle", pix_fmt="rgb24")
    assert shown(payload) == [list(range(5, 15))]
    assert run(payload).source.frames == 10


def test_decoding_is_the_same_from_many_threads_at_once():
    payloads = [
        media.video(media.texture(16, seed=1), fps=10),
        media.webp(media.texture(12, seed=2)),
        media.gif(media.texture(12, seed=3)),
        media.video(media.texture(16, seed=4), fps=10, container="webm", codec="libvpx-vp9"),
    ]
    alone = [run(payload).windows[0].clip.frames for payload in payloads]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda payload: run(payload).windows[0].clip.frames, payloads * 8))
    for index, frames in enumerate(together):
        assert np.array_equal(frames, alone[index % len(payloads)])
