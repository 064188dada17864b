"""Tests the recipe's gate: which figures it reads from the reports, and that nothing passes by being absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.recipe.__main__ import app
from experiments.recipe.gate import GLIDES, HELD, Judgement, judged, read_report
from protos.json_codec import to_json
from reward_server.errors import BadRequest
from reward_server.evaluation.degenerates import KINDS
from reward_server.pipeline.model import described
from reward_server.profiles.discriminators import SHIPPED, load_discriminators
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.settings import Settings

MODEL = {"discriminator_version": "embedded-9", "weights_digest": "abc"}


def share(right: int, pairs: int = 100) -> dict[str, Any]:
    return {"right": right, "pairs": pairs, "fraction": right / pairs}


def sanity(strong: int) -> dict[str, Any]:
    rows = [
        {"reward": "long_term", "name": "all but retimed", "by_strength": {"1.0": share(1)}},
        {"reward": "combined", "name": "all", "by_strength": {"1.0": share(2)}},
        {"reward": "combined", "name": "all but retimed", "by_strength": {"0.25": share(3), "1.0": share(strong)}},
    ]
    return {"model": MODEL, "figures": rows}


def attack(*, held: int, glides: int, gain: float = 0.25, evaluations: int = 48) -> dict[str, Any]:
    kinds = {"real": 0} | dict.fromkeys(HELD, held) | dict.fromkeys(GLIDES, glides)
    rows = [
        {"value": value, "kind": kind, "disguise": disguise, "plain": share(right if value == "combined" else 0)}
        for value in ("long_term", "combined")
        for kind, right in kinds.items()
        for disguise in ("none", "noise 1")
    ]
    gains = [{"search": "look", "mean": 0.9}, {"search": "best", "mean": gain}]
    return {"model": MODEL, "figures": rows, "gains": gains, "budget": {"evaluations": evaluations}}


def labelled(*, rho: float, given: float | None, alike: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "amount": [{"value": "combined", "label": label, "rho": rho} for label in ("real", "generated")],
        "human": [{"value": "combined", "label": "generated", "plain": 0.9, "given_amount": given}],
        "pairs": [
            {"value": "combined", "moves": "all", **share(99)},
            {"value": "combined", "moves": "alike", **share(alike)},
        ],
    }


def test_every_kind_of_degenerate_is_judged() -> None:
    assert {*HELD, *GLIDES} == KINDS.keys()


def test_a_report_of_another_command_holds_no_figure() -> None:
    assert not any(row.passed for row in judged(attack(held=100, glides=100), sanity(100), {}))


def test_good_reports_pass() -> None:
    rows = judged(sanity(96), attack(held=91, glides=90), labelled(rho=-0.3, given=0.4, alike=53))
    assert [row.name for row in rows if not row.passed] == []
    assert [row.value for row in rows] == [0.96, 0.91, 0.90, 0.25, -0.3, -0.3, 0.4, 0.53]


@pytest.mark.parametrize(
    ("documents", "missed"),
    [
        ((sanity(94), attack(held=91, glides=90)), "real above strong faults"),
        ((sanity(96), attack(held=89, glides=90)), "real above held copies"),
        ((sanity(96), attack(held=91, glides=89)), "real above glides"),
        ((sanity(96), attack(held=91, glides=90, gain=0.26)), "gain of the search"),
        ((sanity(96), attack(held=91, glides=90, evaluations=24)), "gain of the search"),
        ((sanity(96), attack(held=91, glides=90), labelled(rho=-0.31, given=0.4, alike=53)), "amount, generated"),
        ((sanity(96), attack(held=91, glides=90), labelled(rho=0.31, given=0.4, alike=53)), "amount, real"),
        ((sanity(96), attack(held=91, glides=90), labelled(rho=0, given=None, alike=53)), "people's ratings"),
        ((sanity(96), attack(held=91, glides=90), labelled(rho=0, given=0.4, alike=51)), "pairs that move alike"),
    ],
)  # fmt: skip
def test_each_figure_can_miss(documents: tuple[dict[str, Any], ...], missed: str) -> None:
    rows = judged(*documents, *[{}] * (3 - len(documents)))
    assert any(missed in row.name for row in rows if not row.passed)


def test_what_is_not_measured_does_not_pass() -> None:
    rows = judged({}, {}, {})
    assert len(rows) == 8
    assert not any(row.passed for row in rows)
    assert not Judgement(name="x", value=float("nan"), limit=0.3, bound="size_at_most").passed
    assert Judgement(name="x", value=-0.9, limit=0.25, bound="at_most").passed


def test_reports_of_different_discriminators_are_refused(tmp_path: Path) -> None:
    other = {**sanity(96), "model": {"discriminator_version": "embedded-8"}}
    with pytest.raises(BadRequest, match=r"embedded-8.*embedded-9"):
        judged(other, attack(held=91, glides=90), {})
    (tmp_path / "a.json").write_text("no json")
    with pytest.raises(BadRequest, match=r"a.json is not a report"):
        read_report(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BadRequest, match=r"names no model"):
        read_report(tmp_path / "a.json")


def test_reports_of_other_weights_of_that_name_are_refused() -> None:
    reports = (sanity(96), attack(held=91, glides=90), {})
    assert judged(*reports, weights="abc")
    with pytest.raises(BadRequest, match=r"not of these weights \(xyz"):
        judged(*reports, weights="xyz")


def test_labelled_clips_that_were_trained_on_are_refused() -> None:
    rows = [{"source": "made/here"}, {"source": "made/there"}]
    document = {**labelled(rho=0, given=0.5, alike=60), "rows": rows}
    assert judged({}, {}, document, trained_on={"made/elsewhere"})
    for name in ("made/there", "https://github.com/Made/There.git"):
        with pytest.raises(BadRequest, match=r"clips of \['made/there'\], which the recipe trains on"):
            judged({}, {}, document, trained_on={name})


def test_the_command_tells_and_fails(tmp_path: Path) -> None:
    files = ["--checkpoint", str(SHIPPED["embedded"])]
    profile = EmbeddedProfile()
    model = described(profile, load_discriminators(profile), profile.sampling, Settings())
    for name, document in (
        ("sanity", sanity(96)),
        ("attack", attack(held=91, glides=90)),
        ("labelled", labelled(rho=0.1, given=0.3, alike=53)),
    ):
        document["model"] = to_json(model)
        (tmp_path / name).write_text(json.dumps(document))
        files += [f"--{name}", str(tmp_path / name)]
    done = CliRunner().invoke(app, ["gate", *files])
    assert done.exit_code == 1
    line = json.loads(done.stdout.strip().splitlines()[-1])
    assert [row["figure"] for row in line["gate"] if not row["passed"]] == ["people's ratings, given amount"]
    assert "not to be published" in done.stderr
    good = {**labelled(rho=0.1, given=0.4, alike=53), "model": to_json(model)}
    (tmp_path / "labelled").write_text(json.dumps(good))
    assert CliRunner().invoke(app, ["gate", *files]).exit_code == 0
    (tmp_path / "labelled").write_text(json.dumps({**good, "rows": [{"source": "webrtc/samples"}]}))
    done = CliRunner().invoke(app, ["gate", *files])
    assert done.exit_code == 1
    assert "webrtc/samples" in done.stderr
