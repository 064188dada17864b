"""The OpenAPI document of the HTTP door as a command: `python -m reward_server.doors.openapi > docs/openapi.json`.

The committed file is for readers and generators of clients; a test compares it with what the door serves.
"""

from __future__ import annotations

import json
from typing import Any, cast

from reward_server.doors.http_api import create_app
from reward_server.doors.service import Service
from reward_server.settings import Settings


def document() -> dict[str, Any]:
    """As served at /openapi.json. It needs no Redis: routes are described, and none is called."""
    return create_app(cast(Service, None), Settings()).openapi()


def text() -> str:
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    print(text(), end="")
