# SPDX-License-Identifier: Apache-2.0
"""A training step of the stereo networks: it learns, its figures are known, and validation measures what it says."""

import pytest
import torch
from torch import nn

from tests.stereo_network_helpers import SMALL_NETWORKS, make_small_raft
from training.procedural_scenes import SceneBatch
from training.run import step_generator
from training.stereo_loss import zerostereo_loss
from training.stereo_networks.recurrent_stereo import StereoOutput
from training.stereo_training import (
    StepOptions,
    StereoBatch,
    estimate_disparity,
    hold_out_scenes,
    put_into_training,
    stereo_training_step,
    take_batch,
    validate,
)

H, W = 32, 64


def make_batch(batch_size: int = 2, shift: int = 3) -> StereoBatch:
    """Smooth random pictures that are moved by `shift` px; of other colours for the network than for the loss."""
    generator = step_generator(7, 0, 0)
    coarse = torch.rand((batch_size, 3, H // 4, W // 4 + 2), generator=generator)
    wide = nn.functional.interpolate(coarse, size=(H, W + 8), mode="bicubic").clamp(0, 1) * 255
    left, right = wide[..., :W], wide[..., shift : shift + W]
    shape = (batch_size, 1, H, W)
    return StereoBatch(
        left_image=(0.8 * left).to(torch.uint8),
        right_image=(0.8 * right).to(torch.uint8),
        clean_left_image=left.to(torch.uint8),
        clean_right_image=right.to(torch.uint8),
        disparity=torch.full(shape, float(shift)),
        confidence=torch.rand(shape, generator=generator),
        valid_disparity_mask=torch.ones(shape, dtype=torch.bool),
        left_visible_mask=torch.arange(W).ge(shift).expand(shape),
        right_hole_mask=torch.arange(W).ge(W - shift).expand(shape),
    )


class Fixed(nn.Module):
    """A network whose refinements are given."""

    def __init__(self, *refinements: torch.Tensor):
        super().__init__()
        self.refinements = nn.ParameterList(refinements)
        self.seen: list = []

    def forward(self, left_image, right_image, iterations):
        self.seen.append((left_image, right_image, iterations, self.training))
        return StereoOutput(self.refinements[-1], list(self.refinements), None, len(self.refinements))


# --- a step ---


def test_a_step_gives_the_loss_of_the_clean_pictures_and_shows_the_others_to_the_network():
    batch = make_batch()
    network = Fixed(torch.full((2, 1, H, W), 2.0), torch.full((2, 1, H, W), 2.5)).eval()
    options = StepOptions(iterations=5, max_disparity_px=64.0, photometric_range=1, photometric_weight=0.3)
    loss, figures = stereo_training_step(network, batch, options)
    expected = zerostereo_loss(
        list(network.refinements),
        left_image=batch.clean_left_image,
        right_image=batch.clean_right_image,
        max_disparity_px=64.0,
        photometric_range=1,
        photometric_weight=0.3,
        **{
            name: getattr(batch, name)
            for name in (
                "disparity",
                "confidence",
                "valid_disparity_mask",
                "left_visible_mask",
                "right_hole_mask",
            )
        },
    )
    assert torch.equal(loss, expected.total) and loss.requires_grad
    left, right, iterations, training = network.seen[0]
    assert torch.equal(left, batch.left_image.float()) and torch.equal(right, batch.right_image.float())
    assert (iterations, training) == (5, True)
    assert [figures[name].item() for name in ("loss", "disparity_loss", "photometric_loss")] == [
        part.item() for part in expected
    ]
    assert not any(value.requires_grad for value in figures.values())


def test_figures_are_of_the_last_refinement_over_the_learnt_pixels():
    batch = make_batch(1)
    batch.disparity[..., :16] = 100.0  # not learnt
    batch.valid_disparity_mask[..., 16:32] = False
    last = batch.disparity.clone() + 9
    last[..., 32:40], last[..., 40:48], last[..., 48:] = 3.5, 5.0, 9.0  # wrong by .5, 2 and 6: 8, 8 and 16 columns
    _, figures = stereo_training_step(Fixed(last - 1, last), batch, StepOptions(max_disparity_px=64.0))
    assert figures["epe_px"].item() == pytest.approx((0.5 + 2 + 2 * 6) / 4)
    shares = [figures[f"bad{threshold}_percent"].item() for threshold in (1, 3, 5)]
    assert shares == [75.0, 50.0, 50.0]


def test_a_batch_without_valid_pixels_has_defined_figures():
    batch = make_batch()._replace(valid_disparity_mask=torch.zeros(2, 1, H, W, dtype=torch.bool))
    loss, figures = stereo_training_step(make_small_raft(), batch, StepOptions(iterations=1, variant="supervised"))
    assert loss.item() == 0 and all(value.item() == 0 for value in figures.values())


@pytest.mark.parametrize("name", ["raft", "igev"])
def test_gradients_reach_every_parameter_and_batch_norm_is_frozen(name):
    network = SMALL_NETWORKS[name]()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    loss, figures = stereo_training_step(network, make_batch(1), StepOptions(iterations=2, max_disparity_px=64))
    loss.backward()
    assert network.training and torch.isfinite(loss)
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    for module_name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
            assert torch.equal(module.running_mean, before[f"{module_name}.running_mean"])
        if isinstance(module, nn.BatchNorm3d):
            assert module.training


def test_batch_norm_is_frozen_inside_a_wrapper_and_after_an_evaluation():
    network = nn.ModuleDict({"module": make_small_raft()})
    put_into_training(network.eval())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(module.training for module in norms)
    assert network.training and network["module"].training


@pytest.mark.parametrize("variant", ["zerostereo", "supervised", "unsupervised"])
def test_the_loss_of_every_variant_falls_on_one_batch(variant):
    network, batch = make_small_raft(), make_batch(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    options = StepOptions(iterations=3, max_disparity_px=64, variant=variant, photometric_range=1)
    losses = []
    for _ in range(25):
        loss, figures = stereo_training_step(network, batch, options)
        losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert min(losses[-5:]) < 0.7 * losses[0], losses


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="`variant` must be one of zerostereo, supervised, unsupervised; got 'mine'"):
        stereo_training_step(make_small_raft(), make_batch(1), StepOptions(iterations=1, variant="mine"))


def test_a_batch_is_taken_out_of_what_the_mixture_gives():
    batch = make_batch(1)
    assert take_batch({**batch._asdict(), "name": ["a"]}) == batch
    with pytest.raises(KeyError, match="confidence"):
        take_batch({name: value for name, value in batch._asdict().items() if name != "confidence"})


# --- validation ---


def make_scenes() -> SceneBatch:
    """Two scenes of random pixels; disparity 2 and 10 px, a fifth of each 12 px more."""
    left, right = torch.rand((2, 2, 3, 32, 40), generator=step_generator(1, 0, 0))
    disparity = torch.tensor([2.0, 10.0])[:, None, None, None].repeat(1, 1, 32, 40)
    disparity[..., 30:38] += 12
    return SceneBatch(left, right, disparity, disparity)


class Constant(nn.Module):
    """A network that says the same everywhere, but not for the first picture's first column."""

    def __init__(self, disparity: float):
        super().__init__()
        self.disparity, self.shapes = disparity, []

    def forward(self, left_image, right_image, iterations):
        self.shapes.append((tuple(left_image.shape), iterations, left_image.max().item() > 2))
        disparity = torch.full_like(left_image[:, :1], self.disparity)
        if len(self.shapes) == 1:
            disparity[..., 0] = torch.nan
        return StereoOutput(disparity, [], None, iterations)


def test_validation_of_a_known_estimate():
    network = Constant(4.5)
    figures, picture = validate(network, make_scenes(), 7, "cpu")
    assert network.shapes == [((1, 3, 32, 40), 7, True)] * 2
    # scene 0: one column (of 40) taken as 0, so wrong by 2; 31 by 2.5; 8 by 9.5. Scene 1: 32 by 5.5; 8 by 17.5
    errors = ((2 + 31 * 2.5 + 8 * 9.5) / 40, (32 * 5.5 + 8 * 17.5) / 40)
    assert figures == {
        "validation_epe_px": pytest.approx(sum(errors) / 2),
        "validation_bad1_percent": pytest.approx(100.0),
        "validation_bad3_percent": pytest.approx((20 + 100) / 2),
        "validation_bad5_percent": pytest.approx((20 + 100) / 2),
        "validation_constant_epe_px": pytest.approx(12 / 5),
    }
    assert picture.size == (2 * 40, 5 * 32)
    assert picture.getpixel((5, 4 * 32 + 3)) == (round(2.5 / 3 * 255),) * 3  # the error, white from 3 px on
    assert picture.getpixel((35, 4 * 32 + 3)) == (255, 255, 255)
    assert picture.getpixel((40 + 5, 2 * 32)) != picture.getpixel((40 + 35, 2 * 32))  # the truth in colours


def test_estimates_come_one_by_one_and_change_nothing():
    scenes, network = make_scenes(), make_small_raft()
    before = [tensor.clone() for tensor in scenes]
    found = estimate_disparity(network, scenes, 2, "cpu")
    alone = network(255 * scenes.left_image[1:], 255 * scenes.right_image[1:], 2).disparity
    assert found.shape == (2, 1, 32, 40) and not found.requires_grad
    torch.testing.assert_close(found[1:], alone)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(scenes, before, strict=True))


def test_held_out_scenes_are_always_the_same():
    two, five = hold_out_scenes(2, (16, 24)), hold_out_scenes(5, (16, 24))
    assert two.left_image.shape == (2, 3, 16, 24) and len(five.left_image) == 5
    assert all(torch.equal(few, many[:2]) for few, many in zip(two, five, strict=True))
