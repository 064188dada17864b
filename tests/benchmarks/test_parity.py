"""Tests the parity command: it passes on our golden files, finds every kind of error, and uses the recipe's weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
OFFICIAL = ROOT.parent / "shared" / "golden"


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from benchmarks import parity  # noqa: PLC0415

    return parity


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from benchmarks import golden_weights  # noqa: PLC0415

    return golden_weights


def folder(path: Path, *names: str, **changed: np.ndarray) -> Path:
    """A golden folder with the named files of ours; `changed` replaces or adds arrays in the first one."""
    shutil.copy(GOLDEN / "tolerances.json", path)
    for name in names:
        shutil.copy(GOLDEN / f"{name}.npz", path)
    if changed:
        with np.load(GOLDEN / f"{names[0]}.npz") as stored:
            np.savez(path / f"{names[0]}.npz", **{**stored, **changed})
    return path


def verdict(parity: ModuleType, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = parity.main([str(path)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("names", "num_arrays"),
    [
        (("cotracker3", "lc"), 6 + 4),
        (("searaft_m",), 5),
        pytest.param(("ic",), 3, marks=pytest.mark.slow),
    ],
)
def test_our_goldens_still_hold(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], num_arrays: int
) -> None:
    code, last = verdict(parity, folder(tmp_path, *names), capsys)
    assert (code, last["checked"], last["failed"]) == (0, num_arrays, 0)
    assert 0 <= last["worst"]["share"] <= 1


@pytest.mark.long
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no official goldens beside the checkout ({OFFICIAL.name}/)")
def test_official_outputs_hold() -> None:
    command = [sys.executable, "-m", "benchmarks.parity", str(OFFICIAL), "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, last["checked"], last["failed"]) == (0, 34, 0), done.stdout + done.stderr


def test_a_changed_output_fails_and_is_named(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(GOLDEN / "searaft_m.npz") as stored:
        info = stored["pad_info"].copy()
    info[0, 2, 5, 7] += 0.1
    code, last = verdict(parity, folder(tmp_path, "searaft_m", pad_info=info), capsys)
    assert (code, last["checked"], last["failed"], last["worst"]["array"]) == (1, 5, 1, "pad_info")
    assert last["worst"]["error"] == pytest.approx(0.1, abs=1e-3)


def test_nothing_passes_unchecked(parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown array, a wrong shape, a NaN and a file that does not open all fail. The rest is still checked."""
    with np.load(GOLDEN / "searaft_m.npz") as stored:
        changed = {"flow": stored["flow"] * np.nan, "fmap2": stored["fmap2"][:3], "extra": np.zeros(2)}
    path = folder(tmp_path, "searaft_m", **changed)
    (path / "lc.npz").write_bytes(b"not an archive")
    np.savez(path / "nobody.npz", video=np.zeros(3))
    code, last = verdict(parity, path, capsys)
    assert (code, last["checked"], last["failed"]) == (1, 6 + 2, 3 + 2)
    assert last["worst"]["error"] is None


def test_other_weights_are_seen(parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, last = verdict(parity, folder(tmp_path, "searaft_m", seed=np.array(8)), capsys)
    assert (code, last["failed"]) == (1, 5)


def test_a_folders_own_recipe_counts(parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = (ROOT / "benchmarks" / "golden_weights.py").read_text().replace('"running_mean": 0.1', '"running_mean": 0.2')
    (folder(tmp_path, "searaft_m") / "weights_recipe.py").write_text(own)
    assert verdict(parity, tmp_path, capsys)[0] == 1


def test_an_empty_folder_is_no_pass(parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, last = verdict(parity, folder(tmp_path), capsys)
    assert code == 1
    assert last == {"checked": 0, "failed": 0, "worst": None}
    with pytest.raises(SystemExit, match="2"):
        parity.main([str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("model", "name", "shape", "digest"),
    [
        ("cotracker", "corr_mlp.fc1.weight", (384, 2401), "887026b444e51276"),
        ("searaft", "fnet.layer1.0.bn1.running_var", (64,), "b4c2396ee86c5398"),
        ("trackformer", "virual_tracks", (1, 64, 1, 384), "9aaafc6affd5e4a4"),
        ("vit", "flow_vit.backbone.pos_embed", (1, 721, 768), "b229a1a776bb7d9e"),
    ],
)
def test_weights_are_the_recipes(
    weights: ModuleType, model: str, name: str, shape: tuple[int, ...], digest: str
) -> None:
    value = weights.fill({name: shape}, model)[name]
    assert value.dtype == np.float32
    assert hashlib.sha256(value.tobytes()).hexdigest()[:16] == digest


def test_one_tensor_under_two_names_has_one_value(weights: ModuleType) -> None:
    names = ("fnet.layer2.0.bn3.weight", "fnet.layer2.0.downsample.1.weight")
    filled = weights.fill(dict.fromkeys((*names, "time_emb", "bn1.num_batches_tracked"), (128,)), "searaft", seed=3)
    assert set(filled) == set(names)
    assert np.array_equal(*filled.values())
    inside = weights.fill({f"flow_layer.model.{names[0]}": (128,)}, "ic", seed=3)
    assert np.array_equal(filled[names[0]], inside[f"flow_layer.model.{names[0]}"])
