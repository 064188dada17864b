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

from protos.error_codes import ErrorCode


class ReaderError(Exception):
    """Base of all. The message names the value, the limit and the next step."""

    code: ClassVar[ErrorCode]


class EmptyPayload(ReaderError):
    code = ErrorCode.EMPTY_PAYLOAD


class ClipTooLarge(ReaderError):
    code = ErrorCode.CLIP_TOO_LARGE


class ClipTooShort(ReaderError):
    code = ErrorCode.CLIP_TOO_SHORT


class UnreadableClip(ReaderError):
    code = ErrorCode.UNREADABLE_CLIP


class DecodeTooSlow(ReaderError):
    code = ErrorCode.DECODE_TOO_SLOW


class BadTensor(ReaderError):
    code = ErrorCode.BAD_TENSOR
