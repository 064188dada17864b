"""Finds the API key that a client sends: an argument, or the environment. A key never shows in a repr or an error."""

from __future__ import annotations

import os
import re
from pathlib import Path

VARIABLE = "MOTION_REWARD_API_KEY"
PLAIN = re.compile(r"[A-Za-z0-9._~+/=-]{1,256}")  # what an Authorization header may hold


class ApiKey:
    """A key, to be sent as a bearer token."""

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def bearer(self) -> str:
        """The value of `Authorization`."""
        return f"Bearer {self._text}"

    @property
    def id(self) -> str:
        """The public part of a key of this server: what its runs are named by. Empty for a key of another form."""
        mark, _, rest = self._text.partition("_")
        return rest.partition("_")[0] if mark == "mrk" else ""

    def __repr__(self) -> str:
        return "ApiKey(hidden)"


def api_key_of(given: str | None) -> ApiKey | None:
    """The given key, else the one in MOTION_REWARD_API_KEY, else None. Raises ValueError for what cannot be a key."""
    text = os.environ.get(VARIABLE, "").strip() if given is None else given.strip()
    if not text:
        return None
    if not PLAIN.fullmatch(text):
        raise ValueError(f"the API key has characters that a key cannot have; copy it again (argument or {VARIABLE})")
    return ApiKey(text)


def read_api_key(path: Path) -> str:
    """The key in a file. Raises OSError, or ValueError if the file is empty."""
    if not (text := path.read_text(encoding="utf-8", errors="replace").strip()):
        raise ValueError(f"there is no API key in {path}")
    return text
