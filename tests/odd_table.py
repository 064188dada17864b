"""The table of odd files: what each is, and what the reader makes of it. docs/formats.md is written from it.

`ODD` names every file. tests/protos/test_reader_users.py gives each to all users of the reader, and format_tables.py
writes the tables of docs/formats.md. odd_files.py and media.py make the files; none is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from protos.reader.source import resized
from protos.reader.tones import HLG, PQ, mapped
from tests import media, odd_files
from tests.odd_files import GOOD, LOSSLESS
from tests.paff import field_coded

FRAMES = media.texture(24, step=4)
LUMA = np.repeat(np.repeat(np.arange(24, dtype=np.uint8)[:, None, None] * 8 + 20, 64, axis=1), 96, axis=2)
GREY = np.repeat(np.rint((LUMA[..., None] - 16.0) * 255 / 219), 3, axis=3).astype(np.uint8)  # of limited range
WIDE = np.stack([resized(frame, 64, 144) for frame in FRAMES])
HALF = np.concatenate([np.zeros_like(FRAMES[:, :, :48]), FRAMES[:, :, 48:]], axis=2)
FIELDS = media.texture(48, step=2)
CUT = np.concatenate([FRAMES[:20] // 4, 255 - media.texture(24, step=4, seed=5)[20:] // 4])
THREES = media.texture(72, step=4)
FAST_START = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
OPEN_GROUP = {**GOOD, "g": "4", "bf": "2", "x264-params": "open-gop=1"}
GRAIN = {"preset": "10", "crf": "20", "svtav1-params": "film-grain=20"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """A row of the table of formats: how it is read, when it is refused, and which files test it too."""

    read: str
    refused: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Odd:
    """An odd file of a form. `make` gives its bytes.

    If it is read, it has `frames` frames at `fps`, of `size` (height, width) in its first stretch, and the reader
    gives `warnings` of the file and of what is `seen` in its frames. Its frames look like `shown` [T,H,W,3], or FRAMES,
    and differ by at most `within` grey levels on average. Otherwise it has no frames, and is refused
    with `code` and a message that holds the pattern `words`. A file with frames and a code is read, but has too few
    frames for the users.
    """

    form: str
    make: Callable[[], bytes]
    frames: int = 24
    fps: float = 12.5
    size: tuple[int, int] = (64, 96)
    stretches: int = 1
    warnings: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    within: float = 20.0
    shown: media.Frames | None = None
    code: str = ""
    words: str = ""


HOLES = "over 2 % of the frames are missing in the middle"
FORMS: dict[str, Form] = {
    "mp4, mov, m4v: h264, hevc, av1, prores, qtrle, mjpeg": Form(
        read="with PyAV; only the groups with wanted frames are decoded",
        refused=f"the index is missing or compressed (cmov), or {HOLES}",
        also=("test_decode.py", "test_decode_refusals.py", "test_decode_truncated.py"),
    ),
    "mkv, webm: h264, hevc, vp8, vp9, av1, ffv1; also live recordings without a duration": Form(
        read="as mp4", refused=HOLES, also=("test_decode.py", "test_decode_truncated.py")
    ),
    "avi: mjpeg, mpeg4, h264, rawvideo": Form(
        read="from the start; avi stores no display times, so frames are put in display order",
        refused=HOLES,
        also=("test_decode.py", "test_decode_truncated.py"),
    ),
    "ts, m2ts (192 bytes per packet); the stream can begin within a packet": Form(
        read="from the start; all frames are counted",
        refused="fewer than half of the expected frames can be decoded",
        also=("test_reader.py", "test_decode_truncated.py"),
    ),
    "mpg: mpeg2": Form(read="as ts", refused="as ts", also=("test_decode.py",)),
    "gif": Form(read="from the start", refused="it has no frame", also=("test_reader.py",)),
    "animated webp": Form(
        read="with Pillow, because ffmpeg cannot decode it",
        refused="a frame in the middle cannot be decoded",
        also=("test_decode.py", "test_decode_truncated.py"),
    ),
    "animated avif, animated png, y4m": Form(
        read="with PyAV", refused="it is a picture without animation; the message says so"
    ),
    "safetensors": Form(
        read="one tensor `frames`, [T,3,H,W]",
        refused="the tensor breaks the [rules below](#tensors)",
        also=("test_decode_refusals.py",),
    ),
    "VVC": Form(read="with PyAV; not tested, because there is no encoder here"),
    "ogg, flv, wmv, bare h264 or mpeg streams, pictures, sound, text, archives": Form(
        read="never", refused="always; the message names the format", also=("test_decode_refusals.py",)
    ),
    "folders and patterns of png or jpg pictures": Form(
        read="with Pillow; only the wanted pictures are decoded; see [below](#image-sequences)",
        refused="the frame rate is missing, or the pictures differ in size",
        also=("test_reader_sequences.py",),
    ),
}
MP4, MKV, AVI, TS, MPG, GIF, WEBP, ANIMATED, TENSOR, VVC, OTHERS, PICTURES = FORMS


def coded(container: str = "mp4", codec: str = "libx264", frames: media.Frames = FRAMES, **options: object) -> bytes:
    """A video file of `frames` at 12.5 frames per second. `options` are those of `media.video`."""
    given = {"fps": 12.5, "codec_options": GOOD if codec in ("libx264", "libvpx-vp9") else {}, **options}
    return media.video(frames, container=container, codec=codec, **given)


def x265(told: str, **options: object) -> bytes:
    return coded(codec="libx265", codec_options={"x265-params": f"log-level=none:crf=10:{told}"}, **options)


def lossless(frames: media.Frames = FRAMES, fps: float = 12.0) -> bytes:
    return media.video(frames, fps=fps, **LOSSLESS)


def refused(form: str, make: Callable[[], bytes], words: str, code: str = "unreadable_clip") -> Odd:
    return Odd(form=form, make=make, frames=0, code=code, words=words)


def colours() -> dict[str, Odd]:
    """A file of each matrix and range that is read. Read by another one, its frames would be further away."""
    matrices, ranges = {"BT.601": 5, "BT.709": 1, "BT.2020": 9}, {"limited": 1, "full": 2}
    return {
        f"mp4 h264, {name}, {span} range": Odd(
            form=MP4, make=partial(coded, pix_fmt="yuv444p", colour=told), within=2.0
        )
        for name, matrix in matrices.items()
        for span, code in ranges.items()
        for told in [(matrix, code)]
    }


def hdr(curve: str, number: int) -> Odd:
    told = f"keyint=12:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc:range=limited"
    return Odd(
        form=MP4,
        make=lambda: x265(told, pix_fmt="yuv444p10le", colour=(9, 1)),
        shown=mapped(FRAMES.astype(np.uint16) * 257, number),
        seen=("hdr_mapped",),
        within=4.0,
    )


ODD: dict[str, Odd] = {
    # --- mp4, mov ---
    "mp4 h264, b-frames with decoding times only": Odd(
        form=MP4, make=lambda: odd_files.without_display_times(FRAMES, "mp4"), fps=12.0
    ),
    "mp4 h264": Odd(form=MP4, make=coded),
    "mp4 h264, fragmented": Odd(form=MP4, make=lambda: coded(options=FRAGMENTS)),
    "mp4 h264, open groups": Odd(form=MP4, make=lambda: coded(codec_options=OPEN_GROUP)),
    "mp4 h264, 4:4:4": Odd(form=MP4, make=lambda: coded(pix_fmt="yuv444p")),
    "mp4 h264, 10 bit": Odd(form=MP4, make=lambda: coded(pix_fmt="yuv420p10le")),
    "mp4 h264, grey": Odd(form=MP4, make=lambda: coded(pix_fmt="gray"), within=60.0),
    "mp4 h264, two fields a frame": Odd(
        form=MP4, make=lambda: field_coded(LUMA, "mp4"), fps=30.0, shown=GREY, seen=("interlaced",)
    ),
    "mp4 h264, interlaced": Odd(
        form=MP4,
        make=lambda: coded(frames=odd_files.woven(FIELDS), codec_options={**GOOD, "flags": "+ildct+ilme"}),
        shown=FIELDS[::2],
        seen=("interlaced",),
        within=14.5,  # with the combs it would be 15.2
    ),
    **colours(),
    "mp4 hevc, HDR (PQ)": hdr("smpte2084", PQ),
    "mp4 hevc, HDR (HLG)": hdr("arib-std-b67", HLG),
    "mp4 hevc": Odd(form=MP4, make=lambda: x265("keyint=12")),
    "mp4 hevc, open groups": Odd(form=MP4, make=lambda: x265("keyint=4:open-gop=1:bframes=2")),
    "mp4 hevc, 12 bit": Odd(form=MP4, make=lambda: x265("keyint=12", pix_fmt="yuv420p12le")),
    "mp4 av1, film grain": Odd(form=MP4, make=lambda: coded(codec="libsvtav1", codec_options=GRAIN)),
    "mov prores 4444": Odd(
        form=MP4, make=lambda: coded("mov", "prores_ks", odd_files.opaque(FRAMES), pix_fmt="yuva444p10le")
    ),
    "mov qtrle, edit list": Odd(
        form=MP4, make=lambda: odd_files.edited_mov(FRAMES), frames=16, fps=20.0, shown=FRAMES[8:]
    ),
    "mp4 turned by its matrix": Odd(
        form=MP4,
        make=lambda: media.with_display_matrix(coded(), odd_files.TURNED),
        size=(96, 64),
        shown=np.rot90(FRAMES, -1, (1, 2)),
    ),
    "mp4 mirrored by its matrix": Odd(
        form=MP4, make=lambda: media.with_display_matrix(coded(), odd_files.MIRRORED), shown=FRAMES[:, :, ::-1]
    ),
    "mp4 with wide pixels": Odd(form=MP4, make=lambda: coded(pixel_aspect=Fraction(3, 2)), size=(64, 144), shown=WIDE),
    "mp4 cut after its index": Odd(
        form=MP4, make=lambda: odd_files.cut(coded(options=FAST_START)), frames=13, warnings=("truncated",)
    ),
    "mp4 of one frame": Odd(
        form=MP4, make=lambda: coded(frames=FRAMES[:1]), frames=1, fps=0.0, code="clip_too_short", words="1 frame"
    ),
    "mp4 cut before its index": refused(MP4, lambda: odd_files.cut(coded()), "its index never arrived"),
    "mp4 with a compressed index": refused(
        MP4, lambda: odd_files.compressed_index(coded(options=FAST_START)), r"index is compressed \(cmov\)"
    ),
    "mp4 in YCgCo colours": refused(
        MP4, lambda: coded(codec_options={"x264-params": "colormatrix=YCgCo"}), "colour matrix 8 cannot be converted"
    ),
    "mp4 with sound only": refused(MP4, media.sound, "no video stream, only audio"),
    "mp4 with sound and a cover": refused(MP4, lambda: media.sound(with_cover=True), "only audio, video"),
    # --- mkv, webm ---
    "mkv h264, live": Odd(form=MKV, make=lambda: coded("matroska", options={"live": "1"})),
    "mkv h264, two fields a frame": Odd(
        form=MKV, make=lambda: field_coded(LUMA, "matroska"), fps=30.0, shown=GREY, seen=("interlaced",)
    ),
    "webm vp8": Odd(form=MKV, make=lambda: coded("webm", "libvpx", codec_options={"crf": "4", "b": "4M"})),
    "webm vp9": Odd(form=MKV, make=lambda: coded("webm", "libvpx-vp9")),
    "webm vp9, hidden frames": Odd(form=MKV, make=lambda: odd_files.hidden_vp9(FRAMES), fps=12.0),
    "webm vp8, two sizes": Odd(form=MKV, make=lambda: odd_files.two_sizes(FRAMES), fps=12.0, stretches=2),
    "mkv ffv1, 16x16": Odd(
        form=MKV, make=lambda: lossless(FRAMES[:, :16, :16]), fps=12.0, size=(16, 16), shown=FRAMES[:, :16, :16]
    ),
    "mkv ffv1, odd sides": Odd(
        form=MKV, make=lambda: lossless(FRAMES[:, :63, :95]), fps=12.0, size=(63, 95), shown=FRAMES[:, :63, :95]
    ),
    "mkv ffv1, a gap of 2 s": Odd(
        form=MKV, make=lambda: odd_files.with_gap(FRAMES, after=12, gap_ms=2000), fps=12.0, stretches=2
    ),
    "mkv ffv1, two of 24 frames dropped": Odd(
        form=MKV,
        make=lambda: odd_files.dropped(FRAMES, 0.1, seed=38),
        frames=22,
        fps=30.0,
        shown=FRAMES[odd_files.kept(24, 0.1, seed=38)],
    ),
    "mkv mjpeg, three frames with each time": Odd(
        form=MKV, make=lambda: odd_files.in_threes(THREES), fps=12.0, shown=THREES[::3], warnings=("repeated_times",)
    ),
    "mkv ffv1, a cut": Odd(form=MKV, make=lambda: lossless(CUT), fps=12.0, shown=CUT, seen=("cuts",)),
    "mkv ffv1, a still track first": Odd(
        form=MKV,
        make=lambda: odd_files.two_tracks(np.repeat(FRAMES[:1], 24, axis=0), FRAMES),
        fps=12.0,
        warnings=("several_tracks",),
    ),
    "mkv ffv1, a picture track first": Odd(form=MKV, make=lambda: odd_files.with_cover(FRAMES), fps=12.0),
    "mkv h264, cut": Odd(form=MKV, make=lambda: odd_files.cut(coded("matroska")), frames=12, warnings=("truncated",)),
    "mkv mjpeg, damaged in the middle": refused(
        MKV,
        lambda: odd_files.spoiled(coded("matroska", "mjpeg", pix_fmt="yuvj420p"), range(8, 12)),
        "mjpeg frames can be decoded, under the minimum",
    ),
    "mkv with sound only": refused(MKV, lambda: media.sound("matroska"), "no video stream, only audio"),
    # --- avi ---
    "avi mjpeg, 4:2:2": Odd(form=AVI, make=lambda: coded("avi", "mjpeg", pix_fmt="yuvj422p")),
    "avi mjpeg, 4:4:4": Odd(form=AVI, make=lambda: coded("avi", "mjpeg", pix_fmt="yuvj444p")),
    "avi mpeg4, b-frames": Odd(
        form=AVI, make=lambda: coded("avi", "mpeg4", codec_options={"bf": "2", "q": "2", "flags": "+qscale"})
    ),
    "avi h264, b-frames": Odd(form=AVI, make=lambda: odd_files.b_frames_in_avi(FRAMES), fps=12.0),
    "avi rawvideo, 32 bit": Odd(form=AVI, make=lambda: coded("avi", "rawvideo", pix_fmt="bgra")),
    "avi rawvideo, bottom-up": Odd(form=AVI, make=lambda: odd_files.bottom_up_avi(FRAMES)),
    "avi rawvideo": Odd(form=AVI, make=lambda: coded("avi", "rawvideo", pix_fmt="bgr24")),
    "avi mjpeg, cut": Odd(
        form=AVI,
        make=lambda: odd_files.cut(coded("avi", "mjpeg", pix_fmt="yuvj422p")),
        frames=14,
        warnings=("truncated",),
    ),
    # --- ts, mpg ---
    "ts h264": Odd(form=TS, make=lambda: coded("mpegts")),
    "m2ts h264": Odd(form=TS, make=lambda: odd_files.m2ts(coded("mpegts"))),
    "ts h264, beginning within a packet": Odd(form=TS, make=lambda: bytes(range(100)) + coded("mpegts")),
    "ts h264, two fields a frame": Odd(
        form=TS, make=lambda: field_coded(LUMA, "mpegts"), fps=30.0, shown=GREY, seen=("interlaced",)
    ),
    "ts h264, two recordings": Odd(form=TS, make=lambda: odd_files.concatenated_ts(FRAMES), fps=12.0, stretches=2),
    "ts h264, cut": Odd(form=TS, make=lambda: odd_files.cut(coded("mpegts")), frames=16, warnings=("truncated",)),
    "mpg mpeg2": Odd(form=MPG, make=lambda: coded("mpeg", "mpeg2video", fps=24), fps=24.0),
    # --- animated pictures ---
    "gif": Odd(form=GIF, make=lambda: odd_files.gif_of(FRAMES, 80)),
    "gif of 10 ms a frame": Odd(
        form=GIF, make=lambda: odd_files.gif_of(FRAMES, 10), fps=10.0, warnings=("quick_frames",)
    ),
    "gif, half transparent": Odd(
        form=GIF, make=lambda: odd_files.gif_of(odd_files.see_through(FRAMES), 80), shown=HALF
    ),
    "gif, cut": Odd(
        form=GIF, make=lambda: odd_files.cut(odd_files.gif_of(FRAMES, 80)), frames=19, warnings=("truncated",)
    ),
    "gif without a frame": refused(GIF, lambda: b"GIF89a;", "cannot be opened"),
    "webp": Odd(form=WEBP, make=lambda: media.webp(FRAMES, 80)),
    "avif of 10 ms a frame, of another major brand": Odd(
        form=ANIMATED,
        make=lambda: odd_files.animated(FRAMES, "AVIF", 10).replace(b"ftypavis", b"ftypmsf1", 1),
        fps=10.0,
        warnings=("quick_frames",),
    ),
    "apng with more behind it": Odd(form=ANIMATED, make=lambda: odd_files.animated(FRAMES, "PNG") + b"PK" + bytes(99)),
    "webp of 10 ms a frame": Odd(form=WEBP, make=lambda: media.webp(FRAMES, 10), fps=10.0, warnings=("quick_frames",)),
    "webp, half transparent": Odd(form=WEBP, make=lambda: media.webp(odd_files.see_through(FRAMES), 80), shown=HALF),
    "webp, cut": Odd(form=WEBP, make=lambda: odd_files.cut(media.webp(FRAMES, 80)), frames=19, warnings=("truncated",)),
    "webp, damaged in the middle": refused(
        WEBP, lambda: odd_files.damaged_webp(media.webp(FRAMES, 80), 6), "frame 6 of the webp's 24, at 0.48 s"
    ),
    "avif": Odd(form=ANIMATED, make=lambda: odd_files.animated(FRAMES, "AVIF", quality=95)),
    "avif of 10 ms a frame": Odd(
        form=ANIMATED,
        make=lambda: odd_files.animated(FRAMES, "AVIF", 10, quality=95),
        fps=10.0,
        warnings=("quick_frames",),
    ),
    "animated png": Odd(form=ANIMATED, make=lambda: odd_files.animated(FRAMES, "PNG")),
    "animated png of 10 ms a frame": Odd(
        form=ANIMATED, make=lambda: odd_files.animated(FRAMES, "PNG", 10), fps=10.0, warnings=("quick_frames",)
    ),
    "animated png without delays": Odd(form=ANIMATED, make=lambda: odd_files.animated(FRAMES, "PNG", 0), fps=10.0),
    "y4m": Odd(form=ANIMATED, make=lambda: odd_files.y4m(FRAMES), fps=12.0),
    "png without animation": refused(ANIMATED, lambda: odd_files.picture(FRAMES[0], "PNG"), "a PNG picture"),
    # --- tensors ---
    "tensor": Odd(form=TENSOR, make=lambda: media.tensor(FRAMES, 12.5)),
    "tensor, cut": refused(TENSOR, lambda: media.tensor(FRAMES, 12.5)[:-1], "declares", "bad_tensor"),
    "tensor of zeros and ones": refused(TENSOR, lambda: media.tensor(FRAMES // 128, 12.5), "all 0 or 1", "bad_tensor"),
    # --- no clips ---
    "flv": refused(OTHERS, lambda: coded("flv"), "a Flash video"),
    "wmv": refused(OTHERS, lambda: coded("asf", "wmv2"), "a Windows Media file"),
    "bare h264": refused(OTHERS, lambda: coded("h264"), "a bare H.264 or HEVC stream"),
    "bare mpeg": refused(OTHERS, lambda: coded("mpeg1video", "mpeg1video", fps=24), "a bare MPEG video stream"),
    "jpg": refused(OTHERS, lambda: odd_files.picture(FRAMES[0], "JPEG"), "a JPEG picture"),
    "ogg": refused(OTHERS, lambda: coded("ogg", "libvpx"), "an Ogg file"),
    "zip": refused(OTHERS, lambda: b"PK\x03\x04" + bytes(100), "a zip archive"),
    "text": refused(OTHERS, lambda: b"#EXTM3U\nfile:///etc/passwd\n", "text"),
    "empty file": refused(OTHERS, lambda: b"", "has 0 bytes", "empty_payload"),
}
