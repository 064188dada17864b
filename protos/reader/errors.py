"""Why a file cannot be read, as one small tree. `code` is the stable name that travels in an answer.

    ReaderError
    ├─ EmptyPayload     zero bytes
    ├─ ClipTooLarge     bytes, frames, pixels or seconds over a limit
    ├─ ClipTooShort     fewer frames than the user of the reader needs
    ├─ UnreadableClip   not a video, cut, damaged, no video track, nothing decodes
    ├─ DecodeTooSlow    reading took longer than its limit of wall time
    └─ BadTensor        a tensor clip whose declaration or values break the contract

The server maps each to the InvalidClip of the same name, the trainer maps all to DataError.
"""

from __future__ import annotations

from typing import ClassVar


class ReaderError(Exception):
    """Base of all. The message names the value, the limit and the next step."""

    code: ClassVar[str]


class EmptyPayload(ReaderError):
    code = "empty_payload"


class ClipTooLarge(ReaderError):
    code = "clip_too_large"


class ClipTooShort(ReaderError):
    code = "clip_too_short"


class UnreadableClip(ReaderError):
    code = "unreadable_clip"


class DecodeTooSlow(ReaderError):
    code = "decode_too_slow"


class BadTensor(ReaderError):
    code = "bad_tensor"
