"""Tests labelled folders, strata, the figures of the validity report on cases worked by hand, and its command."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from reward_server.data.labelled import HUMAN, INDEX, PAIRS, RATING, JudgedPair, LabelledClip, read_labelled
from reward_server.errors import BadRequest
from reward_server.evaluation import labelled, validity
from reward_server.evaluation.report import Outputs
from reward_server.evaluation.scoring import RewardSource
from reward_server.evaluation.strata import balanced, paired_auc, rate_groups
from reward_server.evaluation.validity import Judged, partial_spearman, spearman, within_spearman
from reward_server.settings import Settings
from tests.media import texture, video
from tests.plain_scorer import PlainScorer

JUMPER = "AnimateDiff/ModelScope/VC, with and without Jumper"  # too long for a line beside its figures


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def entry(path: str, label: str, generator: str = "", source: str = "one", split: str = "dev") -> dict[str, object]:
    return {"path": path, "label": label, "generator": generator, "source_repo": source, "split": split}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two real clips that move evenly and two generated ones that jump about, at one rate, with ratings and a pair."""
    for seed in range(2):
        frames = texture(16, 96, 144, seed=seed)
        (tmp_path / f"even{seed}.mp4").write_bytes(video(frames, fps=12))
        (tmp_path / f"jumpy{seed}.mp4").write_bytes(video(frames[np.random.default_rng(seed).permutation(16)], fps=12))
    rows = [entry(f"even{n}.mp4", "real", source=f"film{n}") | {"kind": ("faces", "")[n]} for n in range(2)]
    rows += [{"kind": "faces"} | entry(f"jumpy{n}.mp4", "generated", JUMPER) for n in range(2)]
    write(tmp_path, INDEX, rows)
    write(tmp_path, HUMAN, [{"path": row["path"], RATING: n} for row, n in zip(rows, (5, 4, 1, 2), strict=True)])
    write(tmp_path, PAIRS, [{"better": "even0.mp4", "worse": "jumpy0.mp4", "better_moves": "less"}])
    return tmp_path


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [
        (INDEX, [entry("even0.mp4", "genuine")], r"line 2: label 'genuine' is unknown; write real or generated"),
        (INDEX, [entry("even0.mp4", "real", source="")], "source_repo is empty"),
        (INDEX, [entry("jumpy0.mp4", "generated")], "generator is empty"),
        (INDEX, [entry("even0.mp4", "real")] * 2, "lists even0.mp4 twice"),
        (INDEX, [entry("even0.mp4", "real"), entry("./even0.mp4", "real")], r"lists even0.mp4, ./even0.mp4 twice"),
        (INDEX, [entry("", "real")], "line 2: path is empty"),
        (HUMAN, [{"path": "even0.mp4", RATING: 3}, {"path": "even0.mp4", RATING: 4}], "lists even0.mp4 twice"),
        (PAIRS, [{"better": "even0.mp4", "worse": "even0.mp4"}], "'even0.mp4' is judged against itself"),
        (INDEX, [entry("even0.mp4", "real")], "names 3 clips that index.csv does not list: even1.mp4, jumpy0.mp4"),
        (INDEX, [{"path": "even0.mp4"}], "no column 'label'"),
        (HUMAN, [{"path": "gone.mp4", RATING: 3}], "human.csv names 1 clips that index.csv does not list: gone.mp4"),
        (HUMAN, [{"path": "even0.mp4", RATING: "good"}], "line 2: rating 'good' is not a number"),
        (PAIRS, [{"better": "gone.mp4", "worse": "even0.mp4"}], "pairs.csv names 1 clips"),
        (PAIRS, [{"better": "even1.mp4", "worse": "even0.mp4", "better_moves": "up"}], "better_moves 'up' is unknown"),
    ],
)
def test_a_wrong_labelled_set_is_refused_by_name(folder, name, rows, told):
    write(folder, name, rows)
    with pytest.raises(BadRequest, match=told):
        read_labelled(folder)


