"""Defines the limits of a clip, which are checked before and while it is decoded."""

from __future__ import annotations

from pydantic import Field

from reward_server.settings.group import MIB, Group


class ClipSettings(Group):
    """Limits of a clip and of a request."""

    max_bytes: int = Field(256 * MIB, ge=1, description="Maximum number of bytes in one clip's payload.")
    max_frames: int = Field(2000, ge=2, description="Maximum number of frames in one clip.")
    max_frame_pixels: int = Field(3840 * 2160, ge=1, description="Maximum height x width of a frame, in pixels.")
    max_duration_s: float = Field(120.0, gt=0, description="Maximum length of a clip, in seconds.")
    max_decode_s: float = Field(30.0, gt=0, description="Maximum wall time to decode one clip, in seconds.")
    decoder_threads: int = Field(
        1, ge=1, le=64, description="Threads of one video decoder. Clips are decoded in parallel too."
    )
    decode_isolation: bool = Field(
        True,
        description="Decode clips in child processes with limits on memory, time and system calls (Linux). If "
        "false, a clip that breaks a decoder ends the worker.",
    )
    decode_memory_mib: int = Field(
        512, ge=192, description="Maximum resident memory of one decode child, in MiB; needs `decode_isolation`."
    )
    max_clips_per_request: int = Field(
        64,
        ge=1,
        le=2048,
        description="Maximum number of clips in one request, at most 2048.",
    )
    max_request_bytes: int = Field(
        512 * MIB, ge=1, description="Maximum number of payload bytes in one request, over all clips."
    )
