"""Fixtures of the tests that run the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer_runs import write_clips
from trainer.policies.tiny import tiny_svd


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums then have one order, and other jobs share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of SVD's kind that is even smaller than the toy of the presets."""
    return tiny_svd(tmp_path_factory.mktemp("svd"), num_frames=4, channels=(32, 32), vae_channels=(32, 32))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))
