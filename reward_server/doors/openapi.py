"""Prints the HTTP door's OpenAPI document: `python -m reward_server.doors.openapi > docs/openapi.json`.

The committed file is for readers and for tools that generate clients. A test compares it with the served document.
"""

from __future__ import annotations

import json
from typing import Any, cast

from reward_server.doors.access import Access
from reward_server.doors.http_api import create_app
from reward_server.doors.service import Service
from reward_server.settings import Settings


def document() -> dict[str, Any]:
    """The document served at /openapi.json. No Redis is needed, because no route is called."""
    return create_app(cast(Service, None), Settings(), Access(Settings())).openapi()


def text() -> str:
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    print(text(), end="")
