"""Tests adapters: a new one has no effect, a saved one is restored exactly, and diffusers can read it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableVideoDiffusionPipeline, WanImageToVideoPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tiny_policies import AnyPolicy, base_folder, make_tiny, moving_square, stir_lora
from trainer.policies import lora
from trainer.policies.lora import LoraSize
from trainer.policies.protocol import PolicyError, stack

NAMES = ["svd", "wan"]
FILE = "pytorch_lora_weights.safetensors"


def losses_of(policy: AnyPolicy) -> Tensor:
    batch = stack(policy.encode([moving_square(policy)], ["a ball"]))
    with torch.no_grad():
        return policy.losses(batch, policy.draw(1, torch.Generator().manual_seed(0)))


def adapter_of(policy: AnyPolicy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.denoiser.named_parameters() if "lora_" in name}


def stock_policy(name: str, denoiser: nn.Module) -> AnyPolicy:
    """A policy whose losses come from a denoiser loaded by diffusers."""
    policy = make_tiny(name)
    policy.module = denoiser
    return policy


@pytest.mark.parametrize("name", NAMES)
def test_a_new_adapter_has_no_effect(name: str) -> None:
    bare = make_tiny(name, lora=None)
    assert torch.equal(losses_of(make_tiny(name)), losses_of(bare))


@pytest.mark.parametrize("name", NAMES)
def test_a_new_adapter_is_gaussian_from_its_seed(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (adapter_of(make_tiny(name, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key])
        if "lora_A" in key:
            assert not torch.equal(tensor, other[key])
            assert tensor.shape[0] == 4
        else:
            assert not tensor.any()
    values = torch.cat([tensor.flatten() for key, tensor in first.items() if "lora_A" in key])
    assert abs(values.std().item() * 4 - 1) < 0.1  # standard deviation 1 / rank


def test_svd_adapts_only_temporal_attention() -> None:
    policy = make_tiny("svd")
    wrapped = {key.rsplit(".lora_", 1)[0] for key in adapter_of(policy)}
    expected = {
        key
        for key, module in policy.denoiser.named_modules()
        if "temporal_transformer_blocks" in key and key.endswith(("to_q", "to_k", "to_v", "to_out.0"))
        if not isinstance(module, nn.ModuleList)
    }
    assert wrapped == expected
    assert len(wrapped) > 0


def test_wan_adapts_all_attention_of_all_blocks() -> None:
    wrapped = {key.rsplit(".lora_", 1)[0] for key in adapter_of(make_tiny("wan"))}
    layers = ("to_q", "to_k", "to_v", "to_out.0")
    assert wrapped == {f"blocks.{b}.attn{a}.{layer}" for b in (0, 1) for a in (1, 2) for layer in layers}


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_adapter_is_read_bit_for_bit(name: str, tmp_path: Path) -> None:
    policy = make_tiny(name)
    stir_lora(policy)
    policy.save_lora(tmp_path)
    other = make_tiny(name, seed=5)
    trained = {p for p in other.denoiser.parameters() if p.requires_grad}
    other.load_lora(tmp_path)
    assert trained == {p for p in other.denoiser.parameters() if p.requires_grad}  # an optimizer still holds them
    for key, tensor in adapter_of(policy).items():
        assert torch.equal(tensor, adapter_of(other)[key])
    assert torch.equal(losses_of(policy), losses_of(other))
    assert all(p.requires_grad == ("lora_" in key) for key, p in other.denoiser.named_parameters())


def test_a_saved_wan_adapter_loads_in_diffusers(tmp_path: Path) -> None:
    policy = make_tiny("wan")
    stir_lora(policy)
    policy.save_lora(tmp_path)
    pipe = WanImageToVideoPipeline.from_pretrained(base_folder("wan"))
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(losses_of(policy), losses_of(stock_policy("wan", pipe.transformer)))


def test_a_saved_svd_adapter_attaches_to_the_stock_denoiser(tmp_path: Path) -> None:
    policy = make_tiny("svd")
    stir_lora(policy)
    policy.save_lora(tmp_path)
    pipe = StableVideoDiffusionPipeline.from_pretrained(base_folder("svd"))
    lora.attach(pipe.unet, tmp_path, prefix="unet")
    assert torch.equal(losses_of(policy), losses_of(stock_policy("svd", pipe.unet)))


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_adapter_is_a_new_base(name: str, tmp_path: Path) -> None:
    tuned = make_tiny(name)
    stir_lora(tuned)
    tuned.save_lora(tmp_path)
    merged = make_tiny(name, sft_lora=tmp_path)
    torch.testing.assert_close(losses_of(merged), losses_of(tuned))
    assert (losses_of(merged) - losses_of(make_tiny(name))).abs() > 1e-4
    assert len(adapter_of(merged)) == len(adapter_of(tuned))
    assert not any(t.any() for key, t in adapter_of(merged).items() if "lora_B" in key)
    merged.save_lora(tmp_path / "next")
    merged.load_lora(tmp_path / "next")


def test_an_adapter_without_a_header_has_alpha_equal_to_rank(tmp_path: Path) -> None:
    tuned = make_tiny("svd", lora=LoraSize(rank=4, alpha=4))
    stir_lora(tuned)
    tuned.save_lora(tmp_path)
    save_file(load_file(tmp_path / FILE), tmp_path / FILE)
    torch.testing.assert_close(losses_of(make_tiny("svd", sft_lora=tmp_path)), losses_of(tuned))


def test_unfit_adapters_are_refused(tmp_path: Path) -> None:
    policy = make_tiny("wan")
    with pytest.raises(PolicyError, match=f"no {FILE} in"):
        policy.load_lora(tmp_path)
    make_tiny("wan", lora=LoraSize(rank=2)).save_lora(tmp_path)
    with pytest.raises(PolicyError, match=r"differs from this policy's in 32 layers.*\[2, 48\] for \[4, 48\]"):
        policy.load_lora(tmp_path)
    with pytest.raises(PolicyError, match="LoRA of another model"):
        make_tiny("svd").load_lora(tmp_path)
    with pytest.raises(PolicyError, match="has no LoRA"):
        make_tiny("wan", lora=None).save_lora(tmp_path)
    with pytest.raises(PolicyError, match="at least 1, got 0"):
        LoraSize(rank=0)


# --- adapters of another peft ---------------------------------------------------------------------


def save_with_settings(policy: AnyPolicy, folder: Path, **settings: Any) -> None:
    """Save the policy's LoRA with changed settings in its header."""
    policy.save_lora(folder)
    with safe_open(folder / FILE, "pt") as file:
        header = dict(file.metadata())
    described = json.loads(header[LORA_ADAPTER_METADATA_KEY])
    described |= {f"{policy.denoiser_name}.{name}": value for name, value in settings.items()}
    header[LORA_ADAPTER_METADATA_KEY] = json.dumps(described)
    save_file(load_file(folder / FILE), folder / FILE, metadata=header)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("saved", ["99.1.0", None])
