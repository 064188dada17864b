"""Tests that cuDNN convolves in full float32 while `shift` and the discriminators compute, and only then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from protos.types import Clip
from reward_server.networks.tf32 import exact_convolutions
from reward_server.profiles.discriminators import Discriminators
from tests.frozen import small_profile


@pytest.fixture(params=[True, False])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """The process's own choice of TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", request.param)
    yield request.param
    assert torch.backends.cudnn.allow_tf32 == request.param


def test_the_last_thread_out_restores_the_choice(chosen: bool) -> None:
    """The first thread to enter leaves first, while the other is still inside."""
    both_inside, first_left = Barrier(2, timeout=5), Barrier(2, timeout=5)

    def stay(leaves_first: bool) -> bool:
        with exact_convolutions:
            both_inside.wait()
            if not leaves_first:
                first_left.wait()
            seen = torch.backends.cudnn.allow_tf32
        if leaves_first:
            first_left.wait()
        return seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(stay, [True, False])) == [False, False]


def test_an_error_restores_the_choice(chosen: bool) -> None:
    with pytest.raises(RuntimeError, match="of the networks"), exact_convolutions:
        raise RuntimeError("of the networks")


def noted(seen: list[bool]) -> Callable[..., None]:
    return lambda *_: seen.append(torch.backends.cudnn.allow_tf32)


def test_motion_and_logits_use_exact_convolutions(chosen: bool) -> None:
    profile, seen = small_profile(), list[bool]()
    discriminators = Discriminators(
        instantaneous=torch.nn.Identity(), long_term=torch.nn.Identity(), version="", digest=""
    )  # type: ignore[arg-type]
    networks = profile.networks
    for module in (
        networks.tracker.fnet,
        networks.flow_net.fnet,
        discriminators.instantaneous,
        discriminators.long_term,
    ):
        module.register_forward_hook(noted(seen))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 96), dtype=np.uint8)
    profile.motion(Clip(frames=pixels, fps=14.0), query_seed=0, num_tracks=4)
    discriminators.logits(torch.zeros(1), torch.zeros(1))
    assert len(seen) >= 4 and not any(seen)
