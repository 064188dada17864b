"""The body of a scoring request over HTTP -> submissions, counted while it is read, never spilled to disk.

Either multipart/form-data (files in the fields `video` and `tensor`, in any number and order; the
context as one field `context` of JSON, or field by field), or one bare clip with its content type.
Context fields in the query hold for every clip that does not say otherwise.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from protos.types import Context, Media, Submission
from reward_server.doors.intake import ContextFields, check_request, checked_fields, context_of, media_of_content_type
from reward_server.errors import BadRequest, RequestTooLarge
from reward_server.settings import MIB, Settings

CLIP_FIELDS = {"video": Media.CONTAINER, "tensor": Media.TENSOR}
ENVELOPE_BYTES = MIB  # what multipart boundaries, part headers and contexts may add to the clips
MAX_FIELDS = 16


async def submissions_of(request: Request, shared: ContextFields, settings: Settings) -> list[Submission]:
    """Raises BadRequest, RequestTooLarge and UnsupportedMedia. A clip that is no clip is not looked at here."""
    content_type = request.headers.get("content-type", "")
    try:
        async with asyncio.timeout(settings.score_timeout_s):
            if content_type.lower().startswith("multipart/form-data"):
                submissions = await _from_multipart(request, shared, settings)
            else:
                submissions = [await _from_bare_body(request, content_type, shared, settings)]
    except TimeoutError as error:
        raise BadRequest(f"the body did not arrive within {settings.score_timeout_s:g} s") from error
    except ClientDisconnect as error:
        raise BadRequest("the client went away before its body was complete") from error
    check_request(submissions, settings)
    return submissions


async def _from_bare_body(request: Request, content_type: str, shared: ContextFields, settings: Settings) -> Submission:
    media = media_of_content_type(content_type)
    payload = b"".join([chunk async for chunk in _counted(request, settings.max_request_bytes)])
    return Submission(payload=payload, media=media, context=context_of(shared))


async def _from_multipart(request: Request, shared: ContextFields, settings: Settings) -> list[Submission]:
    stream = _counted(request, settings.max_request_bytes + ENVELOPE_BYTES)
    parser = _Multipart(
        request.headers, stream, max_files=settings.max_clips_per_request, max_fields=MAX_FIELDS, max_part_size=MIB
    )
    parser.spool_max_size = settings.max_request_bytes + ENVELOPE_BYTES  # in memory: the queue is, too
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


class _Multipart(MultiPartParser):
    """Refuses a body without its end, of which starlette's would hand over all but the clip that was cut short."""

    _ended = False

    async def parse(self) -> FormData:
        self.stream = self._whole(self.stream)
        return await super().parse()

    def on_end(self) -> None:
        self._ended = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:  # raised in here, where the parser closes the files it has begun
            raise MultiPartException("it ends before its closing boundary; send it whole")


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, as long as they are within the limit; then RequestTooLarge.

    What is over the limit is thrown away, up to as much again: a client that is still sending when the
    connection closes would see a reset in place of the reason. A length declared beyond that is refused unread.
    """
    refusal = RequestTooLarge(f"the request is over {max_bytes} bytes; send several requests, or shorter clips")
    length = request.headers.get("content-length", "")
    num_bytes, declared = 0, int(length) if length.isdigit() else 0
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
    """One per clip: the JSON field `context` (an object for all, or a list) over single fields over `shared`."""
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    if misplaced := CLIP_FIELDS.keys() & fields.keys():
        name = misplaced.pop()
        raise BadRequest(f"field '{name}' is text; send it as a file, for instance curl -F {name}=@FILE")
    written = fields.pop("context", "")
    single = checked_fields({name: value for name, value in fields.items() if value})  # a form leaves fields empty
    if not written:
        return [context_of(shared, single)] * num_clips
    given = _parsed(written)
    each = given if isinstance(given, list) else [given] * num_clips
    if len(each) != num_clips:
        raise BadRequest(f"`context` lists {len(each)} contexts for {num_clips} clips; give one, or one per clip")
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
        raise BadRequest(f"file field '{name}' is unknown; clips come in {sorted(CLIP_FIELDS)}")
    return CLIP_FIELDS[name]