def test_settings_of_a_newer_peft_are_named_with_both_versions(name: str, saved: str | None, tmp_path: Path) -> None:
    policy = make_tiny(name)
    save_with_settings(policy, tmp_path, peft_version=saved, use_foo=None, bar=3)
    bare = make_tiny(name, lora=None)
    ways = (
        lambda: policy.load_lora(tmp_path),
        lambda: lora.attach(bare.denoiser, tmp_path, prefix=bare.denoiser_name),
        lambda: make_tiny(name, sft_lora=tmp_path),  # how a run is started and resumed
    )
    for way in ways:
        with pytest.raises(PolicyError) as refused:
            way()
        assert str(refused.value).startswith(
            f"{tmp_path / FILE} was saved with peft {saved or 'of unknown version'}; the installed peft "
            f"{version('peft')} lacks 2 of its settings: bar, use_foo; install a peft that has them"
        )


def test_settings_that_peft_refuses_name_both_versions(tmp_path: Path) -> None:
    policy = make_tiny("wan")
    save_with_settings(policy, tmp_path, peft_version="99.1.0", task_type="NO_SUCH_TASK")
    match = rf"saved with peft 99.1.0; the installed peft {version('peft')} refuses its settings \(.*NO_SUCH_TASK"
    with pytest.raises(PolicyError, match=match):
        policy.load_lora(tmp_path)
