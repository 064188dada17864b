"""Serves the page at `/`, its files, and the copies of clips that it shows. No route here is part of the API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from reward_server import page
from reward_server.doors.http_body import arrived
from reward_server.doors.intake import ContextFields
from reward_server.doors.ownership import OwnService
from reward_server.errors import BadRequest
from reward_server.page.copies import Copies
from reward_server.settings import Settings

FOLDER = Path(page.__file__).parent / "static"

Fault = Annotated[str, Query(max_length=40, description="A fault of the ladder. Empty: a plain copy.")]
Strength = Annotated[float, Query(gt=0, le=1, allow_inf_nan=False, description="Of the fault.")]


def add_page(app: FastAPI, own: Callable[[Request], OwnService], settings: Settings) -> None:
    """Add the page to the app."""
    index, copies = (FOLDER / "index.html").read_text(), Copies(settings)
    app.mount("/page", StaticFiles(directory=FOLDER))

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(index)

    @app.post("/v1/page/copy", include_in_schema=False)
    async def copy(request: Request, fault: Fault = "", strength: Strength = 1.0) -> Response:
        """One clip as an h264 mp4 at the rate at which it is scored: what browsers can play, and what faults need."""
        caller = own(request)
        upload = await arrived(request, ContextFields(), settings, caller.uploads)
        with upload.turn:
            clips = upload.taken()
            if len(clips) != 1:
                raise BadRequest(f"the request has {len(clips)} clips; send one, a copy is made of one at a time")
            made = await copies.made(clips[0], await caller.model(), fault, strength)
        told = {"x-clip-fps": f"{made.fps:.6g}", "x-clip-start-s": f"{made.start_s:.6g}"}
        return Response(made.video, media_type="video/mp4", headers=told)
