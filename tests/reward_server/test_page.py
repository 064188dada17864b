"""Tests the page in a real browser on a real server: one of each for the file. Skipped where there is no Chromium.

Clips are textures made here. What the page says of them is compared with what the server says.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from reward_server.faults import NAMES
from reward_server.serving.local import local_server
from reward_server.settings import Settings
from tests.media import texture, video

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH; apt install chromium"),
]
STATIC = Path(__file__).parents[2] / "reward_server" / "page" / "static"
FIRST_VIEW_BYTES = 200_000
PATIENCE_MS = 60_000  # the machine may be busy
FPS = 12
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with local_server(Settings()) as server:
        yield server.http_url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: str) -> Iterator[Open]:
    """Opens the page in a new context. In the end, it must have asked no other server and met no error."""
    opened: list[Page] = []
    asked, errors = list[str](), list[str]()

    def open_one(address: str = "", **context: Any) -> Page:
        page = browser.new_context(**context).new_page()
        opened.append(page)
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server}/{address}")
        return page

    yield open_one
    for page in opened:
        page.context.close()
    assert asked
    assert [url for url in asked if not url.startswith((f"{server}/", "blob:", "data:"))] == []
    assert errors == []


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "slow.mp4").write_bytes(video(texture(24, 144, 256), fps=FPS))
    (folder / "fast.mp4").write_bytes(video(texture(16, 144, 256, seed=1, step=5), fps=FPS))
    (folder / "old.avi").write_bytes(video(texture(12, 144, 256, seed=2), fps=FPS, container="avi", codec="mpeg4"))
    (folder / "upright.mp4").write_bytes(video(texture(12, 320, 96, seed=3), fps=FPS))
    (folder / "bad.mp4").write_bytes(b"no video " * 99)
    return folder


@pytest.fixture(scope="module")
def jobs(server: str, clips: Path) -> list[str]:
    """The ids of two scored clips and a bad one."""
    names = ("slow.mp4", "fast.mp4", "bad.mp4")
    files = [("video", (name, (clips / name).read_bytes())) for name in names]
    answer = httpx.post(f"{server}/v1/jobs", files=files, data={"explain": "true"})
    ids = [job["id"] for job in answer.json()["jobs"]]
    for job_id in ids:
        result_of(server, job_id)
    return ids


def result_of(server: str, job_id: str) -> dict[str, Any]:
    job = httpx.get(f"{server}/v1/jobs/{job_id}", params={"wait_s": 60}, timeout=90).json()
    assert job["state"] == "done", job
    return dict(job["result"])


def add(page: Page, *paths: Path) -> None:
    page.set_input_files("#files", paths)


def hand_over(page: Page, event: str, path: Path) -> None:
    """Drop or paste a file, as a browser tells the page of it."""
    hand = """([event, name, base64]) => {
        const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], name, { type: "video/mp4" }));
        const more = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
        document.querySelector("#drop").dispatchEvent(new (event === "drop" ? DragEvent : ClipboardEvent)(event, more));
    }"""
    page.evaluate(hand, [event, path.name, base64.b64encode(path.read_bytes()).decode()])


def opened_job(page: Page) -> str:
    expect(page).to_have_url(re.compile("open="))  # the address follows a little later
    found = re.search(r"open=([^&]+)", page.url)
    assert found, page.url
    return found[1]


def with_picture(page: Page) -> Locator:
    """The first picture of the view, once its frames can be seen."""
    expect(page.locator(".stage video").first).to_be_attached()
    return page.locator(".stage canvas").first


def opacity(canvas: Locator, x_share: float, y_share: float) -> int:
    """The alpha of what is drawn over the picture at a place, given as shares of its width and height."""
    read = """(canvas, [x, y]) => canvas.getContext("2d")
        .getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data[3]"""
    return int(canvas.evaluate(read, [x_share, y_share]))


# --- one clip -----------------------------------------------------------------------------------


def test_a_clip_is_scored_and_its_rewards_are_those_of_the_server(open_page: Open, server: str, clips: Path) -> None:
    page = open_page()
    add(page, clips / "slow.mp4")
    expect(page.locator(".card")).to_have_count(3)
    reward = result_of(server, opened_job(page))["reward"]
    for name in ("combined", "instantaneous", "long_term"):
        card = page.locator(f'.card[data-reward="{name}"]')
        expect(card.locator(".value")).to_contain_text(f"{reward[name]:+.2f}".replace("-", "−"))
        expect(card).to_contain_text(f"Percentile {reward['standing'][f'{name}_percentile']:.0f}")
    expect(page.locator(".remarks")).to_contain_text(reward["standing"]["nearest"])
    expect(page.locator(".plot")).to_have_count(3)
    expect(page.locator("pre")).to_contain_text(f"{server}/v1/score")


def test_tracks_are_drawn_where_they_are_and_can_be_hidden(open_page: Open, server: str, clips: Path) -> None:
    page = open_page()
    add(page, clips / "slow.mp4")
    canvas = with_picture(page)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".time")).to_contain_text("frame 4 of 24")
    result = result_of(server, opened_job(page))
    source = result["provenance"]["source"]
    tracks = result["reward"]["explanation"]["windows"][0]["tracks"]
    places = [
        ((track["x_px"][3] + 0.5) / source["width_px"], (track["y_px"][3] + 0.5) / source["height_px"])
        for track in tracks
        if track["visibility"][3] >= 0.5
    ]
    inside = [place for place in places if all(0.02 < share < 0.98 for share in place)]
    assert len(inside) > 20
    assert all(opacity(canvas, *place) > 200 for place in inside)
    page.keyboard.press("t")
    assert not any(opacity(canvas, *place) for place in inside)
    page.keyboard.press("h")
    hazy = [opacity(canvas, (x + 0.5) / 16, (y + 0.5) / 9) for x in range(16) for y in range(9)]
    assert 0 < sum(map(bool, hazy)) < len(hazy)


def test_a_bad_file_is_refused_in_the_servers_own_words(open_page: Open, server: str, clips: Path) -> None:
    page = open_page()
    add(page, clips / "bad.mp4")
    notice = page.locator("#view .notice")
    expect(notice).to_be_visible()
    error = result_of(server, opened_job(page))["error"]
    expect(notice).to_contain_text(error["message"])
    expect(notice).to_contain_text(error["code"])


def test_an_upright_clip_keeps_its_shape_and_its_end_is_no_beginning(open_page: Open, clips: Path) -> None:
    page = open_page(viewport={"width": 1200, "height": 600})
    add(page, clips / "upright.mp4")
    with_picture(page)
    box = page.locator(".stage").bounding_box()
    assert box and box["width"] / box["height"] == pytest.approx(96 / 320, rel=0.02) and box["height"] <= 0.71 * 600
    page.keyboard.press("End")
    expect(page.locator(".time")).to_contain_text("frame 12 of 12")
    page.wait_for_timeout(500)
    assert page.locator(".stage video").evaluate("video => video.paused")


def test_a_clip_that_is_gone_cannot_be_chosen(open_page: Open, jobs: list[str]) -> None:
    page = open_page(f"#jobs={','.join(jobs)}&open={jobs[0]}")
    other = page.locator(".compare-box select").first
    expect(other.locator("option")).to_have_count(1)
    page.get_by_role("button", name=f"Remove clip {jobs[1][-8:]}").click()
    expect(other).to_be_disabled()
    expect(other.locator("option")).to_have_count(0)


def test_a_file_that_no_browser_plays_is_shown_as_a_copy(open_page: Open, clips: Path) -> None:
    page = open_page()
    add(page, clips / "old.avi")
    with_picture(page)
    expect(page.locator(".picture-note")).to_contain_text("copy with 12 frames per second")


def test_the_speed_is_set_and_a_click_in_a_plot_goes_to_its_time(open_page: Open, clips: Path) -> None:
    page = open_page()
    add(page, clips / "slow.mp4")
    with_picture(page)
    page.get_by_label("Speed", exact=True).select_option("0.25×")
    assert page.locator(".stage video").evaluate("video => video.playbackRate") == 0.25
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    left, width = box["x"] + 44, box["width"] - 44 - 14  # MARGIN of plots.js
    for share in (0.52, 0.27):
        page.mouse.click(left + share * width, box["y"] + 40)
        expect(page.locator(".time")).to_contain_text(f"frame {int(share * 24) + 1} of 24")
    page.mouse.down()
    page.mouse.move(left + 0.77 * width, box["y"] + 40)
    page.mouse.up()
    expect(page.locator(".time")).to_contain_text("frame 19 of 24")


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_the_command_that_is_shown_scores_the_clip_again(
    open_page: Open, server: str, clips: Path, tmp_path: Path
) -> None:
    clip = tmp_path / 'it\'s "one".mp4'
    shutil.copyfile(clips / "slow.mp4", clip)
    page = open_page()
    add(page, clip)
    command = page.locator("pre").inner_text()
    answer = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
    shown = result_of(server, opened_job(page))["reward"]
    again = json.loads(answer)["results"][0]["reward"]
    assert again["explanation"]["windows"]
    assert again["combined"] == pytest.approx(shown["combined"], abs=1e-6)


def test_progress_is_shown_phase_by_phase_and_can_be_cancelled(open_page: Open, clips: Path) -> None:
    page, states, held = open_page(), ["queued", "running"], list[Route]()

    def hold(route: Route) -> None:  # the browser's library takes no method of a list
        held.append(route)

    page.route("**/v1/jobs", hold)
    page.route("**/v1/jobs/*", lambda route: route.fulfill(json={"id": "j", "state": states[0], "result": None}))
    add(page, clips / "fast.mp4")
    now = page.locator('[aria-current="step"]')
    expect(now).to_have_text("Upload")
    held[0].fulfill(status=202, json={"jobs": [{"id": "j"}]})
    expect(now).to_have_text("Queue")
    states.pop(0)
    expect(now).to_have_text("Scoring")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#view")).to_contain_text("Cancelled.")


def test_the_key_is_sent_and_stays_in_the_tab(open_page: Open, server: str) -> None:
    page, sent = open_page(), list[str | None]()

    def refuse(route: Route) -> None:
        sent.append(route.request.headers.get("authorization"))
        route.fulfill(status=401, json={"error": {"code": "unauthenticated", "message": "no key; send one"}})

    page.route("**/v1/model", refuse)
    page.reload()
    expect(page.locator("#notice")).to_have_text("no key; send one")
    page.get_by_label("API key", exact=True).fill("mr_secret")
    page.keyboard.press("Enter")
    with page.expect_request("**/v1/model") as again:
        page.reload()
    assert again.value.headers["authorization"] == "Bearer mr_secret"
    assert sent[0] is None
    stored = page.evaluate("[sessionStorage.getItem('motion-reward-key'), localStorage.length, document.cookie]")
    assert stored == ["mr_secret", 0, ""]
    assert "mr_secret" not in page.url


# --- two clips ----------------------------------------------------------------------------------


def times(page: Page) -> list[float]:
    return [float(time) for time in page.locator(".stage video").evaluate_all("all => all.map(v => v.currentTime)")]


def test_two_clips_are_compared_in_step(open_page: Open, clips: Path) -> None:
    page = open_page()
    add(page, clips / "slow.mp4", clips / "fast.mp4")
    for name in ("slow.mp4", "fast.mp4"):
        page.get_by_label(f"Compare {name}").check()
    page.get_by_role("button", name="Compare two").click()
    expect(page.locator(".stage video")).to_have_count(2)
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert times(page) == pytest.approx([5.5 / FPS] * 2, abs=0.1 / FPS)
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.locator(".time")).not_to_contain_text("frame 6 ")
    together = """() => new Promise((resolve) => {
        const drifts = [], look = () => {
            const [a, b] = document.querySelectorAll(".stage video");
            if (!a.paused && !b.paused) drifts.push(Math.abs(a.currentTime - b.currentTime));
            drifts.length < 20 ? requestAnimationFrame(look) : resolve(drifts);
        };
        look();
    })"""
    assert max(page.evaluate(together)) < 3 / FPS  # while both play; a machine that is busy drops frames
    page.keyboard.press("Space")
    first, second = times(page)
    last = 15.5 / FPS  # of the shorter clip
    assert min(first, last) == pytest.approx(second, abs=0.1 / FPS)
    expect(page.locator("tr[data-reward]")).to_have_count(3)
    expect(page.locator(".plot")).to_have_count(3)


def test_a_faulty_twin_is_made_and_compared(open_page: Open, clips: Path) -> None:
    page = open_page()
    add(page, clips / "fast.mp4")
    page.locator('select[name="fault"]').select_option("static")
    page.get_by_role("button", name="Make a faulty twin").click()
    expect(page.locator(".stage video")).to_have_count(2)
    expect(page.locator("h2", has_text="fast.plain.mp4 and fast.static-1.mp4")).to_be_visible()
    difference = page.locator('tr[data-reward="long_term"] td').nth(2)
    expect(difference).to_contain_text("−")  # the fault costs reward


# --- many clips ---------------------------------------------------------------------------------


def test_clips_are_dropped_and_pasted_and_get_pictures_in_the_list(open_page: Open, clips: Path) -> None:
    page = open_page()
    hand_over(page, "drop", clips / "slow.mp4")
    expect(page.locator("h2", has_text="slow.mp4")).to_be_visible()
    hand_over(page, "paste", clips / "upright.mp4")
    expect(page.locator("tr.ok")).to_have_count(2)
    pictures = page.locator(".thumb img")
    expect(pictures).to_have_count(2)
    sizes = pictures.evaluate_all("all => all.map(({ naturalWidth, naturalHeight }) => [naturalWidth, naturalHeight])")
    assert sizes == [[96, 54], [16, 54]]


def test_the_list_sorts_and_downloads(open_page: Open, server: str, jobs: list[str]) -> None:
    page = open_page(f"#jobs={','.join(jobs)}")
    expect(page.locator("tr.ok")).to_have_count(2)
    expect(page.locator("tr.error")).to_have_count(1)
    rewards = [result_of(server, job_id)["reward"] for job_id in jobs]
    page.get_by_role("button", name="Combined").click()
    expect(page.locator('th[aria-sort="descending"]')).to_have_text("Combined")
    values = sorted((reward["combined"] for reward in rewards if reward), reverse=True)
    expect(page.locator("td.combined")).to_have_text([*(f"{v:+.2f}".replace("-", "−") for v in values), ""])
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["id"] for row in rows] == jobs
    assert [row["outcome"] for row in rows] == ["ok", "ok", "invalid"]
    assert float(rows[0]["combined"]) == rewards[0]["combined"]


def test_jobs_survive_a_reload(open_page: Open, clips: Path) -> None:
    page = open_page()
    add(page, clips / "slow.mp4")
    expect(page.locator(".card")).to_have_count(3)
    page.reload()
    expect(page.locator("h2", has_text="slow.mp4")).to_be_visible()
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator(".stage video")).to_have_count(0)
    page.get_by_role("button", name="Next frame").click()  # tracks move without a picture too
    expect(page.locator(".time")).to_contain_text("frame 2 of 24")
    page.get_by_label("Choose slow.mp4 again").set_input_files(clips / "slow.mp4")
    with_picture(page)


# --- for everyone -------------------------------------------------------------------------------


def test_everything_can_be_done_with_the_keyboard(open_page: Open, clips: Path) -> None:
    page = open_page()
    page.on("filechooser", lambda chooser: None)  # so that Chromium hands choosers over long before the key is pressed
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "files":
            break
    expect(page.locator("#files")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([clips / "slow.mp4", clips / "fast.mp4"])
    expect(page.locator("tr.ok")).to_have_count(2)
    page.get_by_label("Compare slow.mp4").focus()
    for key in ("Tab", "Enter"):  # the clip's link
        page.keyboard.press(key)
    expect(page.locator("#view h2")).to_be_focused()
    with_picture(page)
    for key, told in (("End", "frame 24 of 24"), ("Shift+ArrowLeft", "frame 14 of 24"), ("Home", "frame 1 of 24")):
        page.keyboard.press(key)
        expect(page.locator(".time")).to_contain_text(told)
    page.keyboard.press("h")
    expect(page.get_by_label("Heatmap")).to_be_checked()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("Space")
    page.get_by_label("Frame", exact=True).focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".time")).to_contain_text("frame 2 of 24")


def serious(page: Page) -> list[str]:
    """The serious findings of axe-core, each with the elements that it is about."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_views_are_accessible_and_fit_a_telephone(open_page: Open, jobs: list[str], scheme: str) -> None:
    listed = f"#jobs={','.join(jobs)}"
    page = open_page(color_scheme=scheme, reduced_motion="reduce", viewport={"width": 360, "height": 700})
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 384) == (scheme == "dark")
    for address, ready in (
        ("", "#drop"),
        (f"{listed}&open={jobs[2]}", "#view .notice"),
        (f"{listed}&open={jobs[0]}", ".card"),
        (f"{listed}&compare={jobs[0]},{jobs[1]}", "tr[data-reward]"),
    ):
        page.goto(page.url.partition("#")[0] + address)
        expect(page.locator(ready).first).to_be_visible()
        assert serious(page) == [], address
        assert page.evaluate("document.documentElement.scrollWidth") == 360, address
    moving = "all => all.filter(one => getComputedStyle(one).transitionDuration !== '0s').length"
    assert page.locator("button").evaluate_all(moving) == 0


def test_the_first_view_is_small(browser: Browser, server: str) -> None:
    page, bodies = browser.new_page(), list[int]()
    page.on("response", lambda answer: bodies.append(len(answer.body())))
    page.goto(server, wait_until="networkidle")
    page.close()
    assert len(bodies) > 10
    assert sum(bodies) < FIRST_VIEW_BYTES


def test_the_page_names_the_faults_of_the_ladder() -> None:
    listed = re.findall(r"^  (\w+): ", (STATIC / "faults.js").read_text(), flags=re.M)
    assert sorted(listed) == sorted(NAMES)
