# SPDX-License-Identifier: Apache-2.0
"""What both stereo networks share: lookup and up-sampling by slow loops, equal correlations, bounded memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.stereo_networks import layers
from training.stereo_networks.layers import (
    ConvGRU,
    CorrelationLookup,
    InstanceNorm,
    MotionEncoder,
    ResidualBlock,
    blend_neighbours,
    halve,
    resize_like,
    sample_taps,
    scaled_features,
    stack_taps,
    start_states,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- lookup ---


def linear_at(row: list[float], place: float) -> float:
    """Interpolate one row at one place; zero outside."""
    below = int(np.floor(place))
    first, second = (row[i] if 0 <= i < len(row) else 0.0 for i in (below, below + 1))
    return first + (place - below) * (second - first)


def correlations_by_loop(left, right, disparity, levels: int, radius: int) -> np.ndarray:
    """[B,h,w,L,T], one dot product at a time, from the volume that is pooled as the papers say."""
    B, _, h, w = left.shape
    found = np.zeros((B, h, w, levels, 2 * radius + 1))
    for b, y, x in np.ndindex(B, h, w):
        row = [float(left[b, :, y, x] @ right[b, :, y, column]) for column in range(w)]
        for level in range(levels):
            for tap in range(2 * radius + 1):
                place = (x - disparity[b, 0, y, x].item()) / 2**level + tap - radius
                found[b, y, x, level, tap] = linear_at(row, place)
            row = [(row[2 * i] + row[2 * i + 1]) / 2 for i in range(len(row) // 2)]
    return found


@pytest.mark.parametrize("all_pairs", [True, False])
@pytest.mark.parametrize(("w", "levels", "radius"), [(13, 3, 2), (8, 4, 4), (5, 1, 1)])
def test_lookup_agrees_with_loops(w, levels, radius, all_pairs):
    left, right = random(2, 6, 3, w, seed=1), random(2, 6, 3, w, seed=2)
    disparity = 5 * random(2, 1, 3, w, seed=3)
    disparity[0, 0, 0, :4] = torch.tensor([0.0, 2.0, -3.0, 1e6])  # whole numbers, to the right, far away
    lookup = CorrelationLookup(left, right, levels=levels, radius=radius, all_pairs=all_pairs)
    found = stack_taps(lookup(disparity), disparity)
    expected = torch.from_numpy(correlations_by_loop(left, right, disparity, levels, radius)).float()
    assert found.shape == (2, levels * (2 * radius + 1), 3, w)
    torch.testing.assert_close(found, expected.flatten(3).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_on_the_fly_gives_the_same_numbers_and_gradients_in_pieces(monkeypatch):
    monkeypatch.setattr(layers, "ON_THE_FLY_BYTES", 2 * 4 * 12 * (12 + 2 + 6 + 2))  # two rows at a time, of ten
    disparity = 4 * random(2, 1, 5, 12, seed=3)
    results = []
    for all_pairs in (True, False):
        left, right = (random(2, 6, 5, 12, seed=seed).requires_grad_() for seed in (1, 2))
        lookup = CorrelationLookup(left, right, levels=2, radius=3, all_pairs=all_pairs)
        assert (lookup.volumes is not None) == all_pairs
        found = stack_taps(lookup(disparity), disparity)
        found.square().sum().backward()
        results.append((found.detach(), left.grad, right.grad))
    for kept, computed in zip(*results, strict=True):
        torch.testing.assert_close(computed, kept, rtol=1e-5, atol=1e-5)
    assert results[0][1].abs().max() > 1


def largest_tensor(monkeypatch, all_pairs: bool) -> int:
    """Return the elements of the largest product of matrices in a lookup of one wide row pair."""
    sizes = []
    multiply = torch.bmm

    def watched(first, second):
        product = multiply(first, second)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch, "bmm", watched)
    features = random(1, 2, 64, 200)
    lookup = CorrelationLookup(features, features, levels=2, radius=1, all_pairs=all_pairs)
    lookup(torch.zeros(1, 1, 64, 200))
    monkeypatch.undo()
    return max(sizes)


def test_on_the_fly_holds_no_more_correlations_than_promised(monkeypatch):
    monkeypatch.setattr(layers, "ON_THE_FLY_BYTES", 2**20)
    assert 4 * largest_tensor(monkeypatch, all_pairs=False) <= 2**20
    assert 4 * largest_tensor(monkeypatch, all_pairs=True) > 9 * 2**20


def test_a_row_longer_than_the_bound_is_computed_alone(monkeypatch):
    monkeypatch.setattr(layers, "ON_THE_FLY_BYTES", 1)
    left, right, disparity = random(1, 4, 3, 8), random(1, 4, 3, 8, seed=1), random(1, 1, 3, 8, seed=2)
    kept, computed = (
        CorrelationLookup(left, right, levels=1, radius=1, all_pairs=all_pairs)(disparity)[0]
        for all_pairs in (True, False)
    )
    torch.testing.assert_close(computed, kept)


def test_taps_are_zero_outside_and_pass_no_gradient_to_their_position():
    values = torch.tensor([0.0, 10, 20, 30, 0]).view(1, 5, 1).expand(6, 5, 1).clone().requires_grad_()
    position = torch.tensor([0.0, 1.25, -1.5, 2.5, 1e30, -1e30], requires_grad=True)
    taps = sample_taps(values, position, 1)
    expected = [[0, 10, 20], [12.5 - 10, 22.5 - 10, 22.5], [0, 0, 5], [25, 15, 0], [0, 0, 0], [0, 0, 0]]
    expected[1] = [linear_at([10, 20, 30], place) for place in (0.25, 1.25, 2.25)]
    assert taps[:, :, 0].tolist() == [pytest.approx(row) for row in expected]
    taps.sum().backward()
    assert position.grad is None and values.grad.abs().sum() > 0


def test_correlation_is_float32_under_autocast():
    left, right = random(1, 64, 2, 9, seed=1), random(1, 64, 2, 9, seed=2)
    exact = CorrelationLookup(left, right, levels=2, radius=1, all_pairs=True)(torch.zeros(1, 1, 2, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CorrelationLookup(left, right, levels=2, radius=1, all_pairs=True)(torch.zeros(1, 1, 2, 9))
    assert all(torch.equal(*pair) for pair in zip(found, exact, strict=True))


# --- up-sampling ---


def blend_by_loop(disparity: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One fine pixel at a time; disparity [h,w], weights [9,h,4,w,4]."""
    h, w = disparity.shape
    fine = np.zeros((4 * h, 4 * w))
    for y, x in np.ndindex(4 * h, 4 * w):
        for neighbour in range(9):
            row, column = y // 4 + neighbour // 3 - 1, x // 4 + neighbour % 3 - 1
            if 0 <= row < h and 0 <= column < w:
                fine[y, x] += weights[neighbour, y // 4, y % 4, x // 4, x % 4] * 4 * disparity[row, column]
    return fine


def test_blending_agrees_with_loops():
    disparity, weights = random(2, 1, 3, 5).abs(), random(2, 9, 3, 4, 5, 4, seed=1)
    fine = blend_neighbours(disparity, weights)
    assert fine.shape == (2, 1, 12, 20)
    for b in range(2):
        expected = blend_by_loop(disparity[b, 0].numpy(), weights[b].numpy())
        np.testing.assert_allclose(fine[b, 0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_constant_disparity_is_four_times_as_large_inside():
    weights = torch.full((1, 9, 4, 4, 5, 4), 1 / 9)
    fine = blend_neighbours(torch.full((1, 1, 4, 5), 2.5), weights)
    torch.testing.assert_close(fine[..., 4:-4, 4:-4], torch.full((1, 1, 8, 12), 10.0))
    assert fine[..., 0, 0].item() == pytest.approx(10 * 4 / 9)  # beyond the border counts as zero


def test_halving_counts_the_zeros_beyond_the_border():
    halved = halve(torch.full((1, 1, 4, 6), 9.0))[0, 0]
    assert halved.tolist() == [[4, 6, 6], [6, 9, 9]]


def test_resizing_keeps_the_corners():
    corners = torch.tensor([[1.0, 3], [5, 11]]).view(1, 1, 2, 2)
    resized = resize_like(corners, torch.empty(1, 7, 3, 5))[0, 0]
    assert resized[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [1, 3, 5, 11]
    assert resized[1, 2].item() == 5


# --- modules ---


def test_instance_norm_is_torchs():
    x = 3 + 5 * random(2, 4, 6, 7)
    torch.testing.assert_close(InstanceNorm()(x), F.instance_norm(x), rtol=1e-5, atol=1e-5)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(InstanceNorm()(channels_last), F.instance_norm(x), rtol=1e-4, atol=1e-4)


def test_gru_is_its_formula():
    gru = ConvGRU(4, 6)
    hidden, first, second = random(2, 4, 3, 5), random(2, 5, 3, 5, seed=1), random(2, 1, 3, 5, seed=2)
    gates, candidate = random(2, 8, 3, 5, seed=3), random(2, 4, 3, 5, seed=4)
    before = [tensor.clone() for tensor in (hidden, first, second, gates, candidate)]
    x = torch.cat([first, second], dim=1)
    z = torch.sigmoid(gru.convz(torch.cat([hidden, x], 1)) + gates[:, :4])
    r = torch.sigmoid(gru.convr(torch.cat([hidden, x], 1)) + gates[:, 4:])
    q = torch.tanh(gru.convq(torch.cat([r * hidden, x], 1)) + candidate)
    found = gru(hidden, (gates, candidate), [first, second])
    torch.testing.assert_close(found, (1 - z) * hidden + z * q, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(before, (hidden, first, second, gates, candidate), strict=True))


def test_motion_ends_with_the_displacement_itself():
    displacement = random(1, 2, 4, 5)
    encoder = MotionEncoder(9, 2, 8, "f")
    assert {"convf1", "convf2"} < {name for name, _ in encoder.named_children()}
    motion = encoder(random(1, 9, 4, 5), displacement)
    assert motion.shape == (1, 8, 4, 5) and torch.equal(motion[:, 6:], displacement)


@pytest.mark.parametrize(("in_channels", "stride", "skips"), [(4, 1, False), (4, 2, True), (3, 1, True)])
def test_a_residual_block_has_a_convolution_in_its_skip_where_the_shape_changes(in_channels, stride, skips):
    block = ResidualBlock(in_channels, 4, "batch", stride).eval()
    names = set(block.state_dict())
    assert ("norm3.weight" in names) == ("downsample.0.weight" in names) == skips
    x = random(1, in_channels, 6, 8)
    with torch.no_grad():
        found = block(x)
        y = F.relu(block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x))))))
        skip = block.norm3(block.downsample(x)) if skips else x
    torch.testing.assert_close(found, F.relu(y + skip))


def test_first_states_are_bounded_and_context_is_split_in_gates_and_candidate():
    outputs = [(5 * random(1, 2, 3, 4, seed=i), random(1, 2, 3, 4, seed=9 + i)) for i in range(3)]
    convolutions = [torch.nn.Conv2d(2, 6, 3, padding=1) for _ in range(3)]
    hidden, context = start_states(outputs, convolutions)
    torch.testing.assert_close(hidden[1], torch.tanh(outputs[1][0]))
    joined = convolutions[2](F.relu(outputs[2][1]))
    assert torch.equal(context[2][0], joined[:, :4]) and torch.equal(context[2][1], joined[:, 4:])


def test_scaled_features_make_dot_products_independent_of_channels():
    assert scaled_features(torch.full((1, 16, 1, 1), 3.0)).unique().item() == 0.75
