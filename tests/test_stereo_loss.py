# SPDX-License-Identifier: Apache-2.0
"""The ZeroStereo loss: recorded values and gradients of the official one, known answers, empty sets, variants."""

import math
from typing import Any

import pytest
import torch

from tests.golden_files import load_golden, load_motorcycle
from training.stereo_loss import (
    mean_over,
    photometric_distance,
    sequence_weights,
    ssim_distance,
    visible_in_both,
    warp_backward,
    zerostereo_loss,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in load_golden("loss").items()}


def golden_arguments(golden: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "left_image": golden["left"].float(),
        "right_image": golden["right"].float(),
        "disparity": golden["disp"],
        "confidence": golden["conf"],
        "valid_disparity_mask": golden["valid"] == 1,
        "left_visible_mask": golden["mask_nocc"] == 1,
        "right_hole_mask": golden["mask_inpaint"] == 1,
    }


def golden_predictions(golden: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [golden[f"pred{i}"].clone().requires_grad_() for i in range(3)]


def make_arguments(B: int = 2, H: int = 6, W: int = 9, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    arguments = {
        "left_image": 255 * torch.rand(B, 3, H, W, generator=generator),
        "right_image": 255 * torch.rand(B, 3, H, W, generator=generator),
        "disparity": 4 * torch.rand(B, 1, H, W, generator=generator),
        "confidence": torch.rand(B, 1, H, W, generator=generator),
        "valid_disparity_mask": torch.ones(B, 1, H, W, dtype=torch.bool),
        "left_visible_mask": torch.ones(B, 1, H, W, dtype=torch.bool),
        "right_hole_mask": torch.zeros(B, 1, H, W, dtype=torch.bool),
        "max_disparity_px": 192,
    }
    return {**arguments, **changes}


# --- recorded ---


def test_maps_agree_with_the_recorded_ones(golden):
    left, right = golden["left"].float(), golden["right"].float()
    torch.testing.assert_close(ssim_distance(left, right), golden["ssim_dist"], rtol=0, atol=1e-3)
    torch.testing.assert_close(photometric_distance(left, right), golden["photometric"], rtol=0, atol=1e-3)
    torch.testing.assert_close(ssim_distance(left / 255, right / 255), golden["ssim_dist_01"], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        photometric_distance(left / 255, right / 255), golden["photometric_01"], rtol=0, atol=1e-4
    )
    fetched = warp_backward(right, golden["pred2"])
    torch.testing.assert_close(fetched, golden["disp_warp_right_pred2"], rtol=0, atol=1e-3)
    everywhere = torch.ones_like(golden["valid"], dtype=torch.bool)
    seen = visible_in_both(everywhere, golden["mask_inpaint"] == 1, golden["disp"])
    assert torch.equal(seen, golden["warped_mask_real"] == 1)


def test_sequence_weights_agree_with_the_recorded_ones(golden):
    for count in (3, 22):
        assert sequence_weights(count) == pytest.approx(golden[f"iweights_n{count}"].tolist(), rel=1e-12)


def test_loss_of_raft_and_its_gradients(golden):
    predictions = golden_predictions(golden)
    loss = zerostereo_loss(predictions, max_disparity_px=700, **golden_arguments(golden))
    assert loss.total.item() == pytest.approx(golden["raft_loss"].item(), rel=1e-5)
    loss.total.backward()
    for i, prediction in enumerate(predictions):  # recorded with respect to the flow, which is -disparity
        torch.testing.assert_close(prediction.grad, -golden[f"raft_grad_flow{i}"], rtol=1e-3, atol=1e-9)


def test_loss_of_igev_and_its_gradients(golden):
    predictions, initial = golden_predictions(golden), golden["init"].clone().requires_grad_()
    arguments = golden_arguments(golden)
    loss = zerostereo_loss(predictions, max_disparity_px=192, initial_disparity=initial, **arguments)
    assert loss.total.item() == pytest.approx(golden["igev_loss"].item(), rel=1e-5)
    loss.total.backward()
    torch.testing.assert_close(initial.grad, golden["igev_grad_init"], rtol=1e-3, atol=1e-9)
    for i, prediction in enumerate(predictions):
        torch.testing.assert_close(prediction.grad, golden[f"igev_grad_pred{i}"], rtol=1e-3, atol=1e-9)


def test_supervised_variant_is_the_recorded_plain_loss(golden):
    arguments = golden_arguments(golden) | {"confidence": None}
    loss = zerostereo_loss(golden_predictions(golden), max_disparity_px=700, variant="supervised", **arguments)
    assert loss.total.item() == pytest.approx(golden["raft_plain_loss"].item(), rel=1e-5)
    assert loss.photometric == 0


# --- known answers ---


def test_warp_fetches_from_the_left_in_the_right_picture():
    right = torch.arange(10.0).expand(1, 2, 3, 10).clone()
    fetched = warp_backward(right, torch.full((1, 1, 3, 10), 3.25))
    expected = torch.tensor([0, 0, 0, 0, 0.75, 1.75, 2.75, 3.75, 4.75, 5.75])  # the border is repeated
    torch.testing.assert_close(fetched, expected.expand(1, 2, 3, 10), rtol=0, atol=1e-5)


def test_ssim_of_constant_pictures_by_hand():
    first, second = (torch.full((1, 1, 5, 6), value, dtype=torch.float64) for value in (0.3, 0.7))
    similarity = (2 * 0.3 * 0.7 + 1e-4) / (0.3**2 + 0.7**2 + 1e-4)  # no variance: the second factor is 1
    expected = torch.full_like(first, (1 - similarity) / 2)
    torch.testing.assert_close(ssim_distance(first, second), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(photometric_distance(first, second), 0.85 * expected + 0.15 * 0.4, rtol=0, atol=1e-9)


def test_loss_by_hand_over_two_different_sets():
    # One row of errors; v is columns 0..3, m is column 5 alone; equal flat pictures but for 10 grey levels.
    H, W = 4, 7
    arguments = make_arguments(1, H, W)
    valid, seen = (torch.zeros(1, 1, H, W, dtype=torch.bool) for _ in range(2))
    valid[..., 0, :4], seen[..., 5] = True, True
    arguments |= {
        "left_image": torch.full((1, 3, H, W), 200.0),
        "right_image": torch.full((1, 3, H, W), 210.0),
        "disparity": torch.full((1, 1, H, W), 2.0),
        "confidence": torch.full((1, 1, H, W), 0.8),
        "valid_disparity_mask": valid,
        "left_visible_mask": seen,
    }
    prediction = torch.full((1, 1, H, W), 2.0)
    prediction[..., 0, :4] += torch.tensor([0.5, -1.5, 3.0, 1.0])
    flat = [torch.full((1, 1, 5, 5), level / 255, dtype=torch.float64) for level in (200, 210)]
    pictures = photometric_distance(*flat)[0, 0, 0, 0].item()
    loss = zerostereo_loss([prediction], photometric_range=1, **arguments)
    assert loss.disparity.item() == pytest.approx(0.8 * 6.0 / 4)
    assert loss.photometric.item() == pytest.approx(0.1 * 0.2 * pictures, rel=1e-2)  # float32 variances
    assert loss.total.item() == pytest.approx(loss.disparity.item() + loss.photometric.item())
    # The initial disparity: squares below one pixel, and its own photometric term.
    both = zerostereo_loss([prediction], initial_disparity=prediction, photometric_range=1, **arguments)
    smooth = (0.5 * 0.5**2 + 1.0 + 2.5 + 0.5) / 4
    assert (both.disparity - loss.disparity).item() == pytest.approx(0.8 * smooth, rel=1e-5)
    assert both.photometric.item() == pytest.approx(2 * loss.photometric.item(), rel=1e-5)


def test_largest_disparity_is_excluded():
    arguments = make_arguments(disparity=torch.full((2, 1, 6, 9), 3.0), variant="supervised", confidence=None)
    prediction = torch.full((2, 1, 6, 9), 5.0)
    assert zerostereo_loss([prediction], **arguments | {"max_disparity_px": 3.0}).total == 0
    assert zerostereo_loss([prediction], **arguments | {"max_disparity_px": 3.1}).total == 2


def test_a_pixel_is_seen_where_the_right_picture_was_not_invented():
    hole = torch.zeros(1, 1, 2, 6, dtype=torch.bool)
    hole[0, 0, 0, 2] = True
    visible = torch.ones_like(hole)
    visible[0, 0, 1, 5] = False
    disparity = torch.full((1, 1, 2, 6), 2.0)
    disparity[0, 0, 0, 5] = math.inf
    disparity[0, 0, 1, 4] = math.nan
    seen = visible_in_both(visible, hole, disparity)[0, 0].int().tolist()
    assert seen == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]  # x = 4 looks at column 2; x < 2 look outside


# --- variants, ranges, degenerate cases ---


def test_unsupervised_variant_does_not_learn_from_the_disparity():
    arguments = make_arguments(variant="unsupervised", confidence=None)
    prediction = torch.full((2, 1, 6, 9), 1.3, requires_grad=True)
    loss = zerostereo_loss([prediction], **arguments)
    assert loss.disparity == 0 and loss.total > 0
    nothing_trusted = make_arguments(confidence=torch.zeros(2, 1, 6, 9))
    assert loss.total == zerostereo_loss([prediction], **nothing_trusted).total


def test_photometric_range_changes_the_photometric_part_only():
    wide, narrow = (zerostereo_loss([torch.ones(2, 1, 6, 9)], **make_arguments(photometric_range=r)) for r in (255, 1))
    assert wide.disparity == narrow.disparity
    assert wide.photometric > 10 * narrow.photometric > 0


def test_flat_areas_are_noise_to_ssim_at_255_only():
    generator = torch.Generator().manual_seed(0)
    noisy = [200 + 0.5 * torch.randn(1, 1, 40, 50, generator=generator) for _ in range(2)]
    assert ssim_distance(*noisy).mean() > 0.3
    assert ssim_distance(noisy[0] / 255, noisy[1] / 255).mean() < 0.01


@pytest.mark.parametrize("variant", ["zerostereo", "supervised", "unsupervised"])
def test_no_pixels_at_all_give_zero_and_zero_gradients(variant):
    nowhere = torch.zeros(2, 1, 6, 9, dtype=torch.bool)
    arguments = make_arguments(
        valid_disparity_mask=nowhere, left_visible_mask=nowhere, disparity=torch.full((2, 1, 6, 9), math.nan)
    )
    prediction = torch.full((2, 1, 6, 9), 1.3, requires_grad=True)
    loss = zerostereo_loss([prediction, prediction], initial_disparity=prediction, variant=variant, **arguments)
    loss.total.backward()
    assert loss.total == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_disparity_may_be_anything_where_it_is_not_valid():
    arguments = make_arguments()
    valid = torch.ones(2, 1, 6, 9, dtype=torch.bool)
    valid[0, 0, 1, 2:5] = False
    arguments |= {"valid_disparity_mask": valid, "left_visible_mask": valid}
    spoilt = arguments["disparity"].clone()
    spoilt[0, 0, 1, 2:5] = torch.tensor([math.inf, -math.inf, math.nan])
    prediction = torch.full((2, 1, 6, 9), 1.3, requires_grad=True)
    loss = zerostereo_loss([prediction], **arguments | {"disparity": spoilt}).total
    loss.backward()
    assert loss == zerostereo_loss([prediction], **arguments).total
    assert prediction.grad.isfinite().all()


def test_one_prediction_has_weight_one():
    assert sequence_weights(1) == [1.0]
    assert sequence_weights(2) == pytest.approx([0.9**15, 1.0])
    arguments = make_arguments()
    first, last = torch.full((2, 1, 6, 9), 1.3), torch.full((2, 1, 6, 9), 2.1)
    both = zerostereo_loss([first, last], **arguments).total.item()
    alone = [zerostereo_loss([prediction], **arguments).total.item() for prediction in (first, last)]
    assert both == pytest.approx(0.9**15 * alone[0] + alone[1], rel=1e-5)


def test_arguments_are_unchanged_and_half_precision_is_summed_in_float32():
    arguments = make_arguments()
    predictions = [torch.full((2, 1, 6, 9), value).half() for value in (1.5, 2.25)]
    copies = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    loss = zerostereo_loss(predictions, **arguments)
    assert loss.total.dtype == torch.float32
    assert loss.total == zerostereo_loss([p.float() for p in predictions], **arguments).total
    assert all(torch.equal(arguments[name], value) for name, value in copies.items())
    assert [p.unique().item() for p in predictions] == [1.5, 2.25]


def test_mean_over_ignores_what_is_outside_the_mask():
    value = torch.tensor([1.0, math.nan, 4.0, math.inf])
    assert mean_over(value, torch.tensor([True, False, True, False])) == 2.5
    assert mean_over(value, torch.zeros(4, dtype=torch.bool)) == 0


def test_true_disparity_of_a_real_pair_beats_a_wrong_one():
    pair = load_motorcycle()
    left, right, disparity = (value[..., 200:264, :] for value in pair)
    known = disparity.isfinite()
    arguments = make_arguments(1, *left.shape[-2:], left_image=left, right_image=right, disparity=disparity)
    arguments |= {"valid_disparity_mask": known, "left_visible_mask": known, "variant": "unsupervised"}

    def distance(off_by: float) -> float:
        return zerostereo_loss([torch.where(known, disparity + off_by, 0)], **arguments).total.item()

    assert distance(0) < 0.6 * min(distance(-6), distance(6))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"predictions": []}, ValueError, r"`predictions` must be a list of at least one .* got an empty list"),
        ({"predictions": torch.ones(2, 1, 6, 9)}, ValueError, r"`predictions` must be a list .* got a tensor"),
        ({"predictions": [torch.ones(2, 1, 6, 8)]}, ValueError, r"`predictions\[0\]` must have the shape .*6, 8"),
        ({"predictions": [torch.ones(2, 1, 6, 9).int()]}, TypeError, r"`predictions\[0\]` must be a float tensor"),
        ({"initial_disparity": torch.ones(2, 6, 9)}, ValueError, "`initial_disparity` must have the shape"),
        ({"disparity": torch.ones(2, 6, 9)}, ValueError, r"`disparity` must have the shape \[B,1,H,W\]; got \[2, 6"),
        ({"left_image": torch.ones(2, 3, 6, 7)}, ValueError, r"`left_image` must have the shape \[2,C,6,9\]"),
        ({"right_image": torch.ones(1, 3, 6, 9)}, ValueError, "`right_image` must have the shape"),
        ({"valid_disparity_mask": torch.ones(2, 1, 6, 9)}, TypeError, "`valid_disparity_mask` must be a bool tensor"),
        ({"left_visible_mask": torch.ones(2, 1, 1, 9).bool()}, ValueError, "`left_visible_mask` must have the shape"),
        ({"right_hole_mask": torch.ones(2, 1, 6, 9)}, TypeError, "`right_hole_mask` must be a bool tensor"),
        ({"confidence": None}, ValueError, '`confidence` must be given for `variant="zerostereo"`'),
        ({"confidence": torch.ones(2, 1, 1, 1)}, ValueError, "`confidence` must have the shape"),
        ({"variant": "both"}, ValueError, "`variant` must be one of zerostereo, .* got 'both'"),
        ({"photometric_range": 100}, ValueError, "`photometric_range` must be 255 or 1; got 100"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    arguments = make_arguments() | {"predictions": [torch.ones(2, 1, 6, 9)]} | changes
    with pytest.raises(error, match=message):
        zerostereo_loss(arguments.pop("predictions"), **arguments)


def test_pictures_smaller_than_the_window_are_refused_unless_supervised():
    arguments = make_arguments(1, 3, 9)
    with pytest.raises(ValueError, match=r"`disparity` must be at least 4x4, the reach of SSIM; got \[3, 9\]"):
        zerostereo_loss([torch.ones(1, 1, 3, 9)], **arguments)
    assert zerostereo_loss([arguments["disparity"] + 2], variant="supervised", **arguments).total.item() == (
        pytest.approx(2.0, rel=1e-5)
    )
