"""Tests the models folder: weights are converted key by key, and only files that match their record are loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reward_server.errors import BadRequest, NotReady
from reward_server.estimators.sea_raft import SeaRaft
from reward_server.models.convert import network_weights, read_checkpoint
from reward_server.models.published import COTRACKER3, PUBLISHED, SEA_RAFT
from reward_server.models.pull import pull
from reward_server.models.store import load_network, read_record, sha256_of
from tests.frozen import published_files, random_sea_raft

KEYS = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    cotracker, sea_raft = published_files(tmp_path_factory.mktemp("published"))
    return {"cotracker3": cotracker, "sea_raft": sea_raft}


@pytest.fixture(scope="module")
def folder(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder after a pull. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("models")
    pull(folder, files, tell=lambda _: None)
    return folder


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def same(ours: nn.Module, theirs: dict[str, torch.Tensor]) -> bool:
    state = ours.state_dict()
    return state.keys() == theirs.keys() and all(torch.equal(state[name], theirs[name]) for name in state)


def test_layouts_are_the_published_key_lists() -> None:
    for network, keys in ((COTRACKER3, "cotracker3_keys.txt"), (SEA_RAFT, "searaft_m_keys.txt")):
        published = {line.split()[0] for line in (KEYS / keys).read_text().splitlines()}
        assert network.layout().keys() == published


def test_pull_keeps_every_tensor_bit_for_bit_under_every_name(files: dict[str, Path], folder: Path) -> None:
    theirs = torch.load(files["cotracker3"], weights_only=True)
    network = COTRACKER3.build()
    assert load_network(network, "cotracker3", folder) == sha256_of(folder / "cotracker3.safetensors")
    assert same(network, theirs)
    kept = load_file(files["sea_raft"])
    converted = load_file(folder / "sea_raft.safetensors")
    assert (len(kept), len(converted)) == (472 - 20, 472)  # the hub's file names shared tensors once
    assert all(torch.equal(converted[name], value) for name, value in kept.items())
    assert all(torch.equal(converted[a], converted[b]) for a, b in SEA_RAFT.aliases())
    flow_net = SeaRaft()
    load_network(flow_net, "sea_raft", folder)
    assert same(flow_net, random_sea_raft().state_dict())


def test_the_same_weights_give_the_same_file_from_any_format(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "Tartan-C-T-TSKH-spring540x960-M.pth"
    torch.save(random_sea_raft().state_dict(), whole)
    pull(tmp_path / "models", {"sea_raft": whole, "cotracker3": folder / "cotracker3.safetensors"}, tell=lambda _: None)
    for network in PUBLISHED.values():
        assert sha256_of(tmp_path / "models" / network.converted) == sha256_of(folder / network.converted)


def test_sea_raft_from_a_reference_file_keeps_its_statistics(tmp_path: Path) -> None:
    drifted = random_sea_raft(seed=5).state_dict()
    module = {f"flow_layer.model.{name}": value for name, value in drifted.items()}
    torch.save({"discriminator_state_dict": {**module, "flow_vit.head.bias": torch.zeros(1)}}, tmp_path / "ic.pth")
    weights = network_weights(SEA_RAFT, tmp_path / "ic.pth")
    assert weights.keys() == drifted.keys()
    assert all(torch.equal(weights[name], drifted[name]) for name in drifted)


def test_the_record_pins_source_and_file(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        record = read_record(PUBLISHED[name], folder)
        assert record is not None
        assert record.source == path.name
        assert record.source_sha256 == sha256_of(path)
        assert record.sha256 == sha256_of(folder / PUBLISHED[name].converted)
        assert record.licence == PUBLISHED[name].licence


def test_a_converted_file_that_changed_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    models = copied(folder, tmp_path / "models")
    path = models / "sea_raft.safetensors"
    weights = load_file(path)
    weights["init_conv.bias"] = weights["init_conv.bias"] + 1e-3
    save_file(weights, path)
    with pytest.raises(NotReady, match=r"changed since it was pulled.*models pull shift --replace"):
        load_network(SeaRaft(), "sea_raft", models)


def test_a_changed_source_is_refused_without_replace(folder: Path, tmp_path: Path) -> None:
    models = copied(folder, tmp_path / "models")
    before = sha256_of(models / "sea_raft.safetensors")
    torch.save(random_sea_raft(seed=1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(BadRequest, match=r"other.pth has sha256 .*pinned to .*--replace"):
        pull(models, {"sea_raft": tmp_path / "other.pth"}, tell=lambda _: None)
    assert sha256_of(models / "sea_raft.safetensors") == before
    given = {"sea_raft": tmp_path / "other.pth", "cotracker3": models / "cotracker3.safetensors"}
    pull(models, given, replace=True, tell=lambda _: None)
    flow_net = SeaRaft()
    load_network(flow_net, "sea_raft", models)
    assert same(flow_net, random_sea_raft(seed=1).state_dict())


def test_stored_weights_need_no_download_and_print_licences(folder: Path) -> None:
    said: list[str] = []
    pull(folder, {}, tell=said.append)
    text = "\n".join(said)
    assert text.count("already stored") == 2
    assert "CC-BY-NC-4.0" in text and "Non-commercial use only" in text and "BSD-3-Clause" in text


def test_a_lost_file_is_restored_from_the_pinned_source_only(
    files: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    models = copied(folder, tmp_path / "models")
    (models / "sea_raft.safetensors").unlink()
    with pytest.raises(NotReady, match="motion-reward models pull shift"):
        load_network(SeaRaft(), "sea_raft", models)
    torch.save(random_sea_raft(seed=1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(BadRequest, match="--replace"):
        pull(models, {"sea_raft": tmp_path / "other.pth"}, tell=lambda _: None)
    pull(models, {"sea_raft": files["sea_raft"]}, tell=lambda _: None)
    assert sha256_of(models / "sea_raft.safetensors") == sha256_of(folder / "sea_raft.safetensors")


def test_missing_weights_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="motion-reward models pull shift"):
        load_network(SeaRaft(), "sea_raft", tmp_path)


class Sly:
    """Runs code if a pickle of it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("must-not-exist",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "not a checkpoint of plain tensors"),
        ({"state": Sly()}, "not a checkpoint of plain tensors"),
        ({"step": 3}, "holds no state dict"),
        ({"discriminator_state_dict": {"norm.weight": torch.ones(3)}}, r"lacks 472 entries .*has unknown 1"),
    ],
)
def test_files_that_are_not_checkpoints_are_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(BadRequest, match=rf"(?s)file\.pth.*{message}"):
        network_weights(SEA_RAFT, path)
    assert not Path("must-not-exist").exists()


