"""Defines the reader's errors. `code` is the stable name used in answers.

    ReaderError
    ├─ EmptyPayload     zero bytes
    ├─ ClipTooLarge     bytes, frames, pixels or seconds over a limit
    ├─ ClipTooShort     fewer frames than the caller needs
    ├─ UnreadableClip   not a video, cut, damaged, no video track, or no frame can be decoded
    ├─ DecodeTooSlow    reading took longer than its limit of wall time
    └─ BadTensor        a tensor clip whose declaration or values break the contract

The server maps each to the InvalidClip subclass of the same name. The trainer maps all to DataError.
"""

from __future__ import annotations

from typing import ClassVar

from protos.error_codes import ErrorCode


class ReaderError(Exception):
    """Base class of the reader's errors. The message names the value, the limit and the next step."""

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
