"""What `python -m benchmarks.fuzz` has found: each input once did harm, or came close to it."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator

import pytest

from protos.types import Limits, Media, Submission
from reward_server.decoding.children import AVAILABLE, DecodePool
from reward_server.decoding.sampling import Sampling
from reward_server.errors import InvalidClip
from reward_server.settings import Settings

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="children need Linux")

SETTINGS = Settings()
LIMITS = Limits(
    max_bytes=SETTINGS.max_bytes,
    max_frames=SETTINGS.max_frames,
    max_frame_pixels=SETTINGS.max_frame_pixels,
    max_duration_s=SETTINGS.max_duration_s,
    max_clips_per_request=SETTINGS.max_clips_per_request,
)


def packed(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


# The input, and the codes with which it may end.
FINDS: dict[str, tuple[Media, bytes, set[str]]] = {
    # Its header begins with zeros, so json took it for UTF-32, and Python could not load that in a child without files.
    "a tensor whose header is zeros": (Media.TENSOR, struct.pack("<Q", 136) + bytes(200), {"bad_tensor"}),
    # Both took more than 512 MiB, and the child was ended there. The gif is read in less now; the apng is refused.
    "a 4K gif with a frame of 40 pixels in a wrong place": (
        Media.CONTAINER,
        packed(
            "c-nLKbhEHbWZ*C0Xk<VEia%KxIDoVch@%073>?l3j2to^8x|aF<`CA3Ik92k;dTLKuQ?tY7ai@EFwVMjV&mfD{R+-qGM<~3o"
            "Sdu?yej78rlqH+8zi5a<GFd++1VDHY%Cyi895jj5#~1jN3wOq+X2-3e>AK{?HILV)Q%x&N8xB#4I(?N0h+m`A^"
        ),
        {"ok"},
    ),
    "a 4K apng with a damaged chunk": (
        Media.CONTAINER,
        packed(
            "c-rmSziPrz6vy$CCPN6sRN6XdK^MpFU4#at8junsZbb=#o6ym%fl{PfAE58hsSnVtZ%~8|9UY`#heAP&H<7G@Yy5uhaPHsbj"
            "6d#^f77z9vLzz6*KT%295prX%p+B*U$^yS6%K=rs;B8t&M%hgqLfG5eaRk4#@FW}QR(Dgq(AkVZZLUSyla{|iJsT5Kc*!B00"
            "00006Rsq2R#WBq!xc(`#k^v0001xccD`-(okSEsJOHP00000fZTg*Tpp)C1b*+w2JHX<0002s0G$1OU!`flNBmX{=m!7**v|"
            "%6@X`4"
        ),
        {"unreadable_clip", "clip_too_large"},
    ),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(size=1, memory_mib=SETTINGS.decode_memory_mib)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", FINDS)
def test_what_fuzzing_found_is_read_or_refused_as_the_clips_own_fault(pool: DecodePool, name: str) -> None:
    media, payload, codes = FINDS[name]
    assert _end(pool, Submission(payload=payload, media=media)) in codes


def _end(pool: DecodePool, clip: Submission) -> str:
    try:
        pool.decode(clip, Sampling(), LIMITS, 60.0)
    except InvalidClip as error:
        return error.code
    return "ok"
