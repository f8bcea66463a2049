# SPDX-License-Identifier: Apache-2.0
"""End-point error, outliers and D1: recorded figures, answers by hand, empty masks, averages per image and pooled."""

import math

import pytest
import torch

from tests.golden_files import load_golden
from training.stereo_metrics import average_images, join_errors, measure_errors, pool_pixels, split_by_visibility


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def everywhere(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_averages_agree_with_the_recorded_ones():
    golden = load_golden("metrics")
    gt, pred, valid = (torch.from_numpy(golden[name]) for name in ("gt", "pred", "valid"))
    figures = average_images(measure_errors(pred, gt, valid >= 0.5))
    assert figures.end_point_error_px == pytest.approx(golden["EPE"].item(), rel=1e-6)
    for threshold in (1, 2, 3):
        assert figures.bad_percent[threshold] == pytest.approx(golden[f"bad{threshold}_percent"].item(), rel=1e-6)
    assert figures.images == 3


def test_training_figures_agree_with_the_recorded_ones():
    golden = {name: torch.from_numpy(value) for name, value in load_golden("loss").items()}
    mask = (golden["valid"] == 1) & (golden["disp"] < 700)
    figures = pool_pixels(measure_errors(golden["pred2"], golden["disp"], mask))
    assert figures.end_point_error_px == pytest.approx(golden["raft_train_EPE"].item(), rel=1e-5)
    for threshold in (1, 3, 5):
        share_below = 1 - figures.bad_percent[threshold] / 100
        assert share_below == pytest.approx(golden[f"raft_train_{threshold}px"].item(), rel=1e-6)


def test_a_pixel_is_bad_when_it_is_wrong_by_more_than_the_threshold():
    truth = row(10, 10, 10, 10, 10)
    errors = measure_errors(truth + row(0, 1, -1.25, 3, -7), truth, everywhere(truth), thresholds_px=(1, 3))
    assert errors.pixels.tolist() == [5]
    assert errors.error_px.tolist() == [12.25]
    assert {threshold: count.tolist() for threshold, count in errors.outliers.items()} == {1: [3], 3: [1]}


def test_d1_needs_three_pixels_and_five_percent():
    truth = row(100, 100, 40, 40, 200)
    figures = pool_pixels(measure_errors(truth + row(4.5, -5.5, 2.9, 3.5, 9.0), truth, everywhere(truth)))
    assert figures.d1_percent == pytest.approx(40)  # 5.5 of 100 and 3.5 of 40
    assert figures.bad_percent[3] == pytest.approx(80)


def test_images_alike_or_pixels_alike():
    truth = torch.full((2, 1, 1, 4), 20.0)
    mask = torch.tensor([[True, False, False, False], [True, True, True, True]]).view(2, 1, 1, 4)
    errors = measure_errors(truth + torch.tensor([[8.0, 99, 99, 99], [0, 0, 4, 0]]).view(2, 1, 1, 4), truth, mask)
    per_image, pooled = average_images(errors), pool_pixels(errors)
    assert per_image.end_point_error_px == pytest.approx((8 + 1) / 2)
    assert pooled.end_point_error_px == pytest.approx(12 / 5)
    assert per_image.bad_percent[3] == pytest.approx((100 + 25) / 2)
    assert pooled.bad_percent[3] == pytest.approx(100 * 2 / 5)
    assert per_image.bad_percent[5] == pytest.approx(50)
    assert (per_image.images, per_image.pixels) == (pooled.images, pooled.pixels) == (2, 5)


def test_regions():
    valid, visible = (
        torch.tensor(values).view(1, 1, 1, 4) for values in ([True, True, True, False], [True, False] * 2)
    )
    regions = split_by_visibility(valid, visible)
    assert {name: mask.flatten().int().tolist() for name, mask in regions.items()} == {
        "all": [1, 1, 1, 0],
        "noc": [1, 0, 1, 0],
        "occ": [0, 1, 0, 0],
    }
    truth, disparity = row(10, 10, 10, 10), row(10, 16, 12, 90)
    error = {name: pool_pixels(measure_errors(disparity, truth, mask)) for name, mask in regions.items()}
    assert error["noc"].end_point_error_px == 1 and error["occ"].end_point_error_px == 6
    assert error["all"].end_point_error_px == pytest.approx(8 / 3)


def test_images_without_pixels_are_left_out_and_counted():
    truth = torch.full((2, 1, 1, 3), 20.0)
    mask = torch.zeros(2, 1, 1, 3, dtype=torch.bool)
    mask[1, 0, 0, 2] = True
    figures = average_images(measure_errors(truth + 2, truth, mask))
    assert (figures.end_point_error_px, figures.images, figures.pixels) == (2, 1, 1)
    for summarize in (average_images, pool_pixels):
        nothing = summarize(measure_errors(truth, truth, torch.zeros_like(mask)))
        assert math.isnan(nothing.end_point_error_px) and math.isnan(nothing.bad_percent[1])
        assert math.isnan(nothing.d1_percent) and nothing.images == 0


def test_anything_may_stand_outside_the_mask():
    truth, disparity = row(10, math.inf, math.nan, 12), row(11, 5, 5, math.nan)
    mask = torch.tensor([True, False, False, False]).view(1, 1, 1, 4)
    errors = measure_errors(disparity, truth, mask)
    assert pool_pixels(errors).end_point_error_px == 1
    assert pool_pixels(errors).bad_percent[0.5] == 100


def test_batches_join_as_if_they_were_one():
    generator = torch.Generator().manual_seed(1)
    truth = 30 * torch.rand(5, 1, 4, 7, generator=generator)
    disparity = truth + 3 * torch.randn(5, 1, 4, 7, generator=generator)
    mask = torch.rand(5, 1, 4, 7, generator=generator) < 0.6
    whole = measure_errors(disparity, truth, mask)
    parts = join_errors([measure_errors(*(x[part] for x in (disparity, truth, mask))) for part in ([0, 1], [2, 3, 4])])
    assert average_images(parts) == average_images(whole)
    assert pool_pixels(parts) == pool_pixels(whole)


MASK = torch.ones(2, 1, 3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("disparity", "truth", "mask", "error", "message"),
    [
        (
            MASK[0].float(),
            MASK.float(),
            MASK,
            ValueError,
            r"`disparity` must have the shape \[B,1,H,W\]",
        ),
        (MASK.float(), MASK[:1].float(), MASK, ValueError, "`true_disparity` must have the shape of `disparity`"),
        (MASK.float(), MASK.float(), MASK.float(), TypeError, "`mask` must be a bool tensor; got torch.float32"),
        (MASK.float(), MASK.float(), MASK[:1], ValueError, r"`mask` must have the shape \[2, 1, 3, 4\]"),
        (MASK / 0, MASK.float(), MASK, ValueError, "`disparity` must be finite where `mask` is True; got 24 pixels"),
        (MASK.float(), MASK / 0, MASK, ValueError, "`true_disparity` must be finite where `mask` is True"),
    ],
)
def test_wrong_arguments_are_named(disparity, truth, mask, error, message):
    with pytest.raises(error, match=message):
        measure_errors(disparity, truth, mask)


def test_wrong_regions_and_batches_are_named():
    with pytest.raises(TypeError, match="`valid_mask` must be a bool tensor"):
        split_by_visibility(MASK.float(), MASK)
    with pytest.raises(ValueError, match="`visible_mask` must have the shape"):
        split_by_visibility(MASK, MASK[:1])
    with pytest.raises(ValueError, match="`batches` must hold at least one"):
        join_errors([])
    first, second = (measure_errors(MASK.float(), MASK.float(), MASK, thresholds_px=t) for t in ((1,), (1, 2)))
    with pytest.raises(ValueError, match=r"`batches` must have one set of thresholds; got \[1\] and \[1, 2\]"):
        join_errors([first, second])
