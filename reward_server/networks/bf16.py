"""Whether a device has bf16 of its own. Where it has not, torch emulates it, many times slower than fp32."""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_bf16(device: str) -> bool:
    """Whether products in bf16 are faster than in fp32 on `device` ("cpu", "cuda", "cuda:1"); False if unknown."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return False
    # avx512_bf16, amx_bf16; bf16, sve_bf16 on ARM
    return any(bool(has) for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
