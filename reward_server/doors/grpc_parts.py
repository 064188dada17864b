"""Puts together what arrives in a stream of gRPC messages: the clips of Submit, the chunks of a version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from protos import codec
from protos import reward_pb2 as pb
from protos.types import Context, Media, Submission
from reward_server.doors.intake import Intake
from reward_server.doors.uploads import Spool
from reward_server.errors import BadRequest
from reward_server.queue.version_transfer import File
from reward_server.settings import Settings


async def version_chunks(parts: AsyncIterator[pb.VersionPart]) -> AsyncIterator[tuple[File, bytes]]:
    """The chunks after the header, each with its file. Raises BadRequest for a part without a chunk."""
    async for part in parts:
        match part.WhichOneof("part"):
            case "scoring":
                yield "scoring", part.scoring
            case "training":
                yield "training", part.training
            case _:
                raise BadRequest("after the header, a part of the stream holds a chunk: `scoring` or `training`")


@dataclass
class _Arriving:
    media: Media
    context: Context
    size_bytes: int
    num_bytes: int = 0


class Assembly:
    """Builds submissions from a stream of headers and chunks. Refuses the first part that is wrong or too large."""

    def __init__(self, settings: Settings, spool: Spool) -> None:
        self._intake, self._spool = Intake(settings), spool
        self._arriving: _Arriving | None = None
        self._done: list[_Arriving] = []
        self._num_clips = 0  # declared by the first header; 0: unknown

    async def add(self, part: pb.SubmitRequest) -> None:
        """Add the next part.

        Raises BadRequest, RequestTooLarge, Overloaded, NotReady, or ContractError for a malformed context or media.
        """
        match part.WhichOneof("part"):
            case "header":
                self._finish_clip()
                self._open_clip(part.header)
            case "chunk":
                self._count_chunk(part.chunk)
                await self._spool.add(part.chunk)
            case _:
                raise BadRequest("a part of the stream is empty; set `header` or `chunk`")

    async def submissions(self) -> list[Submission]:
        """The clips, once the stream has ended."""
        payloads = await self._spool.clips([clip.num_bytes for clip in self._done])
        return [
            Submission(payload=payload, media=clip.media, context=clip.context)
            for payload, clip in zip(payloads, self._done, strict=True)
        ]

    def end(self) -> None:
        """Check that the stream is whole. Raises BadRequest."""
        self._finish_clip()
        if not self._done:
            raise BadRequest("no clip in the stream; send a header and its chunks")
        if self._num_clips and len(self._done) != self._num_clips:  # the client may have cancelled between two clips
            raise BadRequest(
                f"the stream has {len(self._done)} clips, but its first header declares {self._num_clips}; "
                "send the whole stream again"
            )

    def _open_clip(self, header: pb.SubmitRequest.Header) -> None:
        self._num_clips = self._num_clips or header.num_clips
        self._intake.count_clip()
        self._intake.count_bytes(header.size_bytes)
        media = codec.media_from_message(header.media)
        context = codec.context_from_message(header.context)
        self._arriving = _Arriving(media=media, context=context, size_bytes=header.size_bytes)

    def _count_chunk(self, chunk: bytes) -> None:
        clip = self._arriving
        if clip is None:
            raise BadRequest("a chunk came before any header; send the clip's header first")
        clip.num_bytes += len(chunk)
        if clip.num_bytes > clip.size_bytes:
            raise BadRequest(
                f"clip {len(self._done)} has more than the {clip.size_bytes} bytes that its header declares; "
                "declare the size of the whole payload"
            )

    def _finish_clip(self) -> None:
        clip, self._arriving = self._arriving, None
        if clip is None:
            return
        if clip.num_bytes != clip.size_bytes:
            raise BadRequest(
                f"clip {len(self._done)} has {clip.num_bytes} bytes, but its header declares {clip.size_bytes}; "
                "check whether its file was still being written, and send it again"
            )
        self._done.append(clip)
