"""Tests the losses' formulas by hand, and the policies' losses against them with the real denoisers at toy size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_policies import AnyPolicy, make_tiny, moving_square
from trainer.policies import edm, flow
from trainer.policies.protocol import Batch, Draw, stack

NAMES = ["svd", "wan"]


@pytest.fixture(scope="module", params=NAMES)
def policy(request: pytest.FixtureRequest) -> AnyPolicy:
    return make_tiny(request.param)


def batch_of(policy: AnyPolicy, num: int = 2) -> Batch:
    return stack(policy.encode([moving_square(policy, seed) for seed in range(num)], ["a ball"] * num))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs_of(policy: AnyPolicy, batch: Batch, draw: Draw) -> dict[str, Any]:
    """The arguments of the denoiser's call. The first two positional ones are named `sample` and `timestep`."""
    seen: dict[str, Any] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs, **dict(zip(("sample", "timestep"), args, strict=False)))

    hook = policy.module.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        policy.losses(batch, draw)
    hook.remove()
    return seen


def full(value: float) -> Tensor:
    return torch.full((1, 2, 1, 1, 1), value)


def test_edm_loss_by_hand() -> None:
    # s = 2, clean 1, noise -1: noised -1; prediction 0 gives denoised -1/5, error 1.44, weight 5/4
    loss = edm.losses(full(0.0), full(-1.0), full(1.0), torch.tensor([2.0]))
    torch.testing.assert_close(loss, torch.tensor([1.8]))


def test_edm_loss_is_zero_for_the_right_v() -> None:
    sigma, clean, noise = torch.tensor([3.0]), full(0.5), full(-0.2)
    v = (noise - 3.0 * clean) / math.sqrt(10.0)  # v = (noise - s * clean) / sqrt(1 + s^2), in SVD's sign
    loss = edm.losses(v, clean + 3.0 * noise, clean, sigma)
    assert loss.item() < 1e-12


def test_edm_scalings_by_hand() -> None:
    sigma = torch.tensor([math.sqrt(3.0)])
    torch.testing.assert_close(edm.scaled_input(full(1.0), sigma), full(0.5))
    torch.testing.assert_close(edm.timestep(sigma), torch.tensor([0.125 * math.log(3.0)]))


def test_levels_are_lognormal() -> None:
    logs = edm.lognormal(200_000, edm.NOISE_LEVEL, seeded()).log()
    assert abs(logs.mean().item() - 0.7) < 0.02
    assert abs(logs.std().item() - 1.6) < 0.02


def test_condition_dropout_is_three_way() -> None:
    embedding, image = edm.kept_conditions(torch.tensor([0.05, 0.15, 0.25, 0.35, 0.99]), 0.1)
    assert embedding.tolist() == [0, 0, 1, 1, 1]
    assert image.tolist() == [1, 0, 0, 1, 1]


def test_no_dropout_keeps_all() -> None:
    embedding, image = edm.kept_conditions(torch.rand(1000, generator=seeded()), 0.0)
    assert embedding.min() == 1
    assert image.min() == 1


def test_flow_levels_by_hand() -> None:
    levels = flow.shifted_levels(5.0)
    assert len(levels.sigmas) == 1000
    assert levels.sigmas[0] == 1.0
    torch.testing.assert_close(levels.sigmas[500], torch.tensor(2.5 / 3))  # u = 1/2
    torch.testing.assert_close(levels.timesteps, 1000 * levels.sigmas)
    torch.testing.assert_close(levels.weights.mean(), torch.tensor(1.0))
    assert levels.weights.min() == 0
    assert abs(levels.timesteps[levels.weights.argmax()] - 500) < 2
    # the bell is exp(-1/2) at timestep 1000 and 1 at timestep 500
    ratio = (1 - math.exp(-0.5)) / (math.exp(-2 * 0.3**2) - math.exp(-0.5))
    at_200 = levels.weights[(levels.timesteps - 200).abs().argmin()]
    torch.testing.assert_close(levels.weights.max() / at_200, torch.tensor(ratio), rtol=2e-2, atol=0)


def test_flow_loss_by_hand() -> None:
    clean, noise = torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[7.0, 1.0, 2.0]])
    shaped = [x[:, :, None, None, None] for x in (torch.zeros(1, 3), clean, noise)]
    loss = flow.losses(*shaped, torch.tensor([0.5]))
    # the first frame's error of 36 is left out
    torch.testing.assert_close(loss, torch.tensor([0.5 * (2.0**2 + 3.0**2) / 2]))


