"""Tests board and alerts of docker/observe: every query asks for metrics and labels that a real server shows, and a
real Prometheus with this configuration answers the board's queries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reward_server.errors import RefreshRejected
from reward_server.serving.local import free_port, started
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import PixelScorer, moving
from tests.reward_server.test_jobs import until
from tests.reward_server.test_metrics import promtool
from tests.reward_server.test_refresh import QUICK, claimed
from tests.reward_server.test_versions import publish
from tests.run_clips import fill
from tests.running import knocking, open_doors, working

OBSERVE = Path(__file__).parents[2] / "docker" / "observe"
BOARD = json.loads((OBSERVE / "grafana" / "board.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((OBSERVE / "rules.yml").read_text())["groups"] for rule in group["rules"]]
BOARD_QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES = BOARD_QUERIES + [rule["expr"] for rule in RULES]

TARGET_LABELS = {"job": "motion-reward"}  # Prometheus adds it

Scrape = dict[str, list[dict[str, str]]]  # the labels of each series, by the name of its metric


def parsed(query: str) -> Any:
    return promql_parser.parse(query.replace("$__rate_interval", "1m"))


def nodes(query: str) -> Iterator[Any]:
    """The parts of a query."""
    found: list[Any] = []
    promql_parser.walk(parsed(query), found.append)
    for node in found:
        yield getattr(node, "vector_selector", node)


def selectors(query: str) -> list[Any]:
    return [node for node in nodes(query) if isinstance(node, promql_parser.VectorSelector)]


def grouped(query: str) -> set[str]:
    """The labels by which a query groups, without `le`."""
    by = [
        node.modifier.labels for node in nodes(query) if isinstance(node, promql_parser.AggregateExpr) and node.modifier
    ]
    return {label for labels in by for label in labels} - {"le"}


def missing(query: str, scrape: Scrape) -> list[str]:
    """What a query asks for that the server does not show."""
    told, labels = [], set(TARGET_LABELS)
    for selector in selectors(query):
        series = [labels | TARGET_LABELS for labels in scrape.get(selector.name, [])]
        for matcher in selector.matchers.matchers:
            pattern = matcher.value if matcher.op == promql_parser.MatchOp.Re else re.escape(matcher.value)
            series = [labels for labels in series if re.fullmatch(pattern, labels.get(matcher.name, ""))]
        if not series:
            told.append(f"{selector.name}{selector.matchers}")
        labels |= {label for given in series for label in given}
    return told + sorted(grouped(query) - labels)


@pytest.fixture
async def scrape(make_settings: MakeSettings, open_queue: OpenQueue) -> Scrape:
    """What a server shows after clips at both doors, a refresh that was rejected and one that was published."""
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    async with open_doors(make_settings()) as doors, knocking(doors) as knocks:
        await queue.worker.refreshes.fail(await claimed(queue, QUICK), RefreshRejected("worse"))
        await publish(queue, "a")
        async with working(doors, PixelScorer()):
            for knock in knocks:
                await knock.score([moving(2)])
        text = (await knocks[0].client.get("/metrics")).text
    found: Scrape = {"up": [{}]}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
        if family.name == "motion_reward_queue_unjudged_jobs":  # it has a series only while jobs wait
            found[family.name] = [{"discriminator_version": "v1"}]
    return found


async def test_every_query_asks_for_what_a_real_server_shows(scrape: Scrape) -> None:
    assert {query: lacking for query in QUERIES if (lacking := missing(query, scrape))} == {}
    assert missing("sum by (route) (motion_reward_ready) + no_such{job='motion-reward'}", scrape) == [
        'no_such{job="motion-reward"}',
        "route",
    ]


async def test_the_board_shows_every_metric(scrape: Scrape) -> None:
    names = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in scrape if name.startswith("motion_reward_")}
    asked = {re.sub(r"_(bucket|sum|count)$", "", one.name) for query in QUERIES for one in selectors(query)}
    assert {re.sub(r"_total$", "", name) for name in names - asked} - {re.sub("_total$", "", n) for n in asked} == set()


def test_the_board_is_what_grafana_provisions() -> None:
    [source] = yaml.safe_load((OBSERVE / "grafana" / "datasource.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert not grouped(target["expr"]) or shown == grouped(target["expr"]), panel["title"]


def test_there_are_five_alerts_and_each_says_what_to_do() -> None:
    assert len(RULES) == 5
    page = (OBSERVE.parents[1] / "docs" / "operations.md").read_text()
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "description"} and f"| `{rule['alert']}` |" in page


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with Debian's package prometheus")
def test_promtool_accepts_the_rules_and_each_alert_fires() -> None:
    assert promtool("check", "config", "--syntax-only", str(OBSERVE / "prometheus.yml")) == ""
    assert promtool("check", "rules", str(OBSERVE / "rules.yml")) == ""
    assert promtool("test", "rules", str(OBSERVE / "rules_test.yml")) == ""


@asynccontextmanager
async def prometheus(server: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus with the stack's configuration and rules, which reads the server at this URL often."""
    config = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    [config["scrape_configs"][0]["static_configs"][0]["targets"]] = [[server.removeprefix("http://")]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(OBSERVE / "rules.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with started([*command, f"--web.listen-address={address}"], {}, stderr=subprocess.DEVNULL):
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1/") as client:
            yield client


async def asked(client: httpx.AsyncClient, path: str, **query: str) -> Any:
    """The data of an answer, or nothing while Prometheus starts."""
    try:
        answer = await client.get(path, params=query)
    except httpx.TransportError:
        return {}
    return answer.json()["data"] if answer.is_success else {}


@pytest.mark.skipif(not shutil.which("prometheus"), reason="it comes with Debian's package prometheus")
async def test_a_real_prometheus_reads_the_server_and_answers_the_board(
    make_settings: MakeSettings, open_queue: OpenQueue, tmp_path: Path
) -> None:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    await queue.worker.refreshes.fail(await claimed(queue, QUICK), RefreshRejected("worse"))
    await publish(queue, "a")
    left = set(BOARD_QUERIES) - {"motion_reward_queue_unjudged_jobs"}  # it has a series only while jobs wait
    async with (
        open_doors(make_settings()) as doors,
        knocking(doors) as knocks,
        working(doors, PixelScorer()),
        prometheus(doors.http_url, tmp_path) as client,
    ):
        await until(lambda: asked(client, "query", query="up"), lambda data: bool(data.get("result")))
        for knock in knocks:
            await knock.score([moving(2)])

        async def unanswered() -> set[str]:
            for query in sorted(left):
                data = await asked(client, "query", query=query.replace("$__rate_interval", "1m"))
                if data.get("result"):
                    left.remove(query)
            return left

        await until(unanswered, lambda queries: not queries)
        await until(lambda: asked(client, "rules"), lambda data: healths(data) == ["ok"] * len(RULES))
        total = 'sum(motion_reward_rewards_total{job="motion-reward"})'
        await until(lambda: asked(client, "query", query=total), lambda data: values(data) == [str(len(knocks))])


def healths(data: Any) -> list[str]:
    """Whether each rule could be evaluated."""
    return [rule["health"] for group in data.get("groups", ()) for rule in group["rules"]]


def values(data: Any) -> list[str]:
    return [series["value"][1] for series in data.get("result", ())]
