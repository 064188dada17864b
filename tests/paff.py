"""Field-coded H.264 out of nothing: one packet per field, as AVCHD camcorders and broadcast write it.

No encoder here writes fields as pictures of their own, so the stream is made of raw macroblocks (intra PCM).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

MACROBLOCK = 16
IDR, SLICE, SPS, PPS = 5, 1, 7, 8


class Bits:
    """Bits as they are written: fixed, Exp-Golomb and raw bytes."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def fixed(self, *pairs: tuple[int, int]) -> Bits:
        self._parts += [format(value, f"0{num_bits}b") for num_bits, value in pairs]
        return self

    def golomb(self, *values: int) -> Bits:
        for value in values:
            digits = format(value + 1, "b")
            self._parts.append("0" * (len(digits) - 1) + digits)
        return self

    def aligned(self) -> Bits:
        self._parts.append("0" * (-sum(map(len, self._parts)) % 8))
        return self

    def raw(self, data: bytes) -> Bits:
        self._parts.append("".join(format(byte, "08b") for byte in data))
        return self

    def payload(self) -> bytes:
        text = "".join(self.fixed((1, 1)).aligned()._parts)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def field_coded(luma: NDArray[np.uint8], container: str) -> bytes:
    """`luma` [T,H,W] in multiples of 32 rows and 16 columns; 30 frames, so 60 packets, a second."""
    _, height, width = luma.shape
    head = _sps(height, width) + _pps()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "yuv420p", Fraction(1, 60)
        stream.codec_context.extradata = head
        output.start_encoding()
        for at, data in enumerate(_fields(luma)):
            packet = av.Packet(head + data if at == 0 else data)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 60), 1
            packet.pts = packet.dts = at
            packet.is_keyframe = at == 0
            output.mux(packet)
    return buffer.getvalue()


def _fields(luma: NDArray[np.uint8]) -> Iterator[bytes]:
    for frame, picture in enumerate(luma):
        for bottom in (0, 1):
            yield _field(picture[bottom::2], frame, bottom)


def _field(lines: NDArray[np.uint8], frame: int, bottom: int) -> bytes:
    idr = frame == 0 and not bottom
    bits = Bits().golomb(0, 7, 0).fixed((8, frame % 256), (1, 1), (1, bottom))
    bits = bits.golomb(0) if idr else bits
    bits = bits.fixed((8, (2 * frame + bottom) % 256), (1, 0), *([(1, 0)] if idr else []))
    bits = bits.golomb(0, 1)  # no change of the quantizer, no deblocking
    for top in range(0, lines.shape[0], MACROBLOCK):
        for left in range(0, lines.shape[1], MACROBLOCK):
            block = lines[top : top + MACROBLOCK, left : left + MACROBLOCK]
            bits = bits.golomb(25).aligned().raw(block.tobytes()).raw(bytes([128]) * 128)
    return _unit(IDR if idr else SLICE, bits.payload())


def _sps(height: int, width: int) -> bytes:
    bits = Bits().fixed((8, 77), (8, 0), (8, 40)).golomb(0, 4, 0, 4, 1).fixed((1, 0))
    bits = bits.golomb(width // 16 - 1, height // 32 - 1).fixed((1, 0), (1, 0), (1, 1), (1, 0))
    bits = bits.fixed((1, 1), (1, 0), (1, 0), (1, 0), (1, 0))  # what is told of display: only the clock
    return _unit(SPS, bits.fixed((1, 1), (32, 1), (32, 60), (1, 1), (1, 0), (1, 0), (1, 0), (1, 0)).payload())


def _pps() -> bytes:
    bits = Bits().golomb(0, 0).fixed((1, 0), (1, 0)).golomb(0, 0, 0).fixed((1, 0), (2, 0)).golomb(0, 0, 0)
    return _unit(PPS, bits.fixed((1, 1), (1, 0), (1, 0)).payload())


def _unit(kind: int, data: bytes) -> bytes:
    """A unit of the byte stream; three bytes of it must never look like the start of the next."""
    escaped, zeros = bytearray(), 0
    for byte in data:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([3 << 5 | kind]) + bytes(escaped)