def test_noised_latents_keep_the_first_frame() -> None:
    clean, noise = torch.zeros(2, 3, 1, 1, 1), torch.ones(2, 3, 1, 1, 1)
    mixed = flow.noised(clean, noise, torch.tensor([0.25, 1.0]))
    assert mixed.flatten(1).tolist() == [[0, 0.25, 0.25], [0, 1, 1]]
    assert flow.token_timesteps(torch.tensor([250.0]), 3, 2).tolist() == [[0, 0, 250, 250, 250, 250]]


def test_losses_are_one_per_sample(policy: AnyPolicy) -> None:
    losses = policy.losses(batch_of(policy, 3), policy.draw(3, seeded()))
    assert losses.shape == (3,)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


def test_svd_loss_is_the_edm_loss_of_its_denoiser() -> None:
    policy = make_tiny("svd", condition_dropout=0.0)
    batch, draw = batch_of(policy), policy.draw(2, seeded())
    x, noise, s = batch.latents, draw.tensors["noise"], draw.tensors["sigma"].view(-1, 1, 1, 1, 1)
    pixels = batch.tensors["first_frame"] / 255 * 2 - 1
    aug = draw.tensors["condition_sigma"]
    with torch.no_grad():
        noisy = pixels + aug.view(-1, 1, 1, 1) * draw.tensors["condition_noise"]
        image = policy.pipe.vae.encode(noisy).latent_dist.mode()[:, None].repeat(1, policy.num_frames, 1, 1, 1)
        noised = x + s * noise
        output = policy.pipe.unet(
            torch.cat([noised / (s**2 + 1).sqrt(), image], dim=2),
            0.25 * draw.tensors["sigma"].log(),
            batch.tensors["embedding"],
            torch.tensor([[7.0, 127.0, a] for a in aug.tolist()]),
        ).sample
        clean = noised / (s**2 + 1) - s / (s**2 + 1).sqrt() * output
        expected = ((1 + s**2) / s**2 * (clean - x) ** 2).mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(policy.losses(batch, draw), expected)


def test_svd_drops_the_conditions_it_draws() -> None:
    policy = make_tiny("svd")
    batch = batch_of(policy, 4)
    draw = policy.draw(4, seeded())
    draw = Draw(tensors={**draw.tensors, "dropout": torch.tensor([0.05, 0.15, 0.25, 0.9])})
    seen = inputs_of(policy, batch, draw)
    embeddings = seen["encoder_hidden_states"].abs().sum(dim=(1, 2)) > 0
    images = seen["sample"][:, :, 4:].abs().sum(dim=(1, 2, 3, 4)) > 0
    assert embeddings.tolist() == [False, False, True, True]
    assert images.tolist() == [True, False, False, True]


def test_wan_loss_is_the_flow_matching_loss_of_its_denoiser() -> None:
    policy = make_tiny("wan")
    batch, draw = batch_of(policy), policy.draw(2, seeded())
    x, noise = batch.latents.transpose(1, 2), draw.tensors["noise"].transpose(1, 2)
    s = flow.shifted_levels(5.0).sigmas[draw.tensors["level"]]
    weight = flow.shifted_levels(5.0).weights[draw.tensors["level"]]
    mask = torch.ones(2, 1, x.shape[2], 1, 1)
    mask[:, :, 0] = 0
    level = s.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        output = policy.pipe.transformer(
            (1 - mask) * x + mask * ((1 - level) * x + level * noise),
            (mask.expand(2, 1, x.shape[2], 2, 2) * 1000 * level).flatten(1),
            batch.tensors["prompt"],
        ).sample
        expected = weight * ((output - (noise - x)) ** 2)[:, :, 1:].mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(policy.losses(batch, draw), expected)


def test_wan_sees_a_clean_first_frame_at_timestep_0() -> None:
    policy = make_tiny("wan")
    batch = batch_of(policy)
    seen = inputs_of(policy, batch, policy.draw(2, seeded()))
    first = seen["hidden_states"][:, :, 0]
    assert torch.equal(first, batch.latents[:, 0])
    assert not torch.equal(seen["hidden_states"][:, :, 1], batch.latents[:, 1])
    tokens = first.shape[-2] * first.shape[-1] // 4
    assert (seen["timestep"][:, :tokens] == 0).all()
    assert (seen["timestep"][:, tokens:] > 0).all()


