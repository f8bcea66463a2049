# SPDX-License-Identifier: Apache-2.0
"""Regions, counts and both averages of a benchmark: answers by hand, a slow reference of the boundary region."""

import json
import math

import numpy as np
import pytest
import skimage.data
import torch

from training.stereo_evaluation import (
    BOUNDARY_LARGEST_GAP,
    BOUNDARY_STEP_PX,
    BOUNDARY_WINDOW,
    REGIONS,
    ImageResult,
    boundary_mask,
    figures_of_image,
    find_regions,
    measure_image,
    result_from_json,
    result_to_json,
    summarize,
)


def as_map(values) -> torch.Tensor:
    """[H,W] numbers -> [1,1,H,W]."""
    return torch.tensor(np.asarray(values))[None, None]


def slow_boundary(disparity: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Look at every pair of pixels of every row and column, then at every window."""
    height, width = disparity.shape
    ends = np.zeros((height, width), dtype=bool)
    lines = [[(y, x) for x in range(width)] for y in range(height)]
    lines += [[(y, x) for y in range(height)] for x in range(width)]
    for line in lines:
        known = [place for place in line if valid[place]]
        for first, second in zip(known[:-1], known[1:], strict=True):
            gap = second[0] - first[0] + second[1] - first[1]
            step = abs(float(disparity[first]) - float(disparity[second]))
            if gap <= BOUNDARY_LARGEST_GAP and step > gap + BOUNDARY_STEP_PX:
                ends[first] = ends[second] = True
    reach = BOUNDARY_WINDOW // 2
    near = np.zeros_like(ends)
    for y, x in zip(*np.nonzero(ends), strict=True):
        near[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = True
    return near & valid


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("known_share", [0.1, 0.5, 1.0])
def test_boundaries_agree_with_the_slow_reference(seed, known_share):
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 30, 2)
    disparity = (random.integers(0, 2, (height, width)) * 1.5 + random.uniform(0, 2, (height, width))).astype("f4")
    disparity += 12 * (np.indices((height, width)).sum(0) > 20)
    valid = random.random((height, width)) < known_share
    disparity[~valid] = np.nan  # whatever it holds there must not matter
    found = boundary_mask(as_map(disparity), as_map(valid))
    np.testing.assert_array_equal(found[0, 0].numpy(), slow_boundary(disparity, valid))


def test_boundary_is_a_step_and_not_a_slope():
    steep = torch.arange(21.0).expand(1, 1, 3, 21)  # one px of disparity per px of the row
    assert not boundary_mask(steep, torch.ones_like(steep, dtype=torch.bool)).any()
    step = torch.where(torch.arange(21) < 10, 3.0, 5.5).expand(1, 1, 3, 21).contiguous()
    found = boundary_mask(step, torch.ones_like(step, dtype=torch.bool))
    assert found[0, 0, 1].nonzero().flatten().tolist() == list(range(5, 15))  # 9 and 10, and four px around them
    small = torch.where(torch.arange(21) < 10, 3.0, 5.0).expand(1, 1, 3, 21).contiguous()
    assert not boundary_mask(small, torch.ones_like(small, dtype=torch.bool)).any()


def test_boundary_between_points_of_a_laser_scan():
    disparity = torch.full((1, 1, 1, 40), float("inf"))
    for column, value in ((2, 10.0), (10, 20.0), (19, 40.0), (22, 44.0), (25, 49.5)):
        disparity[..., column] = value
    found = boundary_mask(disparity, disparity.isfinite())
    # 2 to 10: 10 px in 8; 10 to 19 are too far apart; 19 to 22: 4 px in 3 is a slope; 22 to 25: 5.5 px in 3
    assert found[0, 0, 0].nonzero().flatten().tolist() == [2, 10, 19, 22, 25]
    alone = boundary_mask(disparity[..., 12:24], disparity[..., 12:24].isfinite())
    assert not alone.any()


def test_boundary_hardly_depends_on_how_much_is_known():
    disparity = as_map(skimage.data.stereo_motorcycle()[2])
    known = disparity.isfinite()
    quarter = known & (torch.rand(disparity.shape, generator=torch.Generator().manual_seed(0)) < 0.25)
    shares = [float(boundary_mask(disparity, mask).sum() / mask.sum()) for mask in (known, quarter)]
    assert shares == pytest.approx([0.257, 0.251], abs=0.003)


def test_boundary_without_anything_known():
    for shape in ((1, 1, 1, 1), (2, 1, 3, 5)):
        nothing = torch.zeros(shape, dtype=torch.bool)
        assert not boundary_mask(torch.full(shape, math.nan), nothing).any()
    with pytest.raises(TypeError, match="`valid_mask` must be a bool tensor"):
        boundary_mask(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"`valid_mask` must have the shape \[1, 1, 2, 2\]"):
        boundary_mask(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 3, dtype=torch.bool))


def test_regions_and_what_is_left_out_of_them():
    truth = as_map([[1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 190.0, 300.0, 5.0]])
    valid = as_map([[True] * 9 + [False]])
    visible = as_map([[False, False, True, True, True, True, True, True, True, True]])
    whole = find_regions(truth, valid, visible)
    assert list(whole) == ["all", "noc", "occ", "boundary"] == list(REGIONS)
    assert [int(mask.sum()) for mask in whole.values()] == [9, 7, 2, 9]
    below = find_regions(truth, valid, visible, max_disparity_px=190)
    assert [int(mask.sum()) for mask in below.values()] == [7, 5, 2, 7]
    assert list(find_regions(truth, valid)) == ["all", "boundary"]
    with pytest.raises(ValueError, match="`max_disparity_px` must be above 0, or None for no limit; got 0"):
        find_regions(truth, valid, max_disparity_px=0)


def measured(name: str, errors: list[float], visible: list[bool]) -> ImageResult:
    truth = torch.full((1, 1, 1, len(errors)), 20.0)
    valid = torch.ones_like(truth, dtype=torch.bool)
    regions = find_regions(truth, valid, as_map([visible]))
    return measure_image(name, 0.25, truth + as_map([errors]), truth, regions)


def test_image_average_and_pixel_pooled_by_hand():
    results = [
        measured("a.png", [4.0, 0.5, 0.0, 1.5], [True, True, True, False]),
        measured("b.png", [-2.5], [True]),
    ]
    figures = summarize(results)
    assert list(figures) == ["all", "noc", "occ", "boundary"]
    average, pooled = figures["all"]
    assert average.end_point_error_px == pytest.approx((1.5 + 2.5) / 2)
    assert pooled.end_point_error_px == pytest.approx(8.5 / 5)
    assert average.bad_percent[2] == pytest.approx((25 + 100) / 2) and pooled.bad_percent[2] == pytest.approx(40)
    assert average.d1_percent == pytest.approx(12.5) and pooled.d1_percent == pytest.approx(20)
    assert figures["occ"].image_average.images == 1 and figures["occ"].image_average.end_point_error_px == 1.5
    assert figures["noc"].pixel_pooled.pixels == 4
    assert figures["boundary"].pixel_pooled.pixels == 0
    assert math.isnan(figures["boundary"].image_average.end_point_error_px)
    assert figures_of_image(results[0])["noc"].end_point_error_px == pytest.approx(1.5)


def test_a_set_without_masks_has_two_regions():
    truth = torch.full((1, 1, 2, 3), 7.0)
    regions = find_regions(truth, torch.ones_like(truth, dtype=torch.bool))
    assert list(summarize([measure_image("a", 0.0, truth, truth, regions)])) == ["all", "boundary"]


def test_results_travel_through_json_without_loss():
    result = measured("deep/a.png", [4.0, 0.1, 1 / 3, 1.5], [True, False, True, False])
    back = result_from_json(json.loads(json.dumps(result_to_json(result))))
    assert back.name == "deep/a.png" and back.seconds == 0.25
    assert summarize([back, result])["all"] == summarize([result, result])["all"]
    assert result_to_json(back) == result_to_json(result)


def test_results_that_cannot_be():
    with pytest.raises(ValueError, match="`results` must hold at least one result"):
        summarize([])
    with pytest.raises(ValueError, match="^night.png: `disparity` must be finite .* got 1 pixels"):
        measured("night.png", [math.nan, 0.0], [True, True])