def test_shapes_values_and_shared_names_are_checked(tmp_path: Path) -> None:
    state = random_sea_raft().state_dict()
    faults = {
        "has other shapes in": {"init_conv.bias": torch.zeros(255)},
        "has NaN or infinity in": {"init_conv.bias": torch.full((256,), torch.nan)},
        "but differ here": {"cnet.layer2.0.bn3.bias": torch.ones(128)},
    }
    for message, change in faults.items():
        torch.save({**state, **change}, tmp_path / "file.pth")
        with pytest.raises(BadRequest, match=message):
            network_weights(SEA_RAFT, tmp_path / "file.pth")
    del state["init_conv.bias"]
    torch.save({"model": state}, tmp_path / "file.pth")
    with pytest.raises(BadRequest, match=r"lacks 1 entries \(init_conv.bias\)"):
        network_weights(SEA_RAFT, tmp_path / "file.pth")
    with pytest.raises(BadRequest, match="is not a file"):
        read_checkpoint(tmp_path / "none.pth")


# --- the hub: huggingface_hub itself, against a server of ours --------------------------------------


@contextmanager
def hub(files: dict[str, Path]) -> Iterator[str]:
    """Serve /REPO/resolve/REVISION/FILE as Hugging Face does, at commit 0123...; yields the server's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            names = {f"/{p.repo}/resolve/{r}/{p.file}": n for n, p in PUBLISHED.items() for r in (p.revision, COMMIT)}
            if (name := names.get(self.path)) is None:
                self.send_error(404)
                return
            data = files[name].read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{sha256_of(files[name])}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MOTION_REWARD_"))}
    own = {"HF_HOME": str(home / "hub"), "MOTION_REWARD_DATA_DIR": str(home), "COLUMNS": "200", **environment}
    command = [sys.executable, "-m", "reward_server", *arguments]
    return subprocess.run(command, env={**known, **own}, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_pull_fetches_from_the_hub_and_list_shows_it(files: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    with hub(files) as url:
        pulled = run("models", "pull", "shift", home=tmp_path, HF_ENDPOINT=url)
    assert pulled.returncode == 0, pulled.stderr
    assert "CC-BY-NC-4.0. Non-commercial use only" in pulled.stdout
    for network in PUBLISHED.values():
        assert sha256_of(tmp_path / "models" / network.converted) == sha256_of(folder / network.converted)
        record = json.loads((tmp_path / "models" / f"{network.name}.json").read_text())
        assert record["source"] == f"{network.repo}@{COMMIT}/{network.file}"
    listed = run("models", "list", home=tmp_path).stdout
    assert listed.count("ready") == 3  # with the embedded discriminators
    assert "motion-reward pretrain --profile shift" in listed


@pytest.mark.slow
def test_a_failed_download_names_files_page_and_command(tmp_path: Path) -> None:
    pulled = run("models", "pull", "shift", home=tmp_path, HF_HUB_OFFLINE="1")
    assert pulled.returncode == 1
    assert "https://huggingface.co/facebook/cotracker3/blob/main/scaled_offline.pth" in pulled.stderr
    command = "motion-reward models pull shift --cotracker scaled_offline.pth --sea-raft model.safetensors"
    assert command in pulled.stderr
    assert "Traceback" not in pulled.stderr


def test_pull_refuses_a_profile_without_frozen_networks(tmp_path: Path) -> None:
    pulled = run("models", "pull", "embedded", home=tmp_path)
    assert pulled.returncode == 2
    assert "has no frozen networks to pull" in pulled.stderr
