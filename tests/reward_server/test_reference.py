"""Tests the reference table: percentiles and nearest rungs by hand, its tie to the weights, and how one is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protos.client import submission
from protos.types import PERCENTILES, REWARDS, Bounds, Context, Logits, Standing, Submission
from reward_server.data.shots import Shot, find_shots
from reward_server.errors import BadRequest
from reward_server.pipeline import Pipeline
from reward_server.profiles.discriminators import (
    load_discriminators,
    new_discriminators,
    pack_discriminators,
    read_discriminators,
    save_reference,
)
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.reference import (
    NO_TABLE,
    ONE_WINDOW,
    SEVERAL_WINDOWS,
    SHORT,
    ReferenceTable,
    length_band,
)
from reward_server.settings import Settings
from reward_server.training import reference_table as maker
from tests import plain_scorer
from tests.media import texture, video
from tests.reference import RISING, TABLE

PROFILE = EmbeddedProfile()
MODEL = replace(plain_scorer.MODEL, input=replace(plain_scorer.MODEL.input, num_tracks=TABLE.num_tracks))


def standing(instantaneous: float, long_term: float, combined: float = 1.0, **changes) -> Standing:
    logits = Logits(instantaneous=instantaneous, long_term=long_term)
    return TABLE.standing(logits, combined, changes.pop("band", ONE_WINDOW), replace(MODEL, **changes))


# --- what the table tells -----------------------------------------------------------------------


def test_a_percentile_is_the_share_of_real_clips_below():
    found = standing(-3.0, 2.5, combined=-0.25)
    assert [getattr(found, name) for name in PERCENTILES] == [37.5, 10.0, 65.0]
    assert (found.band, found.num_clips, found.discriminator_version, found.missing) == (ONE_WINDOW, 40, "parent-1", "")
    beyond = standing(-40.0, 40.0)
    assert (beyond.instantaneous_percentile, beyond.long_term_percentile) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("logits", "like"),
    [((0.9, 1.4), "a real clip"), ((-2.0, 0.9), "a clip with mild jitter"), ((0.5, -9.0), "a clip with strong wobble")],
)
def test_the_nearest_rung_has_the_nearest_logits(logits: tuple[float, float], like: str):
    assert standing(*logits).nearest == like


def test_what_the_table_cannot_tell_is_absent_and_said():
    fewer = standing(0, 0, input=replace(MODEL.input, num_tracks=64))
    assert (
        fewer == Standing(missing=fewer.missing) and "scored with 64; unset MOTION_REWARD_NUM_TRACKS" in fewer.missing
    )
    long = standing(0, 0, band=SEVERAL_WINDOWS)
    assert long == Standing(missing=long.missing) and "'several windows'" in long.missing
    for changes in ({"weights": Logits(instantaneous=3, long_term=1)}, {"bounds": Bounds(min=-2, max=2)}):
        other = standing(0, 0, **changes)
        assert other.combined_percentile is None and "no percentile of combined" in other.missing
        assert (other.instantaneous_percentile, other.nearest) == (40.0, "a real clip")
    same = standing(0, 0, weights=Logits(instantaneous=0.3, long_term=0.3))
    assert same.combined_percentile == 50.0


def test_the_length_band_of_a_clip():
    assert [length_band(*clip) for clip in ((12, 16, 1), (16, 16, 1), (16, 16, 4), (12, 16, 3))] == [
        SHORT, ONE_WINDOW, SEVERAL_WINDOWS, SHORT,
    ]  # fmt: skip


def test_a_band_whose_quantiles_fall_is_refused():
    with pytest.raises(ValueError, match="long_term needs 101 finite quantiles"):
        replace(TABLE.bands[0], long_term=RISING[::-1])


# --- the tie to the weights ---------------------------------------------------------------------


@pytest.fixture
def own(discriminators_file: Path) -> ReferenceTable:
    return replace(TABLE, weights=load_discriminators(PROFILE, discriminators_file).weights_digest)


def settings(checkpoint: Path) -> Settings:
    return Settings(checkpoint=checkpoint, num_tracks=16, threads=1, decode_isolation=False)


def scored(checkpoint: Path, *clips: Submission) -> list[Standing]:
    return [outcome.reward.standing for outcome in Pipeline.load(settings(checkpoint)).score_submissions(clips)]


@pytest.fixture
def clip() -> Submission:
    return submission(video(texture(16, 144, 256), fps=12))


def test_a_table_changes_neither_the_weights_nor_their_digest(discriminators_file, own, tmp_path):
    save_reference(tmp_path / "with.safetensors", discriminators_file.read_bytes(), own)
    before, after = (
        load_discriminators(PROFILE, path) for path in (discriminators_file, tmp_path / "with.safetensors")
    )
    assert (before.reference, after.reference) == (None, own)
    assert before.weights_digest == after.weights_digest and before.version == after.version
    kept, same = before.long_term.state_dict(), after.long_term.state_dict()
    assert all(bool((same[name] == value).all()) for name, value in kept.items())


def test_a_clip_is_scored_with_the_table_of_its_weights(discriminators_file, own, tmp_path, clip):
    save_reference(tmp_path / "with.safetensors", discriminators_file.read_bytes(), own)
    (found,) = scored(tmp_path / "with.safetensors", clip)
    assert None not in [getattr(found, name) for name in PERCENTILES]
    assert (found.band, found.missing) == (ONE_WINDOW, "") and found.nearest in {rung.like for rung in own.rungs}
    (without,) = scored(discriminators_file, clip)
    assert without == Standing(missing=without.missing) and "have no reference table" in without.missing


def test_an_explained_window_has_the_percentiles_of_a_clip_of_one_window(discriminators_file, own, tmp_path, clip):
    save_reference(tmp_path / "with.safetensors", discriminators_file.read_bytes(), own)
    asking = replace(clip, context=Context(explain=True))
    for checkpoint in (tmp_path / "with.safetensors", discriminators_file):
        (outcome,) = Pipeline.load(settings(checkpoint)).score_submissions([asking])
        (window,) = outcome.reward.explanation.windows
        expected = [getattr(outcome.reward.standing, name) for name in PERCENTILES]
        assert [getattr(window.percentiles, name) for name in REWARDS] == expected


def test_the_table_of_other_weights_is_refused_by_name(discriminators_file, tmp_path, clip):
    save_reference(tmp_path / "other.safetensors", discriminators_file.read_bytes(), TABLE)
    (found,) = scored(tmp_path / "other.safetensors", clip)
    assert found == Standing(missing=found.missing)
    assert "belongs to other weights (parent-1, digest 000000000000, not " in found.missing


def test_a_damaged_table_is_absent_and_said(discriminators_file, own, tmp_path):
    save_reference(tmp_path / "with.safetensors", discriminators_file.read_bytes(), own)
    data = (tmp_path / "with.safetensors").read_bytes()
    damaged = data.replace(b'\\"num_tracks\\"', b'\\"num_trucks\\"')
    assert damaged != data
    found = read_discriminators(PROFILE, damaged, source="x.safetensors")
    assert found.reference is None and "the reference table of x.safetensors cannot be read" in found.no_reference


def test_refreshed_discriminators_have_the_table_of_their_parent_and_lose_it_to_their_own(own, tmp_path):
    instantaneous, long_term = (one.state_dict() for one in new_discriminators(PROFILE))
    data = pack_discriminators(
        profile=PROFILE, version="child", instantaneous=instantaneous, long_term=long_term, inherited=own
    )
    child = read_discriminators(PROFILE, data, source="child")
    assert child.version == "child" and child.reference == own and own.weights != child.weights_digest
    save_reference(tmp_path / "child.safetensors", data, replace(own, discriminator_version="child"))
    assert load_discriminators(PROFILE, tmp_path / "child.safetensors").reference is None  # its weights are not named


# --- making a table -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of two windows, with textures that move, and a file that is no video."""
    folder = tmp_path_factory.mktemp("real")
    for seed in range(10):
        (folder / f"{seed}.mp4").write_bytes(video(texture(24, 96, 144, seed=seed), fps=12))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.slow
