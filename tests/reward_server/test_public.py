"""Tests which names `reward_server` exports."""

from __future__ import annotations

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
