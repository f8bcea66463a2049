# SPDX-License-Identifier: Apache-2.0
"""RAFT-Stereo: features, disparities, loss and gradients of the official network, and its sizes."""

import numpy as np
import pytest
import torch

from tests.golden_files import load_golden
from tests.stereo_network_helpers import (
    assert_recorded_gradients,
    make_recorded,
    make_small_raft,
    recorded_loss,
    recorded_pair,
)
from training.stereo_networks.layers import blend_neighbours
from training.stereo_networks.raft_stereo import RAFTStereo


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in load_golden("stereo_nets").items()}


@pytest.fixture
def network() -> RAFTStereo:
    return make_recorded("raft")


@torch.no_grad()
def test_features_agree_with_the_official_ones(golden, network):
    image = network.normalize(recorded_pair()[0])
    features = network.fnet(image)
    torch.testing.assert_close(features[:, :4], golden["raft_fmap1_c0_4"], rtol=0, atol=1e-4)
    mean_and_deviation = torch.stack([features.mean(), features.std()])
    torch.testing.assert_close(mean_and_deviation, golden["raft_fmap1_mean_std"], rtol=1e-4, atol=1e-4)
    for level, (hidden, _) in enumerate(network.cnet(image)):
        torch.testing.assert_close(hidden[:, :2], golden[f"raft_cnet{level}_c0_2"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("correlation", ["all_pairs", "on_the_fly"])
def test_disparity_agrees_with_the_official_one(golden, network, correlation, monkeypatch):
    coarse = []

    def enlarge(disparity, hidden, guide):
        coarse.append(disparity)
        return RAFTStereo.enlarge(network, disparity, hidden, guide)

    monkeypatch.setattr(network, "enlarge", enlarge)
    output = network(*recorded_pair(), 3, correlation=correlation)
    torch.testing.assert_close(output.disparity, -golden["raft_flow_up"], rtol=0, atol=2e-2)
    assert len(coarse) == 1, "in evaluation only the last refinement is brought to full size"
    torch.testing.assert_close(coarse[0], -golden["raft_lowres_flow"][:, :1], rtol=0, atol=2e-2)
    assert golden["raft_lowres_flow"][:, 1].abs().max() == 0


@pytest.mark.parametrize("correlation", ["all_pairs", "on_the_fly"])
def test_refinements_loss_and_gradients_agree_with_the_official_ones(golden, network, correlation):
    network.train()
    network.freeze_batch_norm()
    output = network(*recorded_pair(), 3, correlation=correlation)
    assert output.initial_disparity is None
    for i, refinement in enumerate(output.refinements):
        torch.testing.assert_close(refinement, -golden[f"raft_train_flow{i}"], rtol=0, atol=2e-2)
    loss = recorded_loss(output, 700)
    assert loss.item() == pytest.approx(golden["raft_train_loss"].item(), rel=1e-3)
    loss.backward()
    assert_recorded_gradients(network, "raft")


@torch.no_grad()
def test_up_sampling_reads_the_mask_neighbour_first_then_row_then_column():
    network = make_small_raft()
    logits = torch.zeros(1, 144, 3, 2)
    logits[:, 7 * 16 + 2 * 4 + 1] = 400.0  # the neighbour below, for fine row 2 and fine column 1; quartered inside
    network.update_block.mask = torch.nn.Identity()
    disparity = torch.tensor([[1.0, 2], [3, 4], [5, 6]]).view(1, 1, 3, 2)
    fine = network.enlarge(disparity, logits, None)[0, 0]
    assert fine.shape == (12, 8)
    torch.testing.assert_close(fine[2::4, 1::4], torch.tensor([[12.0, 16], [20, 24], [0, 0]]))
    uniform = blend_neighbours(disparity, torch.full((1, 9, 3, 4, 2, 4), 1 / 9))[0, 0]
    torch.testing.assert_close(fine[0::4, 0::4], uniform[0::4, 0::4])


def test_a_small_one_for_experiments_has_at_most_a_million_parameters():
    with torch.device("meta"):
        network = RAFTStereo(trunk_channels=(24, 32, 40), feature_channels=64, hidden_channels=32)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 1_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk_channels": (8, 16)}, r"`trunk_channels` must be three numbers; got \[8, 16\]"),
        ({"hidden_channels": 7}, "`hidden_channels` must be even and at least 4; got 7"),
        ({"hidden_channels": 2}, "`hidden_channels` must be even and at least 4; got 2"),
        ({"correlation_levels": 5}, "`correlation_levels` must be 1 to 4; got 5"),
        ({"correlation_radius": 0}, "`correlation_radius` must be at least 1; got 0"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_small_raft(**changes)
