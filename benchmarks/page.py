"""Measures how long the page blocks the browser with many clips in its list: `python -m benchmarks.page --clip CLIP`.

A real server scores the clip once. Then the browser gets this answer, explanation included, for every clip of a list,
so that the page's own work is measured and not the scoring. The clips come in, the list is sorted by every column and
scrolled, and a clip is opened. Chromium reports every task over 50 ms. With `--slowdown N` it runs the page N times
slower, as on a slow or busy machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, Route, expect, sync_playwright

from reward_server.serving.local import local_server
from reward_server.settings import Settings

WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((task) => task.duration)))
  .observe({ type: "longtask", buffered: true });
"""
COLUMNS = ("Clip", "State", "Combined", "Instantaneous", "Long-term", "Percentile")
PATIENCE_MS = 300_000
SETTLE_MS = 500  # after each act


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the page's long tasks with many clips in its list.")
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--num", type=int, default=100, help="clips in the list (100)")
    parser.add_argument("--slowdown", type=float, default=1, help="how many times slower Chromium makes the page (1)")
    arguments = parser.parse_args()
    expect.set_options(timeout=PATIENCE_MS)
    with local_server(Settings()) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 860})
        page.add_init_script(WATCH)
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": arguments.slowdown})
        job = scored(server.http_url, arguments.clip)
        answer_from(page, job)
        page.goto(server.http_url)
        with tempfile.TemporaryDirectory() as folder:
            names = [Path(folder) / f"clip-{number}{arguments.clip.suffix}" for number in range(arguments.num)]
            long_ms = acts(page, [Path(shutil.copy(arguments.clip, name)) for name in names])
        browser.close()
    told = {"clips": arguments.num, "slowdown": arguments.slowdown, "result_bytes": len(json.dumps(job))}
    print(json.dumps(told | {"long_tasks_ms": long_ms}))


def scored(url: str, clip: Path) -> dict[str, Any]:
    """The job of the clip, once it is done."""
    files = {"video": (clip.name, clip.read_bytes())}
    job_id = httpx.post(f"{url}/v1/jobs", files=files, data={"explain": "true"}).json()["jobs"][0]["id"]
    return dict(httpx.get(f"{url}/v1/jobs/{job_id}", params={"wait_s": 60}, timeout=90).json())


def answer_from(page: Page, job: dict[str, Any]) -> None:
    """Answer every upload and every question about a job at once, with this job's result."""
    numbers = itertools.count()

    def accept(route: Route) -> None:
        route.fulfill(status=202, json={"jobs": [{"id": f"job-{next(numbers)}"}]})

    page.route("**/v1/jobs", accept)
    page.route("**/v1/jobs/*", lambda route: route.fulfill(json=job))


def acts(page: Page, copies: Sequence[Path]) -> dict[str, list[float]]:
    """Durations of the long tasks in milliseconds, by what was done."""
    page.set_input_files("#files", copies)
    expect(page.locator("tr.ok")).to_have_count(len(copies))
    expect(page.locator(".thumb img")).to_have_count(len(copies))
    found = {"taking clips in": taken(page)}
    for column in COLUMNS:
        page.get_by_role("button", name=column, exact=True).click()
    found["sorting"] = taken(page)
    for _ in range(10):
        page.mouse.wheel(0, 700)
        page.wait_for_timeout(50)
    found["scrolling"] = taken(page)
    page.locator("#list tbody a").first.click()
    expect(page.locator(".card")).to_have_count(3)
    found["opening"] = taken(page)
    return found


def taken(page: Page) -> list[float]:
    page.wait_for_timeout(SETTLE_MS)
    return [round(float(task), 1) for task in page.evaluate("longTasks.splice(0)")]


if __name__ == "__main__":
    main()
