"""Tests properties of SEA-RAFT at small sizes with random weights. `test_parity.py` compares it to stored outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reward_server.estimators.sea_raft import (
    Block,
    Encoder,
    SeaRaft,
    SeaRaftConfig,
    correlation_pyramid,
    lookup,
    upsampled,
)

KEYS = Path(__file__).parents[1] / "golden" / "searaft_m_keys.txt"


@pytest.fixture(scope="module")
def net() -> SeaRaft:
    return random_net()


def random_net(**config: int) -> SeaRaft:
    torch.manual_seed(2)
    model = SeaRaft(SeaRaftConfig(iters=2, **config))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            drift(module)
    return model


def drift(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 1.5)
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_(0, 0.1)


def clip(num_frames: int, height: int = 64, width: int = 72, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(num_frames, 3, 12, 14, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_keys_and_shapes_are_the_published_checkpoints(net: SeaRaft) -> None:
    published = dict(line.split() for line in KEYS.read_text().splitlines())
    ours = {name: "x".join(map(str, value.shape)) or "scalar" for name, value in net.state_dict().items()}
    assert ours == published
    assert len(published) == 472
    assert sum(parameter.numel() for parameter in net.parameters()) == 19_663_876
    state = {
        n: torch.zeros([int(s) for s in shape.split("x")] if shape != "scalar" else [])
        for n, shape in published.items()
    }
    SeaRaft().load_state_dict(state, strict=True)
    state.pop("fnet.layer2.0.downsample.1.running_var")
    with pytest.raises(RuntimeError, match=r"downsample\.1\.running_var"):
        SeaRaft().load_state_dict(state, strict=True)


def test_it_is_frozen(net: SeaRaft) -> None:
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_training_mode_changes_nothing() -> None:
    """SHIFT's reference trainer calls .train(), which changes the BatchNorm statistics. That is impossible here."""
    model, frames = random_net(), clip(2)[None]
    before, state = model.eval()(frames, iters=1).flow, {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(model.train()(frames, iters=1).flow, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_batch_is_its_clips_one_by_one(net: SeaRaft) -> None:
    frames = torch.stack([clip(3, seed=1), clip(3, seed=2)])
    batch = net(frames)
    assert batch.flow.shape == (2, 2, 2, 64, 72)
    assert batch.info.shape == (2, 2, 4, 64, 72)
    for index in range(2):
        alone = net(frames[index, None])
        assert torch.equal(batch.flow[index], alone.flow[0])
        assert torch.equal(batch.info[index], alone.info[0])


def test_a_clip_is_its_pairs_one_by_one(net: SeaRaft) -> None:
    frames = clip(4)
    whole = net(frames[None])
    for pair in range(3):
        alone = net(frames[None, pair : pair + 2])
        torch.testing.assert_close(whole.flow[:, pair], alone.flow[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole.info[:, pair], alone.info[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pairs_per_pass", [2, 3, 8])
def test_passes_change_memory_not_results(net: SeaRaft, pairs_per_pass: int) -> None:
    frames = clip(4)[None]
    ours = random_net(pairs_per_pass=pairs_per_pass)(frames)
    torch.testing.assert_close(ours.flow, net(frames).flow, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.info, net(frames).info, atol=1e-4, rtol=1e-4)


def test_every_frame_passes_the_feature_net_once() -> None:
    model, seen = random_net(), []
    model.fnet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model(clip(4)[None], iters=0)
    assert sum(seen) == 4


def test_one_frame_has_no_pairs(net: SeaRaft) -> None:
    estimate = net(clip(1, 65, 70)[None])
    assert estimate.flow.shape == (1, 0, 2, 65, 70)
    assert estimate.info.shape == (1, 0, 4, 65, 70)


@pytest.mark.parametrize(
    ("height", "width", "padded"), [(67, 73, (2, 3, 3, 4)), (64, 79, (0, 0, 0, 1)), (71, 72, (0, 1, 0, 0))]
)
def test_odd_sizes_are_padded_and_cropped(net: SeaRaft, height: int, width: int, padded: tuple[int, ...]) -> None:
    """The larger half of the padding goes to the bottom and right. `padded` is (top, bottom, left, right)."""
    frames = clip(2, height, width)[None].float()
    top, bottom, left, right = padded
    by_hand = F.pad(frames[0], (left, right, top, bottom), mode="replicate")[None]
    assert by_hand.shape[-2] % 8 == by_hand.shape[-1] % 8 == 0
    ours, expected = net(frames), net(by_hand)
    assert torch.equal(ours.flow, expected.flow[..., top : top + height, left : left + width])
    assert torch.equal(ours.info, expected.info[..., top : top + height, left : left + width])


def test_iterations_refine_flow_and_replace_info(net: SeaRaft) -> None:
    frames = net.normalised(clip(2))
    steps = list(net.refinements(frames, net.fnet(frames), 2))
    assert len(steps) == 3
    discriminators = [net.flow_head(hidden) for hidden, _, _ in steps]
    torch.testing.assert_close(
        steps[2][1], discriminators[0][:, :2] + discriminators[1][:, :2] + discriminators[2][:, :2]
    )
    assert torch.equal(steps[2][2], discriminators[2][:, 2:])


def test_lookup_is_bilinear_and_zero_outside() -> None:
    """Compare with grid_sample at each offset separately; x is the slower offset."""
    torch.manual_seed(4)
    first, second = torch.randn(2, 2, 16, 9, 11)
    flow = torch.randn(2, 2, 9, 11) * 6
    flow[:, :, 0, 0] = torch.tensor([1e4, -1e4])
    volumes = correlation_pyramid(first, second)
    ours = lookup(volumes, flow).view(2, 4, 9, 9, 9, 11)  # [P, level, dx, dy, h, w]
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    match = (torch.stack([x, y]) + flow).permute(0, 2, 3, 1).reshape(-1, 2)
    steps = torch.arange(-4.0, 5.0)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    for level, volume in enumerate(volumes):
        maps = volume.flatten(0, 1)[:, None]
        sizes = torch.tensor([maps.shape[3], maps.shape[2]])
        at = match[:, None, None] / 2**level + offsets
        grid = (2 * at + 1) / sizes - 1  # pixel centres, align_corners=False
        values = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        expected = values.view(2, 9, 11, 9, 9).permute(0, 3, 4, 1, 2)
        torch.testing.assert_close(ours[:, level], expected, atol=1e-4, rtol=1e-3)


def test_correlation_pyramid_is_the_mean_of_products() -> None:
    torch.manual_seed(4)
    first, second = torch.randn(2, 1, 16, 8, 9)
    volumes = correlation_pyramid(first, second)
    assert [list(volume.shape) for volume in volumes] == [[1, 72, 8, 9], [1, 72, 4, 4], [1, 72, 2, 2], [1, 72, 1, 1]]
    product = (first[0, :, 3, 5] * second[0, :, 6, 2]).sum() / 4
    torch.testing.assert_close(volumes[0][0, 3 * 9 + 5, 6, 2], product)
    torch.testing.assert_close(volumes[3][0, :, 0, 0], volumes[0][0, :, :8, :8].mean((-2, -1)), atol=1e-6, rtol=1e-5)


def test_upsampling_copies_the_cell_that_the_mask_names() -> None:
    values = torch.arange(24.0).view(1, 2, 3, 4) + 1
    mask = torch.full((1, 9, 8, 8, 3, 4), -1e4)
    mask[:, 4] = 0  # every pixel takes its own cell...
    mask[0, 4, 2, 5, 1, 1], mask[0, 3, 2, 5, 1, 1] = -1e4, 0  # ...but one its left neighbour's
    mask[0, 4, 0, 7, 0, 3], mask[0, 1, 0, 7, 0, 3] = -1e4, 0  # and one the zero above the map
    up = upsampled(values, mask.view(1, 576, 3, 4))
    expected = values.repeat_interleave(8, 2).repeat_interleave(8, 3)
    expected[..., 8 + 2, 8 + 5] = values[..., 1, 0]
    expected[..., 0, 24 + 7] = 0
    assert torch.equal(up, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_folded_block_is_convolution_then_batch_norm(stride: int) -> None:
    torch.manual_seed(6)
    block = Block(8, 8 * stride, stride).eval().requires_grad_(False)
    for norm in [block.bn1, block.bn2, *([block.bn3] if stride == 2 else [])]:
        drift(norm)
    x = torch.randn(2, 8, 10, 12)
    y = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    shortcut = x if block.downsample is None else block.downsample(x)
    torch.testing.assert_close(block(x), F.relu(y + shortcut), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.conv1.fused(x, norm=block.bn1), block.bn1(block.conv1(x)), atol=1e-5, rtol=1e-5)


def test_encoder_has_a_cell_per_8_pixels() -> None:
    encoder = Encoder(6).requires_grad_(False)
    assert encoder(torch.zeros(1, 6, 40, 72)).shape == (1, 256, 5, 9)


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (1, 2, 4, 64, 64), (1, 2, 3, 63, 64), (1, 2, 3, 64, 8)])
def test_bad_inputs_are_named(net: SeaRaft, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames must be \[B,T,3,H,W\], H and W >= 64, got"):
        net(torch.zeros(shape))
