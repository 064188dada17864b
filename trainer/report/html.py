"""What the pages of a run and of an evaluation share: one file each, with its style and its clips inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

MAX_CLIPS = 12
MAX_CLIP_BYTES = 24 * 1024**2  # of all clips together, before base64 adds a third
STYLE = (Path(__file__).parent / "page.css").read_text()
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


def document(title: str, body: str) -> str:
    """A whole page. `title` is text, `body` HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>{body}</body></html>\n'
    )


def write_page(path: Path, page: str) -> Path:
    """Write a page, so that no half of it is ever seen."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page)
    partial.replace(path)
    return path


def video(path: Path, told: str) -> str:
    """A clip, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><video controls muted loop playsinline src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def chosen(paths: Sequence[Path]) -> list[Path]:
    """At most MAX_CLIPS files, evenly over the run, and the last of it; fewer if they are large together."""
    num = min(MAX_CLIPS, len(paths))
    picked = [paths[round(at * (len(paths) - 1) / max(1, num - 1))] for at in range(num)]
    while sum(path.stat().st_size for path in picked) > MAX_CLIP_BYTES:
        picked = picked[1::2] if len(picked) > 1 else []
    return picked
