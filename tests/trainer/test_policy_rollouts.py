"""Tests rollouts, decoding and encoding of toy policies against diffusers' own pipelines and the sampler's formula."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline, WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

from protos.types import Clip
from tests.tiny_policies import AnyPolicy, base_folder, make_tiny, moving_square, stir_lora
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Example, PolicyError, stack
from trainer.policies.svd import SeededEulerAncestral, SvdConfig, SvdPolicy
from trainer.policies.wan import WanConfig

NAMES = ["svd", "wan"]


@pytest.fixture(scope="module", params=NAMES)
def policy(request: pytest.FixtureRequest) -> AnyPolicy:
    return make_tiny(request.param)


@pytest.fixture(scope="module")
def example(policy: AnyPolicy) -> Example:
    return policy.encode([moving_square(policy)], ["a ball"])[0]


def picture_of(policy: AnyPolicy) -> Image.Image:
    return Image.fromarray(moving_square(policy).frames[0].transpose(1, 2, 0))


def sampled_by_formula(policy: SvdPolicy, pipe: StableVideoDiffusionPipeline, seed: int) -> Tensor:
    """An SVD rollout by its formula: guidance per frame, Karras sigmas, Euler-ancestral steps. `pipe` has no LoRA."""
    generator = torch.Generator().manual_seed(seed)
    image = picture_of(policy)
    pixels = pipe.video_processor.preprocess(image, policy.height_px, policy.width_px)
    pixels = pixels + 0.02 * torch.randn(pixels.shape, generator=generator)
    condition = pipe.vae.encode(pixels).latent_dist.mode()[:, None].repeat(1, policy.num_frames, 1, 1, 1)
    embedding = pipe._encode_image([image], "cpu", 1, False)
    ids = torch.tensor([[policy.fps - 1, 127, 0.02]])
    ramp = torch.linspace(0, 1, policy.config.num_steps, dtype=torch.float64)
    sigmas = [*((700 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7).tolist(), 0.0]
    guidance = torch.linspace(1, 3, policy.num_frames).view(1, -1, 1, 1, 1)
    x = torch.randn(1, *policy.latent_shape, generator=generator) * (sigmas[0] ** 2 + 1) ** 0.5
    for s, to in pairwise(sigmas):
        scaled, t = x / (s**2 + 1) ** 0.5, 0.25 * torch.tensor(s).log()
        outputs = [
            pipe.unet(torch.cat([scaled, keep * condition], dim=2), t, keep * embedding, ids).sample for keep in (0, 1)
        ]
        output = outputs[0] + guidance * (outputs[1] - outputs[0])
        clean = x / (s**2 + 1) - s / (s**2 + 1) ** 0.5 * output
        up = (to**2 * (s**2 - to**2) / s**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        x = x + (x - clean) / s * (down - s) + up * torch.randn(x.shape, generator=generator)
    return x[0]


@torch.no_grad()
def test_svd_rollout_is_the_euler_ancestral_formula() -> None:
    policy = make_tiny("svd")
    example = policy.encode([moving_square(policy)], [""])[0]
    stock = StableVideoDiffusionPipeline.from_pretrained(base_folder("svd"))
    torch.testing.assert_close(
        policy.sample(example, [11])[0], sampled_by_formula(policy, stock, 11), rtol=1e-3, atol=1e-3
    )


def test_ancestral_steps_follow_svds_own_levels() -> None:
    euler = EulerDiscreteScheduler.from_pretrained(base_folder("svd"), subfolder="scheduler")
    ancestral = SeededEulerAncestral.over(euler)
    ancestral.set_timesteps(25)
    stock = EulerDiscreteScheduler.from_pretrained(base_folder("svd"), subfolder="scheduler")
    stock.set_timesteps(25)
    assert torch.equal(ancestral.sigmas, stock.sigmas)
    assert torch.equal(ancestral.timesteps, stock.timesteps)
    assert ancestral.init_noise_sigma == stock.init_noise_sigma
    assert (ancestral.sigmas[0].item(), ancestral.sigmas[-1].item()) == (pytest.approx(700), 0)


@torch.no_grad()
def test_a_fresh_wan_policy_samples_as_the_stock_pipeline() -> None:
    policy = make_tiny("wan")
    example = policy.encode([moving_square(policy)], ["a ball"])[0]
    stock = WanImageToVideoPipeline.from_pretrained(base_folder("wan"))
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        picture_of(policy),
        prompt="a ball",
        negative_prompt=policy.config.negative_prompt,
        height=policy.height_px,
        width=policy.width_px,
        num_frames=policy.num_frames,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(11),
        output_type="latent",
    ).frames
    torch.testing.assert_close(policy.sample(example, [11])[0], expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_the_lora_changes_rollouts() -> None:
    policy = make_tiny("wan")
    example = policy.encode([moving_square(policy)], ["a ball"])[0]
    before = policy.sample(example, [1])[0]
    stir_lora(policy)
    assert not torch.allclose(before, policy.sample(example, [1])[0], atol=1e-2)


def test_a_rollout_depends_only_on_its_own_seed(policy: AnyPolicy, example: Example) -> None:
    policy.group_size = 2
    together = policy.sample(example, [1, 2, 3])
    policy.group_size = 1
    alone = policy.sample(example, [3, 1])
    policy.group_size = 2
    for rollout, same in ((alone[0], together[2]), (alone[1], together[0])):
        torch.testing.assert_close(rollout, same, rtol=1e-4, atol=1e-4)  # they differ only in the order of sums
    assert torch.equal(policy.sample(example, [1, 2, 3])[1], together[1])
    assert (together[0] - together[1]).abs().max() > 0.1


def test_rollouts_leave_the_global_generator_alone(policy: AnyPolicy, example: Example) -> None:
    before = torch.get_rng_state()
    policy.sample(example, [1])
    assert torch.equal(before, torch.get_rng_state())


def test_rollouts_are_float32_latents_for_training(policy: AnyPolicy, example: Example) -> None:
    rollout = policy.sample(example, [1])[0]
    assert rollout.shape == policy.latent_shape
    assert rollout.dtype == torch.float32
    assert not rollout.requires_grad
    beside = policy.with_latents(example, rollout)
    assert torch.equal(beside.latents, rollout)
    assert all(torch.equal(beside.tensors[n], t) for n, t in example.tensors.items() if n != "latents")
    losses = policy.losses(stack([example, beside]), policy.draw(2, torch.Generator().manual_seed(0)))
    assert losses.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_rollouts_are_float32_latents_near_the_exact(name: str) -> None:
    policy = make_tiny(name, precision="bf16")
    example = policy.encode([moving_square(policy)], ["a ball"])[0]
    rough, exact = policy.sample(example, [1, 2])[0], make_tiny(name).sample(example, [1])[0]
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()
    assert policy.decode([rough])[0].frames.shape == moving_square(policy).frames.shape


def test_wan_rollouts_keep_the_first_latent_frame() -> None:
    policy = make_tiny("wan")
    example = policy.encode([moving_square(policy)], ["a ball"])[0]
    rollout = policy.sample(example, [1])[0]
    torch.testing.assert_close(rollout[0], example.latents[0])
    assert not torch.allclose(rollout[1], example.latents[1], atol=0.1)


def test_wan_encodes_the_first_frame_by_itself() -> None:
    policy = make_tiny("wan")
    clip = moving_square(policy)
    other = Clip(frames=np.concatenate([clip.frames[:1], 255 - clip.frames[1:]]), fps=clip.fps)
    first, second = (example.latents for example in policy.encode([clip, other], ["", ""]))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1], atol=1e-3)


def test_wan_encodes_each_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_tiny("wan")
    texts: list[str] = []
    encode = policy.pipe.encode_prompt
    monkeypatch.setattr(policy.pipe, "encode_prompt", lambda text, **more: texts.append(text) or encode(text, **more))
    clip = moving_square(policy)
    examples = policy.encode([clip] * 3, ["a ball", "a cube", "a ball"])
    assert texts == ["a ball", "a cube"]
    assert not torch.equal(examples[0].tensors["prompt"], examples[1].tensors["prompt"])
    assert examples[0].tensors["prompt"].shape == (512, 32)


def test_encoded_clips_decode_to_clips(policy: AnyPolicy, example: Example) -> None:
    assert example.latents.shape == policy.latent_shape
    assert {tensor.device.type for tensor in example.tensors.values()} == {"cpu"}
    clips = policy.decode([example.latents, example.latents + 0.1])
    assert [clip.frames.shape for clip in clips] == [moving_square(policy).frames.shape] * 2
    assert all(clip.fps == policy.fps and clip.frames.std() > 0 for clip in clips)
    assert np.array_equal(clips[0].frames, policy.decode([example.latents])[0].frames)


def test_clips_may_be_read_only(policy: AnyPolicy, example: Example) -> None:
    clip = moving_square(policy)
    clip.frames.setflags(write=False)
    assert torch.equal(policy.encode([clip], ["a ball"])[0].latents, example.latents)


def test_svd_latents_are_scaled_and_framewise() -> None:
    policy = make_tiny("svd", decode_chunk=3)
    clip = moving_square(policy)
    latents = policy.encode([clip], [""])[0].latents
    with torch.no_grad():
        pixels = torch.from_numpy(clip.frames[2:3]).float() / 127.5 - 1
        expected = policy.pipe.vae.encode(pixels).latent_dist.mode()[0] * policy.pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents[2], expected, rtol=1e-4, atol=1e-5)


def test_decoding_undoes_the_latent_scale() -> None:
    policy = make_tiny("svd")
    latents = torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(0))
    before = policy.decode([latents])[0].frames
    policy.pipe.vae.register_to_config(scaling_factor=policy.pipe.vae.config.scaling_factor * 3)
    assert np.array_equal(policy.decode([latents * 3])[0].frames, before)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_clips_are_refused(name: str) -> None:
    policy = make_tiny(name)
    clip = moving_square(policy)
    with pytest.raises(PolicyError, match=rf"takes frames \[{policy.num_frames}, 3, .* got \[1, 3,"):
        policy.encode([Clip(frames=clip.frames[:1], fps=8)], [""])
    with pytest.raises(PolicyError, match="1 clips and 2 captions"):
        policy.encode([clip], ["a", "b"])
    with pytest.raises(PolicyError, match="latents must be"):
        policy.with_latents(policy.encode([clip], [""])[0], torch.zeros(1, 4, 2, 2))


def test_examples_of_different_shapes_do_not_stack(example: Example) -> None:
    with pytest.raises(PolicyError, match="at least one"):
        stack([])
    shorter = Example(tensors={**example.tensors, "latents": example.latents[:1]})
    with pytest.raises(PolicyError, match="equal shapes"):
        stack([example, shorter])
    with pytest.raises(PolicyError, match=r"latents \[F,C,h,w\]"):
        Example(tensors={"prompt": torch.zeros(1)})


def test_configurations_check_themselves() -> None:
    assert SvdConfig().num_frames == 24
    with pytest.raises(PolicyError, match="4k \\+ 1"):
        WanConfig(num_frames=48)
    with pytest.raises(PolicyError, match="width_px must be a multiple of 32 for this model, got 848"):
        WanConfig(width_px=848)
    with pytest.raises(PolicyError, match="height_px must be a multiple of 8"):
        SvdConfig(height_px=321)
    with pytest.raises(PolicyError, match="group_size must be at least 1, got 0"):
        SvdConfig(group_size=0)
    with pytest.raises(PolicyError, match="precision must be one of fp32, bf16, got fp16"):
        SvdConfig(precision="fp16")  # type: ignore[arg-type]


def test_a_policy_is_made_from_its_configuration() -> None:
    config = make_tiny("wan").config
    assert make_policy(config).name == "wan"
    with pytest.raises(PolicyError, match="expand_timesteps"):
        stock = WanImageToVideoPipeline.from_pretrained(base_folder("wan"), expand_timesteps=False)
        folder = base_folder("wan").with_name("wan-one-timestep")
        stock.save_pretrained(folder)
        make_policy(WanConfig(base=str(folder), precision="fp32"))
