"""Starting a server on this machine: what is awaited, what is reported, and that nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from protos.client import RewardClient
from reward_server.errors import NotReady
from reward_server.serving import local
from reward_server.serving.local import local_server, ready_line, started
from reward_server.settings import Settings

SLEEPS = "import time; print(1, flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
PRINTS = "import time; print('loading', flush=True); print('ready at 1', flush=True); time.sleep(60)"


def test_a_started_process_and_its_children_are_ended(monkeypatch):
    monkeypatch.setattr(local, "STOP_TIMEOUT_S", 0.5)  # the child does not end with its parent
    with started([sys.executable, "-c", PARENT], os.environ, stdout=subprocess.PIPE) as child:
        assert ready_line(child, "1") == "1\n"  # the child's child runs from here on
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    assert len(family) == 2
    assert not any(process.is_running() for process in family)


def test_the_ready_line_is_found_among_others():
    with started([sys.executable, "-c", PRINTS], os.environ, stdout=subprocess.PIPE) as child:
        assert ready_line(child, "ready at") == "ready at 1\n"


def test_a_process_that_ends_at_once_is_reported(capfd):
    command = [sys.executable, "-c", "raise SystemExit('no weights here')"]
    with (
        started(command, os.environ, stdout=subprocess.PIPE) as child,
        pytest.raises(NotReady, match="ended with exit code 1 before it was ready"),
    ):
        ready_line(child, "ready")
    assert "no weights here" in capfd.readouterr().err


@pytest.mark.slow
def test_a_local_server_holds_the_settings_it_was_given(discriminators_file):
    settings = Settings(checkpoint=discriminators_file, num_tracks=16, max_bytes=12345, threads=1)
    with local_server(settings) as server:
        family = [server.process, *server.process.children(recursive=True)]
        for url in (server.http_url, server.grpc_url):
            with RewardClient(url) as client:
                assert client.model().limits.max_bytes == 12345
    assert len(family) >= 3  # with a worker and Redis
    assert not any(process.is_running() for process in family)
