# SPDX-License-Identifier: Apache-2.0
"""The depth script: it learns, it resumes exactly, and what it writes loads."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import DepthAnythingForDepthEstimation

from tests.training_helpers import POOL_OPTIONS, SCENE_SIZE, assert_same_run, log_lines, make_scenes
from training import scene_sampling
from training.run import step_generator
from training.train_depth import (
    DepthBatch,
    DepthConfig,
    correlation,
    depth_loss,
    draw_size,
    make_depth_network,
    normalize_pixels,
    normalize_target,
    prepare_depth_batch,
    train,
    validate,
)


def make_config(output: Path, **changes) -> DepthConfig:
    options = {
        "pool": output.parent / "pool",
        "hidden_size": 12,
        "layers": 4,
        "heads": 3,
        "shortest_side": 28,
        "longest_side": 42,
        "validation_side": 28,
        "max_steps": 5,
        "save_every_steps": 3,
        "validate_every_steps": 4,
        "learning_rate": 2e-3,
    }
    return DepthConfig(output=output, **(POOL_OPTIONS | options | changes))


def make_network() -> DepthAnythingForDepthEstimation:
    torch.manual_seed(0)
    return make_depth_network(hidden_size=12, layers=4, heads=3, image_size=28)


@pytest.fixture
def batch() -> DepthBatch:
    return prepare_depth_batch(make_scenes(), (28, 42), step_generator(0, 0, 0))


def test_default_network_has_the_planned_size():
    network = make_depth_network(hidden_size=192, layers=8, heads=3, image_size=168)
    assert 3.0e6 < sum(p.numel() for p in network.parameters()) < 3.6e6


def test_new_network_gives_output_that_can_learn(batch):
    prediction = make_network()(pixel_values=batch.pixel_values).predicted_depth
    assert prediction.shape == (3, 28, 42)
    assert 0.1 < prediction.mean() < 3
    assert (prediction > 0).float().mean() > 0.9


def test_loss_is_finite_and_reaches_every_parameter(batch):
    network = make_network()
    loss, figures = depth_loss(network, batch)
    loss.backward()
    assert torch.isfinite(loss) and set(figures) == {"loss", "absolute_error", "correlation"}
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # the mask token is unused without masking; Depth Anything's deepest fusion layer has nothing to fuse with
    assert all("mask_token" in name or "fusion_stage.layers.0.residual_layer1" in name for name in without), without


def test_loss_of_the_target_itself_is_zero(batch):
    class Perfect(torch.nn.Module):
        def forward(self, pixel_values):
            return type("Output", (), {"predicted_depth": normalize_target(batch.disparity)[:, 0]})

    loss, figures = depth_loss(Perfect(), batch)
    assert figures["absolute_error"] == 0
    assert loss == pytest.approx(0, abs=1e-3)
    assert figures["correlation"] == pytest.approx(1, abs=5e-3)


def test_thirty_steps_on_one_batch_lower_the_loss(batch):
    network = make_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = depth_loss(network, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_target_is_normalised_per_image():
    ramp = torch.arange(500.0).view(1, 1, 20, 25)  # every fifth value decides: 0, 5 ... 495
    disparity = torch.cat([ramp + 3, torch.full_like(ramp, 7.0)])
    target = normalize_target(disparity)
    near = torch.quantile(torch.arange(0, 500, 5.0), 0.99)
    torch.testing.assert_close(target[0, 0].flatten()[:490], torch.arange(490.0) / near)
    assert target[0].max() <= 1.2
    assert torch.equal(target[1], torch.zeros_like(target[1]))


def test_near_pixels_beyond_the_quantile_are_limited():
    disparity = torch.linspace(0, 1, 1000).view(1, 1, 25, 40).clone()
    disparity[0, 0, 0, 3] = 50.0
    assert normalize_target(disparity).max() == pytest.approx(1.2)


def test_correlation_known_values():
    first = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [5.0, 5.0, 5.0]]) * 100
    second = torch.tensor([[2.0, 4.0, 8.0], [-1.0, -2.0, -4.0], [1.0, 2.0, 4.0]])
    torch.testing.assert_close(correlation(first, second), torch.tensor([1.0, -1.0, 0.0]), atol=1e-3, rtol=0)


def test_batch_takes_both_views_with_their_own_disparity():
    B, (H, W) = 40, SCENE_SIZE
    left, right = torch.zeros(B, 3, H, W), torch.ones(B, 3, H, W)
    scenes = make_scenes()._replace(
        left_image=left, right_image=right, left_disparity=left[:, :1] + 2, right_disparity=right[:, :1] + 4
    )
    batch = prepare_depth_batch(scenes, (28, 28), step_generator(0, 0, 0))
    is_right = batch.disparity[:, 0, 0, 0] > 4
    assert 5 < is_right.sum() < 35
    bright = batch.pixel_values.mean((1, 2, 3)) > normalize_pixels(torch.full((1, 3, 1, 1), 0.5)).mean()
    assert torch.equal(bright, is_right)


def test_batch_leaves_its_scenes_unchanged_and_repeats():
    scenes = make_scenes()
    before = [tensor.clone() for tensor in scenes]
    first, again = (prepare_depth_batch(scenes, (28, 42), step_generator(3, 1, 0)) for _ in range(2))
    other = prepare_depth_batch(scenes, (28, 42), step_generator(3, 2, 0))
    assert all(torch.equal(a, b) for a, b in zip(scenes, before, strict=True))
    assert torch.equal(first.pixel_values, again.pixel_values) and torch.equal(first.disparity, again.disparity)
    assert not torch.equal(first.pixel_values, other.pixel_values)


def test_sizes_are_multiples_within_the_limits(tmp_path):
    config = make_config(tmp_path / "run", shortest_side=84, longest_side=182)
    sizes = {draw_size(config, step_generator(0, step, 0)) for step in range(300)}
    assert {height for height, _ in sizes} == set(range(84, 183, 14))
    assert all(width % 14 == 0 and height <= width <= 1.6 * height for height, width in sizes)


def test_validation_of_the_truth_and_the_ramp():
    scenes = make_scenes()
    rows = torch.linspace(0, 9, SCENE_SIZE[0])[None, None, :, None].expand_as(scenes.left_disparity)
    scenes = scenes._replace(left_disparity=rows.contiguous())
    figures, picture = validate(make_network().eval(), scenes, 28, torch.device("cpu"))
    assert figures["validation_ramp_correlation"] == pytest.approx(1, abs=1e-3)
    assert -1 <= figures["validation_correlation"] <= 1
    assert picture.size == (3 * SCENE_SIZE[1], 3 * SCENE_SIZE[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortest_side": 30}, "`shortest_side` must be a multiple of 14 px; got 30"),
        ({"longest_side": 20}, "`longest_side` must be a multiple of 14 px; got 20"),
        ({"validation_side": 100}, "`validation_side` must be a multiple of 14 px; got 100"),
        ({"shortest_side": 56}, "`shortest_side` must be <= `longest_side`; got 56"),
        ({"hidden_size": 16}, "`hidden_size` must be a multiple of `heads`; got 16"),
        ({"validation_seed": 0}, "`validation_seed` must differ from `pool_seed`; got 0"),
        ({"scene_size": (32, 48, 64)}, r"`scene_size` must be height and width; got \(32, 48, 64\)"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path / "run", **changes)


def test_training_resumes_exactly_and_saves_a_loadable_network(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_sampling, "RENDER_BATCH", 2)  # no more held-out scenes than are used
    config = make_config(tmp_path / "whole")
    folder = train(config)
    parts = make_config(tmp_path / "parts", stop_after_minutes=0)
    train(parts)  # one step
    train(dataclasses.replace(parts, stop_after_minutes=None, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    lines = log_lines(tmp_path / "whole")
    assert [line["step"] for line in lines] == [2, 4, 4, 5, 5]
    assert "validation_correlation" in lines[2]
    assert (tmp_path / "whole/pictures/step-000004.png").is_file()
    assert folder == tmp_path / "whole/depth_estimator"
    network = DepthAnythingForDepthEstimation.from_pretrained(folder)
    assert network.config.backbone_config.num_hidden_layers == 4
    assert torch.isfinite(network(torch.zeros(1, 3, 28, 28)).predicted_depth).all()