@pytest.mark.parametrize("data", [b"path,label\n\xff\xfe,real\n", b'path,label\n"' + b"x" * 200_000 + b'"\n'])
def test_a_table_that_is_no_csv_is_refused_by_name(folder, data):
    (folder / INDEX).write_bytes(data)
    with pytest.raises(BadRequest, match=r"index.csv is no CSV file in UTF-8"):
        read_labelled(folder)


def test_an_empty_table_has_no_column(folder):
    (folder / INDEX).write_bytes(b"")
    with pytest.raises(BadRequest, match=r"index.csv has no column 'path'"):
        read_labelled(folder)


def test_a_folder_is_no_clip(folder):
    (folder / "even0.mp4").unlink()
    (folder / "even0.mp4").mkdir()
    with pytest.raises(BadRequest, match=r"files of the index are missing: .*even0.mp4"):
        read_labelled(folder)


def test_missing_files_one_label_and_a_missing_index_are_refused(folder, tmp_path_factory):
    with pytest.raises(BadRequest, match=r"index.csv is missing; write it with the columns path, label"):
        read_labelled(tmp_path_factory.mktemp("empty"))
    (folder / "jumpy1.mp4").unlink()
    with pytest.raises(BadRequest, match=r"1 files of the index are missing: .*jumpy1.mp4"):
        read_labelled(folder)
    for name in (HUMAN, PAIRS):
        (folder / name).unlink()
    write(folder, INDEX, [entry("even0.mp4", "real")])
    with pytest.raises(BadRequest, match="has no generated clip"):
        read_labelled(folder)


def test_a_split_keeps_its_ratings_and_pairs_only(folder):
    rows = [entry("even0.mp4", "real"), entry("jumpy0.mp4", "generated", "J")]
    rows += [entry("even1.mp4", "real", split="train"), entry("jumpy1.mp4", "generated", "J", split="train")]
    write(folder, INDEX, rows)
    dev, train = read_labelled(folder, "dev"), read_labelled(folder, "train")
    assert [clip.path for clip in dev.clips] == ["even0.mp4", "jumpy0.mp4"]
    assert dev.ratings == {"even0.mp4": 5, "jumpy0.mp4": 1} and len(dev.pairs) == 1
    assert len(train.ratings) == 2 and not train.pairs
    with pytest.raises(BadRequest, match=r"split 'test' of .* has no real clip"):
        read_labelled(folder, "test")


# --- strata and rates ---------------------------------------------------------------------------


def test_an_auc_within_strata_counts_only_pairs_of_one_stratum():
    sources = (["a", "b"], ["c", "d"])
    assert paired_auc([1, 4], [2, 3], sources=sources).auc == 0.5
    within = paired_auc([1, 4], [2, 3], sources=sources, strata=([0, 1], [1, 0]))
    assert (within.auc, within.pairs) == (0.5, 2)  # 4 > 2 in stratum 1, and 1 < 3 in stratum 0
    assert paired_auc([1, 4], [2, 3], sources=sources, strata=([0, 0], [1, 1])).auc is None


