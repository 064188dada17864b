"""Tests the page in a real browser on a real server: one of each for the file. Skipped where there is no Chromium.

Clips are textures made here. What the page says of them is compared with what the server says.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from reward_server.doors.key_file import KeyFile, Scope
from reward_server.evaluation.compare import Measured, compared
from reward_server.faults import NAMES
from reward_server.serving.local import READY, local_server, ready_line, started
from reward_server.settings import PREFIX, Settings
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
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server that requires keys, and a key of it."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("keyed"))
    key = KeyFile(settings.keys_path).create("page", (Scope.SCORE,))
    given = {"DATA_DIR": str(settings.data_dir), "HTTP": "127.0.0.1:0", "GRPC": "127.0.0.1:0", "LOG_LEVEL": "warning"}
    environment = os.environ | {PREFIX + name: value for name, value in given.items()}
    with started([sys.executable, "-m", "reward_server", "serve"], environment, stdout=subprocess.PIPE) as child:
        yield next(word for word in ready_line(child, READY).split() if word.startswith("http://")), key


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
    asked, errors, servers = list[str](), list[str](), set[str]()

    def open_one(address: str = "", at: str = server, **context: Any) -> Page:
        servers.add(at)
        page = browser.new_context(**context).new_page()
        opened.append(page)
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{at}/{address}")
        return page

    yield open_one
    for page in opened:
        page.context.close()
    assert asked
    own = tuple(f"{at}/" for at in servers)
    assert [url for url in asked if not url.startswith((*own, "blob:", "data:"))] == []
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
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    add(page, clips / "slow.mp4")
    expect(page.locator(".card")).to_have_count(3)
    result = result_of(server, opened_job(page))
    reward = result["reward"]
    for name in ("combined", "instantaneous", "long_term"):
        card = page.locator(f'.card[data-reward="{name}"]')
        expect(card.locator(".value")).to_contain_text(f"{reward[name]:+.2f}".replace("-", "−"))
        expect(card).to_contain_text(f"Percentile {reward['standing'][f'{name}_percentile']:.0f}")
    expect(page.locator(".remarks")).to_contain_text(reward["standing"]["nearest"])
    expect(page.locator(".plot")).to_have_count(3)
    expect(page.locator("pre")).to_contain_text(f"{server}/v1/score")
    page.get_by_role("button", name="Copy JSON").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["result"] == result
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    assert download.value.suggested_filename == "slow.json"
    assert json.loads(download.value.path().read_text())["result"] == result


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


def test_progress_is_shown_phase_by_phase_and_each_can_be_cancelled(open_page: Open, clips: Path) -> None:
    page, states, held = open_page(), ["queued"], list[Route]()
    asked, failed = list[str](), list[str]()

    def hold(route: Route) -> None:  # the browser's library takes no method of a list
        held.append(route)

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json={"id": "j", "state": states[-1], "result": None})

    page.route("**/v1/jobs", hold)
    page.route("**/v1/jobs/*", answer)
    page.on("requestfailed", lambda request: failed.append(request.method))
    now, view = page.locator('[aria-current="step"]'), page.locator("#view")
    cancel = page.get_by_role("button", name="Cancel", exact=True)

    add(page, clips / "fast.mp4")
    expect(now).to_have_text("Upload")
    cancel.click()
    expect(view).to_contain_text("Cancelled.")
    assert failed == ["POST"]  # nothing more of it is sent

    for name, phase in (("slow.mp4", "Queue"), ("upright.mp4", "Scoring")):
        add(page, clips / name)
        page.get_by_role("link", name=name).click()
        expect(now).to_have_text("Upload")
        held[-1].fulfill(status=202, json={"jobs": [{"id": name}]})
        expect(now).to_have_text("Queue")
        if phase == "Scoring":
            states.append("running")
            expect(now).to_have_text(phase)
        cancel.click()
        expect(view).to_contain_text("Cancelled. The server may still score it.")
        num = len(asked)
        page.wait_for_timeout(600)  # three times REST_MS of clips.js
        assert len(asked) == num
    expect(page.locator("tr.cancelled")).to_have_count(3)


def test_a_server_with_keys_wants_the_right_one_and_it_stays_in_the_tab(
    open_page: Open, keyed: tuple[str, str], clips: Path
) -> None:
    """The clip that was refused is sent again. Copies and comparison work with the key too."""
    url, key = keyed
    page = open_page(at=url, viewport={"width": 360, "height": 700})
    notice, field = page.locator("#notice"), page.get_by_label("API key", exact=True)
    add(page, clips / "fast.mp4")
    for wrong in ("", "mr_wrong", f"{key[:-1]}{'A' if key[-1] != 'A' else 'B'}"):
        headers = {"authorization": f"Bearer {wrong}"} if wrong else {}
        if wrong:
            field.fill(wrong)
            page.keyboard.press("Enter")
        error = httpx.get(f"{url}/v1/model", headers=headers).json()["error"]
        assert error["code"] == "unauthenticated"
        expect(notice).to_have_text(error["message"])
        notice.click(trial=True)  # the field does not cover it
    field.fill(key)
    page.keyboard.press("Enter")
    expect(notice).to_be_hidden()
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator("pre")).to_contain_text('-H "Authorization: Bearer $MOTION_REWARD_API_KEY"')
    page.get_by_role("button", name="Make a faulty twin").click()
    expect(page.locator("tr[data-reward]")).to_have_count(3)
    page.reload()
    expect(page.locator("tr[data-reward]")).to_have_count(3)

    stored = page.evaluate("[sessionStorage.getItem('motion-reward-key'), localStorage.length, document.cookie]")
    assert stored == [key, 0, ""]
    assert key not in page.url and key not in page.content()
    other = page.context.new_page()  # another tab of the same browser
    other.goto(page.url)
    expect(other.locator("#notice")).to_be_visible()
    expect(other.get_by_label("API key", exact=True)).to_have_value("")
    page.get_by_text("API key").first.click()
    page.get_by_role("button", name="Forget").click()
    assert page.evaluate("sessionStorage.getItem('motion-reward-key')") is None


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


def signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\u2212")


@pytest.mark.parametrize("windows", [(2, 2), (2, 9), (3, 4), (6, 6), (30, 40)])
def test_the_margin_is_that_of_the_command(open_page: Open, server: str, windows: tuple[int, int]) -> None:
    page = open_page()
    page.goto(server)
    for errors in ((0.3, 0.3), (0.2, 0.3), (0.1, 0.7), (0.0, 0.2)):
        told = page.evaluate("async (args) => (await import('/page/welch.js')).margin(...args)", [errors, windows])
        ends = (
            Measured(clip=name, reward=0.0, error=error, freedom=num - 1, percentile=None)
            for name, error, num in zip("ab", errors, windows, strict=True)
        )
        ours = compared(*ends).margin
        assert 0.99 * ours < told < 1.12 * ours  # t is interpolated between whole degrees of freedom, from above


def test_differences_are_those_of_the_answers_and_a_clipped_reward_is_marked(
    open_page: Open, server: str, jobs: list[str]
) -> None:
    """The first answer is changed on its way to the browser: it is clipped. Both get standard errors."""
    page, rewards = open_page(), dict[str, dict[str, Any]]()

    def changed(route: Route) -> None:
        job = route.fetch().json()
        if reward := job["result"] and job["result"]["reward"]:
            reward["clipped"] = job["id"] == jobs[0]
            errors = {"combined": 1e-4, "instantaneous": 99.0, "long_term": 1e-4}
            reward["standard_error"] = errors | {"num_windows": 2, "num_draws": 1}
            if job["id"] == jobs[1]:  # a second window, which A has not; only its long-term logit differs more
                first = reward["windows"][0]
                logits = first["logits"] | {"long_term": first["logits"]["long_term"] - 99}
                reward["windows"] = [first, first | {"start_s": first["start_s"] + 3, "logits": logits}]
                [seen] = reward["explanation"]["windows"]
                later = seen | {"times_s": [time_s + 3 for time_s in seen["times_s"]]}
                reward["explanation"]["windows"] = [seen, later]
            rewards[job["id"]] = reward
        route.fulfill(json=job)

    page.route("**/v1/jobs/*", changed)
    page.goto(f"{server}/#jobs={','.join(jobs)}&compare={jobs[0]},{jobs[1]}")
    rows = page.locator("tr[data-reward]")
    expect(rows).to_have_count(3)
    a, b = (rewards[job_id] for job_id in jobs[:2])
    for name in ("combined", "instantaneous", "long_term"):
        difference = b[name] - a[name]
        verdict = "not different" if name == "instantaneous" else f"{'B' if difference > 0 else 'A'} is higher"
        cells = page.locator(f'tr[data-reward="{name}"] td')
        shown = [signed(value) for value in (a[name], b[name], difference)]
        expect(cells).to_have_text([*shown, "140.01" if name == "instantaneous" else "0.00", verdict])
    first, other = (reward["windows"][0]["logits"] for reward in (a, b))
    told = [
        signed(value) for h in ("instantaneous", "long_term") for value in (first[h], other[h], other[h] - first[h])
    ]
    page.set_viewport_size({"width": 360, "height": 700})
    cut = "one => one.scrollWidth > one.clientWidth"
    assert not page.get_by_role("region", name="Rewards").evaluate(cut)  # the verdict is the last column
    windows = page.get_by_role("region", name="Windows").locator("tbody tr")
    expect(windows).to_have_count(2)
    expect(windows.first.locator("td")).to_have_text(told)
    expect(windows.nth(1).locator("td").last.locator("mark")).to_have_count(1)
    expect(windows.first.locator("td").last.locator("mark")).to_have_count(0)

    expect(page.locator("tr .flag")).to_have_text(["clipped"])
    page.locator("#list tbody a").first.click()
    expect(page.locator(".remarks .flag").first).to_have_text("Clipped: a logit is outside -10 to 10.")
    expect(page.locator("pre")).to_contain_text("video=@CLIP ")  # of a job from an address, no name is known


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
