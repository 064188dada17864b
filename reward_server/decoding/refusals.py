"""Converts the reader's errors to the server's: each becomes the subclass of InvalidClip with the same code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from protos.reader import ReaderError
from reward_server.errors import (
    BadTensor,
    ClipTooLarge,
    ClipTooShort,
    DecodeTooSlow,
    EmptyPayload,
    InvalidClip,
    UnreadableClip,
)

LEAVES: dict[str, type[InvalidClip]] = {
    "empty_payload": EmptyPayload,
    "clip_too_large": ClipTooLarge,
    "clip_too_short": ClipTooShort,
    "unreadable_clip": UnreadableClip,
    "decode_too_slow": DecodeTooSlow,
    "bad_tensor": BadTensor,
}


@contextmanager
def as_invalid_clip(name: str = "") -> Iterator[None]:
    """Raise subclasses of InvalidClip instead of the reader's errors. A `name` is put before the message."""
    try:
        yield
    except ReaderError as error:
        raise LEAVES[error.code](f"{name}: {error}" if name else str(error)) from error
