"""What people may import from `reward_server`, and that the doors stay light."""

from __future__ import annotations

import subprocess
import sys

import reward_server


def test_public_names_are_these_and_all_load() -> None:
    assert reward_server.__all__ == [
        "Clip",
        "Context",
        "Outcome",
        "OutcomeKind",
        "Pipeline",
        "Reward",
        "RewardServerError",
        "Settings",
        "Submission",
        "submission",
    ]
    assert all(getattr(reward_server, name).__name__ == name for name in reward_server.__all__)


def test_the_doors_load_neither_torch_nor_opencv() -> None:
    code = "import sys, reward_server.serving.serve; print({'torch', 'cv2', 'timm'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
