# SPDX-License-Identifier: Apache-2.0
"""Stereo networks for tests: the recorded ones with their weights by rule, small ones, and made-up pairs."""

import json
from typing import Any

import pytest
import torch

from tests.golden_files import GOLDEN_FOLDER, image_to_tensor, load_golden, map_to_tensor
from tests.tiny_components import values_by_rule
from training.stereo_loss import zerostereo_loss
from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo
from training.stereo_networks.recurrent_stereo import StereoOutput

# Factors that let the recorded disparities reach tens of pixels, by whole parts at the end of a name.
BOOSTS = {
    "flow_head.conv2.weight": 12,
    "disp_head.conv2.weight": 12,
    "classifier.weight": 12,
    "update_block.mask.2.weight": 6,
    "spx_gru.0.weight": 3,
    "spx.0.weight": 3,
}


def read_keys() -> dict[str, Any]:
    """Return tests/goldens/stereo_nets_keys.json."""
    return json.loads((GOLDEN_FOLDER / "stereo_nets_keys.json").read_text())


def boost(name: str) -> int:
    return next((factor for suffix, factor in BOOSTS.items() if name == suffix or name.endswith("." + suffix)), 1)


def official_value(i: int, name: str, shape: list[int]) -> torch.Tensor:
    """Return the i-th tensor of an official state dict by the rule of tests/goldens/README.md."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    values = values_by_rule(i, name, shape)
    if name.endswith("running_mean"):
        values = 0.5 * (values - 1)  # the rule has 1 + 0.1 b
    elif name.endswith("running_var"):
        values = 2 * values - 1
    return (boost(name) * values).float()


def official_state(network: str) -> dict[str, torch.Tensor]:
    """Return the state dict of "raft" or "igev" as the official code has it, one tensor under both of its names."""
    state = {
        name: official_value(i, name, shape) for i, (name, shape) in enumerate(read_keys()[network]["shapes"].items())
    }
    for name in state:
        if ".norm3." in name:
            state[name] = state[name.replace(".norm3.", ".downsample.1.")]
    return state


def make_recorded(network: str) -> Any:
    """Build the recorded RAFT-Stereo ("raft") or IGEV-Stereo ("igev") in evaluation mode."""
    model = {"raft": RAFTStereo, "igev": IGEVStereo}[network]()
    state = {name: value for name, value in official_state(network).items() if ".downsample.1." not in name}
    model.load_state_dict(state)
    return model.eval()


def recorded_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the recorded left and right picture, [1,3,64,96], 0..255."""
    golden = load_golden("stereo_nets")
    return image_to_tensor(golden["left"]), image_to_tensor(golden["right"])


def make_small_raft(**changes: Any) -> RAFTStereo:
    torch.manual_seed(0)
    config = {"trunk_channels": (8, 12, 16), "feature_channels": 16, "hidden_channels": 8, "correlation_levels": 3}
    return RAFTStereo(**{**config, "correlation_radius": 2, **changes}).eval()


def make_pair(height: int, width: int, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random pictures [batch,3,height,width], 0..255, of which the right one is the left one moved by 3 px."""
    generator = torch.Generator().manual_seed(seed)
    left = 255 * torch.rand(batch, 3, height, width, generator=generator)
    return left, left.roll(-3, dims=-1)


def make_small_igev(**changes: Any) -> IGEVStereo:
    torch.manual_seed(0)
    config = {"max_disparity_px": 64, "hidden_channels": 8, "correlation_radius": 2}
    return IGEVStereo(**{**config, **changes}).eval()


SMALL_NETWORKS = {"raft": make_small_raft, "igev": make_small_igev}


def recorded_loss(output: StereoOutput, max_disparity_px: float) -> torch.Tensor:
    """Return the loss that was recorded for refinements of the recorded pair."""
    golden = load_golden("stereo_nets")
    left, right = recorded_pair()
    disparity = map_to_tensor(golden["disp"])
    return zerostereo_loss(
        output.refinements,
        left_image=left,
        right_image=right,
        disparity=disparity,
        confidence=torch.linspace(0.1, 0.9, disparity.numel()).view_as(disparity),
        valid_disparity_mask=disparity > 0,
        left_visible_mask=map_to_tensor(golden["mask_nocc"]),
        right_hole_mask=map_to_tensor(golden["mask_inpaint"]),
        max_disparity_px=max_disparity_px,
        initial_disparity=output.initial_disparity,
    ).total


def assert_recorded_gradients(model: torch.nn.Module, network: str) -> None:
    """Compare the norm of all gradients, and of each parameter's, with the recorded ones."""
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters()}
    recorded = read_keys()[network]["train_grad_norms"]
    assert norms.keys() == recorded.keys()
    total = torch.stack(list(norms.values())).norm().item()
    assert total == pytest.approx(load_golden("stereo_nets")[f"{network}_total_grad_norm"].item(), rel=1e-2)
    for name, norm in norms.items():  # those of near-zero norm are rounding only
        assert norm.item() == pytest.approx(recorded[name], rel=1e-2, abs=1e-4 * total), name
