# SPDX-License-Identifier: Apache-2.0
"""IGEV-Stereo: features, disparities, loss and gradients of the official network; cost volume and lookup by loops."""

import numpy as np
import pytest
import torch

from tests.golden_files import load_golden
from tests.stereo_network_helpers import (
    assert_recorded_gradients,
    make_pair,
    make_recorded,
    make_small_igev,
    recorded_loss,
    recorded_pair,
)
from training.stereo_networks.igev_stereo import (
    GeometryLookup,
    IGEVStereo,
    expected_disparity,
    group_correlation,
    split_weights,
)
from training.stereo_networks.layers import CorrelationLookup


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in load_golden("stereo_nets").items()}


@pytest.fixture
def network() -> IGEVStereo:
    return make_recorded("igev")


@torch.no_grad()
def test_features_agree_with_the_official_ones(golden, network):
    features = network.feature(network.normalize(recorded_pair()[0]))
    assert [feature.shape[1] for feature in features] == [48, 64, 192, 160]
    for level, feature in enumerate(features):
        torch.testing.assert_close(feature[:, :2], golden[f"igev_feat{level}_c0_2"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("correlation", ["all_pairs", "on_the_fly"])
def test_disparity_agrees_with_the_official_one(golden, network, correlation):
    output = network(*recorded_pair(), 3, correlation=correlation)
    torch.testing.assert_close(output.disparity, golden["igev_disp_up"], rtol=0, atol=2e-2)


@pytest.mark.parametrize("correlation", ["all_pairs", "on_the_fly"])
def test_refinements_loss_and_gradients_agree_with_the_official_ones(golden, network, correlation):
    network.train()
    network.freeze_batch_norm()
    output = network(*recorded_pair(), 3, correlation=correlation)
    torch.testing.assert_close(output.initial_disparity, golden["igev_train_init"], rtol=0, atol=2e-2)
    for i, refinement in enumerate(output.refinements):
        torch.testing.assert_close(refinement, golden[f"igev_train_disp{i}"], rtol=0, atol=2e-2)
    loss = recorded_loss(output, 192)
    assert loss.item() == pytest.approx(golden["igev_train_loss"].item(), rel=1e-3)
    loss.backward()
    assert_recorded_gradients(network, "igev")


# --- functions ---


def test_group_correlation_agrees_with_loops():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, 6, 3, 5, generator=generator) for _ in range(2))
    volume = group_correlation(left, right, shifts=7, groups=2)  # more shifts than columns
    assert volume.shape == (2, 2, 7, 3, 5)
    for b, g, d, y, x in np.ndindex(*volume.shape):
        expected = 0.0
        if x >= d:
            channels = range(3 * g, 3 * g + 3)
            expected = sum(left[b, c, y, x].item() * right[b, c, y, x - d].item() for c in channels) / 3
        assert volume[b, g, d, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_expected_disparity_of_sharp_and_flat_volumes():
    logits = torch.zeros(1, 5, 1, 2)
    logits[0, 3, 0, 0] = 100
    assert expected_disparity(logits)[0, 0, 0].tolist() == pytest.approx([3, 2])


def test_geometry_lookup_is_level_then_group_then_tap_then_correlations():
    generator = torch.Generator().manual_seed(0)
    B, G, D, h, w, radius = 2, 3, 8, 2, 9, 1
    volume = torch.randn(B, G, D, h, w, generator=generator)
    left, right = (torch.randn(B, 4, h, w, generator=generator) for _ in range(2))
    correlation = CorrelationLookup(left, right, levels=2, radius=radius, all_pairs=True)
    disparity = 9 * torch.rand(B, 1, h, w, generator=generator) - 1
    found = GeometryLookup(volume, correlation, levels=2, radius=radius)(disparity)
    assert found.shape == (B, 2 * (G + 1) * 3, h, w)
    pooled = (volume[:, :, 0::2] + volume[:, :, 1::2]) / 2
    correlations = correlation(disparity)
    for b, y, x in np.ndindex(B, h, w):
        expected = []
        for level, values in enumerate((volume, pooled)):
            for g in range(G):
                for tap in (-1, 0, 1):
                    place = disparity[b, 0, y, x].item() / 2**level + tap
                    below = int(np.floor(place))
                    ends = [
                        values[b, g, d, y, x].item() if 0 <= d < values.shape[2] else 0.0 for d in (below, below + 1)
                    ]
                    expected.append(ends[0] + (place - below) * (ends[1] - ends[0]))
            expected += correlations[level].view(B, h, w, 3)[b, y, x].tolist()
        assert found[b, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_split_weights_sum_to_one_and_keep_their_pixel():
    logits = torch.zeros(1, 9, 8, 12)
    logits[0, 5, 6, 9] = 50  # fine row 6 = coarse 1, 2; fine column 9 = coarse 2, 1
    weights = split_weights(logits)
    assert weights.shape == (1, 9, 2, 4, 3, 4)
    assert weights[0, :, 1, 2, 2, 1].tolist() == pytest.approx([0] * 5 + [1] + [0] * 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 2, 4, 3, 4))


@torch.no_grad()
def test_largest_disparity_bounds_the_volume_only():
    network = make_small_igev(max_disparity_px=32)
    torch.nn.init.constant_(network.update_block.disp_head.conv2.bias, 10)
    assert network(*make_pair(32, 64), 4).disparity.max() > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_disparity_px": 100}, "`max_disparity_px` must be a positive multiple of 32; got 100"),
        ({"max_disparity_px": 0}, "`max_disparity_px` must be a positive multiple of 32; got 0"),
        ({"hidden_channels": 9}, "`hidden_channels` must be even and at least 4; got 9"),
        ({"correlation_levels": 0}, "`correlation_levels` must be 1 to 4; got 0"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_small_igev(**changes)
