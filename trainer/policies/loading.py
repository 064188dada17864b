"""From a policy's configuration to the policy."""

from __future__ import annotations

import torch

from trainer.policies.base import PolicyConfig
from trainer.policies.svd import SvdConfig, SvdPolicy
from trainer.policies.wan import WanConfig, WanPolicy


def make_policy(config: PolicyConfig, device: torch.device | str = "cpu") -> SvdPolicy | WanPolicy:
    """The policy of an SvdConfig or a WanConfig, loaded, on `device`."""
    match config:
        case SvdConfig():
            return SvdPolicy(config, device)
        case WanConfig():
            return WanPolicy(config, device)
        case _:
            raise TypeError(f"no policy is made of a {type(config).__name__}; give an SvdConfig or a WanConfig")
