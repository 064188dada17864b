"""Tests tiny bases: they are ordinary diffusers folders, reproducible from a seed, and training improves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline, WanImageToVideoPipeline

from experiments.proof.base_training import (
    BasePlan,
    fit_latent_scale,
    save_base,
    train_autoencoder,
    train_base,
    train_denoiser,
)
from protos.types import Clip
from tests.tiny_policies import AnyPolicy, make_tiny, moving_square
from trainer.policies.loading import make_policy
from trainer.policies.protocol import PolicyError, stack
from trainer.policies.tiny import tiny_svd, tiny_wan

NAMES = ["svd", "wan"]
PLAN = BasePlan(autoencoder_steps=3, autoencoder_batch=1, denoiser_steps=3, denoiser_batch=1, ema=0.5)


def clips_for(policy: AnyPolicy, num: int = 3) -> list[Clip]:
    return [moving_square(policy, seed) for seed in range(num)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def quiet(stage: str, step: int, loss: float) -> None: ...


def test_a_seed_makes_one_base(tmp_path: Path) -> None:
    first, again, other = (tiny_wan(tmp_path / f"{i}", seed=seed) for i, seed in enumerate((1, 1, 2)))
    weights = [WanImageToVideoPipeline.from_pretrained(folder).transformer.state_dict() for folder in (first, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    unlike = WanImageToVideoPipeline.from_pretrained(other).transformer.state_dict()
    assert not torch.equal(weights[0]["proj_out.weight"], unlike["proj_out.weight"])


def test_widths_that_group_norm_refuses_are_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"multiples of 32 .* \(16, 32\)"):
        tiny_svd(tmp_path, channels=(16, 32))


def test_latents_shrink_with_the_autoencoders_levels(tmp_path: Path) -> None:
    folder = tiny_svd(tmp_path, vae_channels=(32, 32, 32), latent_channels=3, num_frames=4)
    policy = make_policy(replace(make_tiny("svd").config, base=str(folder)))
    assert policy.latent_shape == (4, 3, 4, 4)
    assert policy.encode(clips_for(policy, 1), [""])[0].latents.shape == policy.latent_shape


@pytest.mark.parametrize("name", NAMES)
def test_training_the_autoencoder_lowers_its_error(name: str) -> None:
    policy = make_tiny(name, lora=None)
    losses: list[float] = []
    plan = replace(PLAN, autoencoder_steps=10)
    train_autoencoder(policy, clips_for(policy), plan, seeded(), lambda stage, step, loss: losses.append(loss))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert not any(p.requires_grad for p in policy.pipe.vae.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_fitted_scale_gives_unit_variance(name: str) -> None:
    policy = make_tiny(name, lora=None)
    clips = clips_for(policy)
    decoded = policy.decode([policy.encode(clips, [""] * 3)[0].latents])[0].frames
    fit_latent_scale(policy, clips, [""] * 3)
    latents = torch.stack([example.latents for example in policy.encode(clips, [""] * 3)])
    if name == "svd":
        assert latents.std().item() == pytest.approx(1, abs=1e-4)
    else:
        deviation, mean = torch.std_mean(latents.transpose(0, 2).flatten(1), dim=1)
        torch.testing.assert_close(deviation, torch.ones(48), rtol=1e-4, atol=0)
        torch.testing.assert_close(mean, torch.zeros(48), rtol=0, atol=1e-4)
    again = policy.decode([latents[0]])[0].frames
    assert abs(again.astype(int) - decoded.astype(int)).max() <= 1  # scaling and back is not exact


@pytest.mark.parametrize("name", NAMES)
def test_training_the_denoiser_lowers_its_loss(name: str) -> None:
    policy = make_tiny(name, lora=None)
    examples = policy.encode(clips_for(policy), [""] * 3)
    before = held_out(policy)
    train_denoiser(policy, examples, replace(PLAN, denoiser_steps=12), seeded(), quiet)
    assert held_out(policy) < 0.95 * before


def held_out(policy: AnyPolicy) -> float:
    batch = stack(policy.encode([moving_square(policy, 0)] * 4, [""] * 4))
    with torch.no_grad():
        return policy.losses(batch, policy.draw(4, torch.Generator().manual_seed(9))).mean().item()


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_base_is_a_reproducible_diffusers_folder(name: str, tmp_path: Path) -> None:
    tiny = make_tiny(name)
    stages: list[str] = []
    saved = []
    for i in range(2):
        folder = train_base(
            tiny.config,
            clips_for(tiny),
            [""] * 3,
            folder=tmp_path / f"{i}",
            plan=PLAN,
            report=lambda stage, step, loss: stages.append(stage),
        )
        kind = StableVideoDiffusionPipeline if name == "svd" else WanImageToVideoPipeline
        saved.append(kind.from_pretrained(folder))
    assert stages == (["autoencoder"] * 3 + ["denoiser"] * 3) * 2
    for component in ("vae", tiny.denoiser_name):
        first, again = (getattr(pipe, component).state_dict() for pipe in saved)
        assert all(torch.equal(first[key], again[key]) for key in first)
    if name == "svd":
        assert isinstance(saved[0].scheduler, EulerDiscreteScheduler)
    assert saved[0].vae.config.scaling_factor != 0.18215 if name == "svd" else any(saved[0].vae.config.latents_mean)
    policy = make_policy(replace(tiny.config, base=str(tmp_path / "0")))
    clip = policy.decode(policy.sample(policy.encode(clips_for(policy, 1), [""])[0], [0]))[0]
    assert clip.frames.shape == clips_for(policy, 1)[0].frames.shape


def test_a_pipeline_with_a_lora_is_not_saved_whole(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="LoRA injected cannot be saved whole"):
        save_base(make_tiny("wan"), tmp_path)


def test_too_few_clips_are_named() -> None:
    policy = make_tiny("wan", lora=None)
    with pytest.raises(PolicyError, match="a batch of 4 needs as many clips, got 1"):
        train_autoencoder(policy, clips_for(policy, 1), BasePlan(autoencoder_batch=4), seeded(), quiet)
    with pytest.raises(PolicyError, match="denoiser_steps must be at least 1"):
        BasePlan(denoiser_steps=0)
