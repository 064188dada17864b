"""Reads clip files. From a path or bytes, within limits, it gives frame times, size and frames as a player shows them.

    with open_source(Path("clip.mp4")) as source:
        for index, frame in source.frames([0, 12, 24]):
            ...

The server, pretraining, the evaluation commands and the trainer all use this reader, so they see the same frames.
It needs PyAV, OpenCV and Pillow. `protos.client` needs none of them and does not import this package.
"""

from protos.reader.errors import (
    BadTensor,
    ClipTooLarge,
    ClipTooShort,
    DecodeTooSlow,
    EmptyPayload,
    ReaderError,
    UnreadableClip,
)
from protos.reader.guard import FILE_LIMITS
from protos.reader.reel import Frame, Picture, Track
from protos.reader.source import Source, Stretch, open_source, with_true_times

__all__ = [
    "FILE_LIMITS",
    "BadTensor",
    "ClipTooLarge",
    "ClipTooShort",
    "DecodeTooSlow",
    "EmptyPayload",
    "Frame",
    "Picture",
    "ReaderError",
    "Source",
    "Stretch",
    "Track",
    "UnreadableClip",
    "open_source",
    "with_true_times",
]