def test_a_shared_draw_gives_the_same_noise_to_both_clips(policy: AnyPolicy) -> None:
    real = policy.encode([moving_square(policy)], ["a ball"])[0]
    rollout = policy.with_latents(real, real.latents + 1)
    one = policy.draw(1, seeded())
    together = inputs_of(policy, stack([real, rollout]), rows_of(one, [0, 0]))
    for name in ("timestep", "encoder_hidden_states"):
        assert torch.equal(together[name][0], together[name][1])
    seen = together["sample" if policy.name == "svd" else "hidden_states"]
    # the noise cancels: the inputs differ by the scaled difference of the clips
    difference = seen[1] - seen[0]
    if policy.name == "svd":
        scale = 1 / (one.tensors["sigma"] ** 2 + 1).sqrt()
        torch.testing.assert_close(difference[:, :4], scale.expand_as(difference[:, :4]), rtol=1e-4, atol=1e-5)
        assert torch.equal(seen[0, :, 4:], seen[1, :, 4:])
    else:
        kept = 1 - flow.shifted_levels(5.0).sigmas[one.tensors["level"]]
        torch.testing.assert_close(difference[:, 1:], kept.expand_as(difference[:, 1:]), rtol=1e-4, atol=1e-5)


def rows_of(draw: Draw, rows: list[int]) -> Draw:
    return Draw(tensors={name: tensor[rows] for name, tensor in draw.tensors.items()})


def test_a_draw_depends_only_on_its_generator(policy: AnyPolicy) -> None:
    first, again, other = (policy.draw(2, seeded(seed)) for seed in (0, 0, 1))
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
    assert not torch.equal(first.tensors["noise"], other.tensors["noise"])
    assert len(first) == 2


def test_a_sample_loss_does_not_depend_on_its_neighbours(policy: AnyPolicy) -> None:
    batch, draw = batch_of(policy, 3), policy.draw(3, seeded())
    with torch.no_grad():
        together = policy.losses(batch, draw)
        for i in range(3):
            alone = Batch(tensors={name: tensor[i : i + 1] for name, tensor in batch.tensors.items()})
            torch.testing.assert_close(policy.losses(alone, rows_of(draw, [i])), together[i : i + 1])


def test_the_prepared_module_is_what_losses_call(policy: AnyPolicy) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.inner(*args, **kwargs)

    wrapped = Wrapped(policy.module)
    policy.module = wrapped
    policy.losses(batch_of(policy, 1), policy.draw(1, seeded()))
    policy.module = wrapped.inner
    assert wrapped.calls == 1


@pytest.mark.parametrize("name", NAMES)
def test_only_the_lora_is_trained_and_its_loss_falls(name: str) -> None:
    policy = make_tiny(name)
    batch, draw = batch_of(policy), policy.draw(2, seeded())
    before = {key: value.clone() for key, value in policy.module.state_dict().items()}
    trained = [p for p in policy.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = policy.losses(batch, draw).mean()
        loss.backward()
        assert all(p.grad is not None for p in trained)  # DDP waits for the gradient of each parameter
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    changed = {key for key, value in policy.module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "lora_" in key}
    frozen = (policy.pipe.vae, policy.pipe.image_encoder if name == "svd" else policy.pipe.text_encoder)
    assert all(p.grad is None for component in frozen for p in component.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_tiny(name, gradient_checkpointing=checkpointing)
        policy.losses(batch_of(policy), policy.draw(2, seeded())).sum().backward()
        gradients.append([p.grad for p in policy.module.parameters() if p.grad is not None])
    assert len(gradients[0]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_lora_all_of_the_denoiser_is_trained(name: str) -> None:
    policy = make_tiny(name, lora=None)
    policy.losses(batch_of(policy), policy.draw(2, seeded())).sum().backward()
    assert [key for key, p in policy.module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_lora_and_loss_in_float32(name: str) -> None:
    policy = make_tiny(name, precision="bf16")
    batch, draw = batch_of(policy), policy.draw(2, seeded())
    losses = policy.losses(batch, draw)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert {p.dtype for p in policy.module.parameters() if p.requires_grad} == {torch.float32}
    assert policy.denoiser.dtype == torch.bfloat16
    plain = make_tiny(name)
    torch.testing.assert_close(losses, plain.losses(batch_of(plain), draw), rtol=0.05, atol=0.02)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_agrees_with_cpu(name: str, precision: str) -> None:
    here, there = make_tiny(name, precision=precision), make_tiny(name, device="cuda", precision=precision)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if precision == "fp32" else {"rtol": 0.05, "atol": 0.05}
    batch, draw = batch_of(here), here.draw(2, seeded())
    torch.testing.assert_close(there.losses(batch, draw).cpu(), here.losses(batch, draw), **tolerance)
    example = there.encode([moving_square(there)], ["a ball"])[0]
    assert {tensor.device.type for tensor in example.tensors.values()} == {"cpu"}
    rollout = there.sample(example, [1])[0]
    if precision == "fp32":
        torch.testing.assert_close(rollout, here.sample(example, [1])[0], rtol=1e-2, atol=1e-2)
    assert there.decode([rollout])[0].frames.shape == moving_square(there).frames.shape
