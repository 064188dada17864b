"""Reads the body of a scoring request over HTTP into submissions, with its size counted.

The body is either multipart/form-data or one clip with its content type. A multipart body has files in
the fields `video` and `tensor`, in any number and order. Contexts are one JSON field `context`, or
single fields. Context fields in the query apply to every clip that does not set them itself.

A body arrives in a spool (uploads.py). Once it is complete and its turn has come, its clips are made in memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from protos.types import Context, Media, Submission
from reward_server.doors.intake import ContextFields, check_request, checked_fields, context_of, media_of_content_type
from reward_server.doors.uploads import Held, Spool, UploadRoom
from reward_server.errors import BadRequest, RequestTooLarge
from reward_server.settings import MIB, Settings

CLIP_FIELDS = {"video": Media.CONTAINER, "tensor": Media.TENSOR}
ENVELOPE_BYTES = MIB  # for multipart boundaries, part headers and contexts, on top of the clips
MAX_FIELDS = 16


@dataclass(frozen=True)
class Arrived:
    """The submissions of a request that has arrived, and the turn in which they may be in memory."""

    submissions: list[Submission]
    turn: Held

    def taken(self) -> list[Submission]:
        """The submissions, which are forgotten here, so that only the caller keeps their bytes."""
        taken = self.submissions[:]
        self.submissions.clear()
        return taken


async def arrived(request: Request, shared: ContextFields, settings: Settings, room: UploadRoom) -> Arrived:
    """The request's submissions, with a turn that the caller ends. Clips are not decoded here.

    Raises BadRequest, RequestTooLarge, UnsupportedMedia, Overloaded and NotReady. The body must arrive within
    settings.score_timeout_s.
    """
    content_type = request.headers.get("content-type", "")
    if is_form := content_type.lower().startswith("multipart/form-data"):
        _check_charset(content_type)
    else:
        media_of_content_type(content_type)  # refused before the body is read
    with room.spool() as spool:
        await _receive(request, spool, settings, ENVELOPE_BYTES if is_form else 0)
        turn = await room.hold(spool.num_bytes)
        try:
            if is_form:
                submissions = await _from_multipart(request, spool, shared, settings)
            else:
                submissions = [await _from_bare_body(content_type, spool, shared)]
            check_request(submissions, settings)
        except BaseException:
            turn.release()
            raise
    return Arrived(submissions, turn)


async def _receive(request: Request, spool: Spool, settings: Settings, envelope_bytes: int) -> None:
    """Put the whole body into the spool."""
    try:
        async with asyncio.timeout(settings.score_timeout_s):
            async for chunk in _counted(request, settings.max_request_bytes + envelope_bytes):
                await spool.add(chunk)
    except TimeoutError as error:
        raise BadRequest(
            f"the body did not arrive within {settings.score_timeout_s:g} s (score_timeout_s); send fewer clips at once"
        ) from error
    except ClientDisconnect as error:
        raise BadRequest("the client closed the connection before its body was complete; send it again") from error


async def _from_bare_body(content_type: str, spool: Spool, shared: ContextFields) -> Submission:
    [payload] = await spool.clips([spool.num_bytes])
    return Submission(payload=payload, media=media_of_content_type(content_type), context=context_of(shared))


async def _from_multipart(
    request: Request, spool: Spool, shared: ContextFields, settings: Settings
) -> list[Submission]:
    parser = _Multipart(
        request.headers,
        spool.chunks(),
        max_files=settings.max_clips_per_request,
        max_fields=MAX_FIELDS,
        max_part_size=MIB,
    )
    parser.spool_max_size = settings.max_request_bytes + ENVELOPE_BYTES  # in memory: its turn has come
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(f"the multipart body is malformed: {error.message}") from error
    try:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        contexts = _contexts(form, shared, len(files))
        return [
            Submission(payload=file.file.read(), media=_media_of_field(name), context=context)
            for (name, file), context in zip(files, contexts, strict=True)
        ]
    finally:
        await form.close()


def _check_charset(content_type: str) -> None:
    """Refuse text that is not UTF-8. Starlette would decode it with any of Python's codecs, some of which fail."""
    _, parameters = parse_options_header(content_type)
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise BadRequest(f"charset '{charset[:40]}' is not accepted; send the form's text as UTF-8")


class _Multipart(MultiPartParser):
    """Refuses a body without its end. Starlette's parser would return the clips before the one that was cut off."""

    _ended = False

    async def parse(self) -> FormData:
        self.stream = self._whole(self.stream)
        return await super().parse()

    def on_end(self) -> None:
        self._ended = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:  # raised in the stream, because the parser then closes the files it has opened
            raise MultiPartException("it ends before its closing boundary; send it whole")


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body's chunks. Raises RequestTooLarge if they are over the limit.

    Up to the same number of bytes over the limit is read and thrown away. A client that still sends when the
    connection closes would see a reset instead of the reason. A larger declared length is refused without reading.
    """
    refusal = RequestTooLarge(f"the request is over {max_bytes} bytes; send several requests, or shorter clips")
    length = request.headers.get("content-length", "")
    num_bytes, declared = 0, int(length) if length.isdecimal() else 0
    if declared > 2 * max_bytes:
        raise refusal
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > 2 * max_bytes:
            break
        if max(num_bytes, declared) <= max_bytes:
            yield chunk
    if num_bytes > max_bytes:
        raise refusal


def _contexts(form: FormData, shared: ContextFields, num_clips: int) -> list[Context]:
    """One context per clip. The JSON field `context` overrides single form fields, which override `shared`.

    `context` is an object for all clips, or a list with one object per clip.
    """
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    if misplaced := CLIP_FIELDS.keys() & fields.keys():
        name = misplaced.pop()
        raise BadRequest(f"field '{name}' is text; send it as a file, for instance curl -F {name}=@FILE")
    written = fields.pop("context", "")
    single = checked_fields({name: value for name, value in fields.items() if value})  # forms send empty fields
    if not written:
        return [context_of(shared, single)] * num_clips
    given = _parsed(written)
    each = given if isinstance(given, list) else [given] * num_clips
    if len(each) != num_clips:
        raise BadRequest(f"`context` has {len(each)} contexts for {num_clips} clips; give one object, or one per clip")
    if not all(isinstance(context, dict) for context in each):
        raise BadRequest("`context` must be a JSON object, or a list of objects")
    return [context_of(shared, single, checked_fields(context)) for context in each]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"`context` is not JSON: {error}") from error


def _media_of_field(name: str) -> Media:
    if name not in CLIP_FIELDS:
        raise BadRequest(f"file field '{name}' is unknown; send clips in the fields {sorted(CLIP_FIELDS)}")
    return CLIP_FIELDS[name]