def test_clips_of_one_source_widen_the_interval():
    rng = np.random.default_rng(0)
    real = np.repeat([-1.0, -1.0, 1.0, 1.0], 10) + 0.1 * rng.normal(size=40)
    generated = 0.1 * rng.normal(size=40)
    alone, own = [str(n) for n in range(40)], [str(n // 10) for n in range(40)]
    narrow = paired_auc(real, generated, sources=(alone, alone)).interval
    wide = paired_auc(real, generated, sources=(own, alone)).interval
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_rates_that_differ_by_a_hair_are_equal_and_others_are_not():
    groups = rate_groups([7.5, 8.0, 29.97 / 4, 7.5, 10.0])
    assert groups.tolist() == [0, 1, 0, 0, 2]


def test_balancing_leaves_the_same_ratio_at_every_rate():
    rates = [7.5] * 8 + [8.0] * 2 + [7.5] * 2 + [8.0] * 8 + [10.0]
    real = [True] * 10 + [False] * 10 + [True]
    kept = balanced(rates, real)
    found = {
        rate: [sum(rates[k] == rate and real[k] == side for k in kept) for side in (True, False)] for rate in (7.5, 8)
    }
    assert found == {7.5: [2, 2], 8.0: [2, 2]} and kept == balanced(rates, real)


def test_a_rate_at_which_one_clip_is_too_much_is_left_out():
    rates = [12.0, 12.0, *[8.0] * 108]
    real = [True, False, *[True] * 99, *[False] * 9]
    kept = balanced(rates, real)
    assert {rates[k] for k in kept} == {8.0}


def test_rates_that_cannot_be_balanced_are_refused():
    with pytest.raises(BadRequest, match=r"real clips have 7.5 .* generated ones 8.*leave out --matched"):
        balanced([7.5, 7.5, 8.0, 8.0], [True, True, False, False])


# --- figures ------------------------------------------------------------------------------------


def judged(path: str, label: str, generator: str = "", source: str = "s", **values: float) -> Judged:
    clip = LabelledClip(path=path, file=Path(path), label=label, generator=generator, source=source)
    same = dict.fromkeys(("combined", "instantaneous", "long_term"), values.pop("reward"))
    return Judged(clip=clip, values={"sharpness": 1.0, "rate": 8.0, "flow_magnitude": 0.1, **same, **values})


def test_the_auc_of_a_reward_that_knows_only_the_rate_is_a_half_at_equal_rates():
    rng = np.random.default_rng(1)
    clips = []
    for n in range(80):
        fast = bool(rng.random() < (0.9 if n % 2 else 0.1))
        values = {"rate": 8.0 if fast else 7.5, "reward": -float(fast) + 0.01 * rng.normal()}
        clips.append(judged(str(n), "generated" if n % 2 else "real", "G" if n % 2 else "", str(n), **values))
    found = {(row.generator, row.control): row for row in validity.discriminations(clips) if row.value == "combined"}
    assert found["all generated", "all"].found.auc > 0.8
    assert found["G", "equal rate"].found.auc == pytest.approx(0.5, abs=0.15)
    balanced_rows = validity.discriminations(clips, balance=True)
    by_rate = next(row for row in balanced_rows if row.value == "rate")
    assert by_rate.found.auc == pytest.approx(0.5, abs=0.05) and by_rate.num_real < 40


def test_rank_correlations_of_cases_worked_by_hand():
    up, down = np.arange(6.0), -np.arange(6.0)
    assert spearman(up, up**3) == pytest.approx(1) and spearman(up, down) == pytest.approx(-1)
    assert spearman(up[:3], up[:3]) is None and spearman(up, np.ones(6)) is None
    assert partial_spearman(up, up, up) is None  # nothing is left of either
    first, second = np.array([1.0, 2, 3, 4, 11, 12, 13, 14]), np.array([4.0, 3, 2, 1, 14, 13, 12, 11])
    assert spearman(first, second) > 0.5
    assert within_spearman(first, second, list("aaaabbbb")) == pytest.approx(-1)
    assert partial_spearman(first, second, np.repeat([0.0, 1.0], 4)) == pytest.approx(-1, abs=1e-9)


def test_pairs_are_split_by_which_clip_moves_more():
    clips = [
        judged("a", "generated", "G", reward=2, flow_magnitude=0.1),
        judged("b", "generated", "G", reward=1, flow_magnitude=0.2),
        judged("c", "generated", "G", reward=0, flow_magnitude=0.11),
    ]
    pairs = [JudgedPair(better="a", worse="b"), JudgedPair(better="b", worse="a"), JudgedPair(better="a", worse="c")]
    found = {row.moves: row.share for row in validity.pair_shares(clips, [*pairs, JudgedPair(better="a", worse="x")])
             if row.value == "combined"}  # fmt: skip
    assert [(found[name].right, found[name].pairs) for name in ("all", "less", "more", "alike")] == [
        (2, 3), (1, 1), (0, 1), (1, 1)
    ]  # fmt: skip


def test_the_amount_is_correlated_only_among_clips_that_move():
    clips = [judged(str(n), "real", reward=n, flow_magnitude=1 - n / 10) for n in range(5)]
    clips += [judged("still", "real", reward=99, flow_magnitude=0.001)]
    found = next(row for row in validity.amount_correlations(clips) if row.label == "real")
    assert (found.rho, found.num) == (pytest.approx(-1), 5)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> PlainScorer:
    """The scorer that the command opens."""
    scorer = PlainScorer()

    @contextmanager
    def opened(settings: Settings, server: str | None) -> Iterator[RewardSource]:
        yield scorer.scorer

    monkeypatch.setattr(labelled, "open_scorer", opened)
    return scorer


def test_the_command_reports_and_resumes(folder, plain, tmp_path):
    outputs = Outputs(json=tmp_path / "out" / "a.json", csv=tmp_path / "out" / "a.csv", plots=tmp_path / "out")

    def report() -> tuple[int, str]:
        text = io.StringIO()
        console = Console(file=text, width=80)
        return labelled.run(
            folder, Settings(), work=tmp_path / "work", outputs=outputs, console=console
        ), text.getvalue()

    code, text = report()
    last = json.loads(text.splitlines()[-1])
    assert code == 0 and len(plain.seen) == 4
    assert last["one_source"] == {"generated": "one"} and "all generated clips come from one source, one" in text
    first = last["auc"][0]
    assert (first["value"], first["auc"], first["num_real"], first["num_sources"]) == ("combined", 1.0, 2, [2, 1])
    both = next(row for row in last["human"] if (row["value"], row["label"]) == ("combined", "both"))
    assert both["num"] == 4 and both["plain"] > 0.5
    assert last["pairs"][0] == {"value": "combined", "moves": "all", "right": 1, "pairs": 1, "fraction": 1.0}
    kinds = [(row["kind"], row["num"], row["percentile"]) for row in last["by_motion"]["named_kinds"]]
    assert kinds in ([("faces", 1, 25.0)], [("faces", 1, 75.0)]) and "the kind that the index names" in text
    assert "…" not in text.rpartition("\n{")[0]
    with Image.open(tmp_path / "out" / "validity.png") as picture:
        assert min(picture.size) > 300
    with outputs.csv.open() as file:
        assert [row["generator"] for row in csv.DictReader(file)] == ["", "", JUMPER, JUMPER]

    scores = tmp_path / "work" / labelled.SCORED
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:3]) + lines[3][:20])  # as if the run had been killed while it wrote
    assert report() == (code, text) and len(plain.seen) == 5


