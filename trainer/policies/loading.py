"""Makes a policy from its configuration."""

from __future__ import annotations

import torch

from trainer.policies.base import PolicyConfig
from trainer.policies.svd import SvdConfig, SvdPolicy
from trainer.policies.wan import WanConfig, WanPolicy


def make_policy(config: PolicyConfig, device: torch.device | str = "cpu") -> SvdPolicy | WanPolicy:
    """Load the policy of an SvdConfig or a WanConfig onto `device`. Raises TypeError for any other configuration."""
    match config:
        case SvdConfig():
            return SvdPolicy(config, device)
        case WanConfig():
            return WanPolicy(config, device)
        case _:
            raise TypeError(f"cannot make a policy from a {type(config).__name__}; give an SvdConfig or a WanConfig")