def test_a_table_is_made_of_real_clips_and_their_faulty_twins(
    real_clips, discriminators_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(maker, "FAULTS", ("static", "jittered"))
    out = tmp_path / "with.safetensors"
    table = maker.run([str(real_clips)], settings(discriminators_file), out=out)
    assert "broken.mp4" in capsys.readouterr().out
    assert [(band.name, band.num_clips) for band in table.bands] == [
        (SHORT, 10), (ONE_WINDOW, 10), (SEVERAL_WINDOWS, 10),
    ]  # fmt: skip
    rungs = [rung.like for rung in table.rungs]
    assert rungs[0] == "a real clip" and {"a clip with mild jitter", "a clip with strong stillness"} <= set(rungs)
    assert load_discriminators(PROFILE, out).reference == table
    shots = [Shot(path=path) for path in real_clips.glob("?.mp4")]
    ranks = [found.combined_percentile for found in scored(out, *(maker.clip_of(shot, 0) for shot in shots))]
    assert sorted(ranks) == pytest.approx(np.linspace(0, 100, 10), abs=12)  # nearly equal rewards share a rank
    assert any("a clip with mild jitter: median of 10" in line for line in maker.summary(table))


def test_too_few_clips_make_no_table(real_clips, small_pipeline):
    shots = find_shots([str(real_clips / "1.mp4")])
    with pytest.raises(BadRequest, match="1 real clips, and a reference table needs 10"):
        maker.reference_table(shots, small_pipeline)


def test_the_shipped_weights_hold_no_table_of_other_weights():
    found = load_discriminators(PROFILE)
    assert found.no_reference == ("" if found.reference else NO_TABLE)
    if found.reference:
        medians = {rung.like: rung.instantaneous + rung.long_term for rung in found.reference.rungs}
        assert found.reference.discriminator_version == found.version
        assert medians["a real clip"] > medians["a clip with strong jitter"]
