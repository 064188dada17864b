"""A size of the proof that only shows that its commands run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.proof import __main__ as command
from experiments.proof import running
from experiments.proof.arms import run_arm
from experiments.proof.base_training import BasePlan
from experiments.proof.size import SMOKE, ProofSize


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch) -> ProofSize:
    """What `--size smoke` means in the test: the least there can be, with all arms in this process."""
    plan = BasePlan(autoencoder_steps=2, autoencoder_batch=2, denoiser_steps=2, denoiser_batch=2)
    base = replace(SMOKE.base, num_scenes=4, sampler_steps=2, plan=plan)
    size = replace(SMOKE, base=base, num_train=4, num_held_out=2, num_rollouts=2)
    monkeypatch.setitem(command.SIZES, "smoke", size)
    monkeypatch.setattr(running, "run_arms", lambda tasks, jobs: [run_arm(task) for task in tasks])
    return size