def test_a_corrected_label_counts_everywhere_without_scoring_again(folder, plain, tmp_path):
    outputs = Outputs(json=tmp_path / "a.json")
    console = Console(file=io.StringIO())
    labelled.run(folder, Settings(), work=tmp_path / "work", outputs=outputs, console=console)
    rows = [entry(f"even{n}.mp4", "real", source=f"film{n}") for n in range(2)]
    rows += [entry("jumpy0.mp4", "real", source="film2"), entry("jumpy1.mp4", "generated", JUMPER)]
    write(folder, INDEX, rows)
    labelled.run(folder, Settings(), work=tmp_path / "work", outputs=outputs, console=console)
    told = json.loads(outputs.json.read_text())
    assert len(plain.seen) == 4
    assert [row["set"] for row in told["rows"]] == ["real", "real", "real", "generated"]
    assert told["auc"][0]["num_real"] == sum(row["num"] for row in told["by_motion"]["curve"] if row["group"] == "real")


def test_a_broken_clip_is_named_and_a_label_without_scores_is_refused(folder, plain, tmp_path):
    (folder / "jumpy0.mp4").write_text("no video")
    text, outputs = io.StringIO(), Outputs(html=tmp_path / "a.html")
    run = lambda: labelled.run(  # noqa: E731
        folder, Settings(), work=tmp_path / "work", outputs=outputs, console=Console(file=text, width=300)
    )
    assert run() == 1 and "jumpy0.mp4: " in text.getvalue()
    page = outputs.html.read_text()
    assert page.count('<tr id="row-') == 3
    assert "jumpy0.mp4" in page.partition('id="unscored"')[2].partition("</section>")[0]
    (folder / "jumpy1.mp4").write_text("no video")
    with pytest.raises(BadRequest, match="none of the generated clips could be scored"):
        run()
