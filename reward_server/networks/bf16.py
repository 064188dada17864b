"""Tells whether a device supports bf16 natively. If it does not, torch emulates bf16, many times slower than fp32."""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_bf16(device: str) -> bool:
    """Whether matrix products are faster in bf16 than in fp32 on `device` ("cpu", "cuda", "cuda:1").

    False if that is not known.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return False
    # avx512_bf16 and amx_bf16 on x86; bf16 and sve_bf16 on ARM
    return any(bool(has) for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
