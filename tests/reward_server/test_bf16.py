"""Tests that discriminators train in bf16 only if the hardware supports it. Emulated bf16 is many times slower."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from reward_server.networks.bf16 import has_bf16
from reward_server.training.discriminator_trainer import fast_forward


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    has_bf16.cache_clear()
    yield
    has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
    ],
)
def test_training_computes_in_bf16_if_the_cpu_has_it(
    capabilities: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    linear, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with fast_forward():
        dtype = linear(x).dtype
    assert dtype == (torch.bfloat16 if expected else torch.float32)


def test_a_cpu_of_unknown_support_counts_as_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bf16("cpu")


def test_fp32_is_kept_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with fast_forward(bf16=False):
        assert torch.nn.Linear(4, 4)(torch.ones(2, 4)).dtype == torch.float32
