"""Tests that reading 4K frames takes little more memory than the frames in use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protos.reader import memory
from tests import media

MOST_MIB = 300  # as benchmarks/reading_memory.py


def test_only_large_frames_change_how_memory_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(memory, "_give_back_at_once", lambda: called.append(True))
    memory.prepare_for(1080, 1920)
    assert not called
    memory.prepare_for(2160, 3840)
    assert called


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_pretraining_on_4k_frames_takes_little_memory(tmp_path: Path) -> None:
    """Regression: glibc kept freed frames, and the peak was 525 to 689 MiB."""
    frames = np.repeat(np.repeat(media.texture(48, 270, 480), 8, axis=1), 8, axis=2)
    (tmp_path / "4k.mp4").write_bytes(media.video(frames, fps=24, codec_options={"preset": "ultrafast"}))
    command = [sys.executable, "-m", "benchmarks.reading_memory", "--read", str(tmp_path / "4k.mp4"), "pretrain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < MOST_MIB
