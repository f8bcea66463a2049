# SPDX-License-Identifier: Apache-2.0
"""Tests of the classical fills that the benchmarks compare with."""

import pytest
import torch

import pipeline_zerostereo
from benchmarks.fills import (
    fill_by_fast_marching,
    fill_by_navier_stokes,
    fill_from_background,
    fill_from_photograph,
)

OPENCV_FILLS = [fill_by_fast_marching, fill_by_navier_stokes]


def random_case(batch=2, height=9, width=13):
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(batch, 3, height, width, generator=generator)
    hole_mask = torch.rand(batch, 1, height, width, generator=generator) < 0.3
    return image.masked_fill(hole_mask, 0.0), hole_mask, torch.rand(batch, 3, height, width, generator=generator)


def every_fill(image, hole_mask, donor):
    filled = [fill(image, hole_mask) for fill in OPENCV_FILLS]
    return [*filled, fill_from_photograph(image, hole_mask, donor)]


def test_background_fill_is_the_pipelines():
    assert fill_from_background is pipeline_zerostereo.fill_from_background


def test_known_pixels_are_kept_and_arguments_not_changed():
    image, hole_mask, donor = random_case()
    before = image.clone(), hole_mask.clone(), donor.clone()
    for filled in every_fill(image, hole_mask, donor):
        known = ~hole_mask.expand_as(image)
        assert torch.equal(filled[known], image[known])
        assert filled.dtype == image.dtype and filled.min() >= 0 and filled.max() <= 1
        assert not torch.equal(filled, image)
    assert all(torch.equal(now, then) for now, then in zip((image, hole_mask, donor), before, strict=True))


def test_images_of_a_batch_are_filled_alone():
    image, hole_mask, donor = random_case()
    whole = every_fill(image, hole_mask, donor)
    for b in range(2):
        one = every_fill(image[b : b + 1], hole_mask[b : b + 1], donor[b : b + 1])
        assert all(torch.equal(a[b : b + 1], b_alone) for a, b_alone in zip(whole, one, strict=True))


def test_photograph_takes_mean_and_contrast_of_the_known_pixels():
    view = torch.zeros(1, 3, 1, 4)
    view[0, 0, 0] = torch.tensor([0.2, 0.6, 0.9, 0.9])  # known 0.2 and 0.6: mean .4, deviation .2
    view[0, 1, 0] = torch.tensor([0.5, 0.5, 0.9, 0.9])  # known without contrast
    view[0, 2, 0] = torch.tensor([0.1, 0.9, 0.9, 0.9])  # mean .5, deviation .4
    donor = torch.zeros(1, 3, 1, 4)
    donor[0, 0, 0] = torch.tensor([0.0, 0.0, 0.2, 0.2])  # mean .1, deviation .1: becomes .2 .2 .6 .6
    donor[0, 1, 0] = torch.tensor([0.1, 0.3, 0.5, 0.7])
    donor[0, 2, 0] = torch.tensor([0.3, 0.3, 0.3, 0.3])  # without contrast
    holes = torch.tensor([False, False, True, True]).view(1, 1, 1, 4)
    filled = fill_from_photograph(view, holes, donor)
    expected = view.clone()
    expected[0, :, 0, 2:] = torch.tensor([0.6, 0.5, 0.5])[:, None]
    torch.testing.assert_close(filled, expected)


def test_photograph_is_clamped():
    view = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]).expand(1, 3, 1, 5)
    donor = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0]).expand(1, 3, 1, 5)  # the last is two deviations above the mean
    holes = torch.tensor([False, False, False, False, True]).view(1, 1, 1, 5)
    assert (fill_from_photograph(view, holes, donor)[..., 4] == 1).all()


def test_photograph_fills_a_view_without_known_pixels():
    _, _, donor = random_case()
    holes = torch.ones(2, 1, 9, 13, dtype=torch.bool)
    assert torch.equal(fill_from_photograph(torch.zeros_like(donor), holes, donor), donor)


@pytest.mark.parametrize("fill", OPENCV_FILLS)
def test_opencv_continues_its_surroundings(fill):
    image = torch.empty(1, 3, 20, 31)
    image[0] = torch.tensor([51.0, 102.0, 204.0]).view(3, 1, 1) / 255  # red, green and blue differ
    holes = torch.zeros(1, 1, 20, 31, dtype=torch.bool)
    holes[..., 6:9, 10:14] = True
    filled = fill(image.masked_fill(holes, 0.0), holes)
    torch.testing.assert_close(filled, image, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("fill", OPENCV_FILLS)
def test_opencv_without_holes_and_with_nothing_else(fill):
    image, _, _ = random_case()
    assert torch.equal(fill(image, torch.zeros(2, 1, 9, 13, dtype=torch.bool)), image)
    assert fill(image, torch.ones(2, 1, 9, 13, dtype=torch.bool)).isfinite().all()


def test_errors():
    image, hole_mask, donor = random_case()
    for fill in OPENCV_FILLS:
        with pytest.raises(ValueError, match=r"`right_image` must have shape \[B,3,H,W\]; got \[2, 1, 9, 13\]"):
            fill(image[:, :1], hole_mask)
        with pytest.raises(TypeError, match="`right_hole_mask` must be a bool tensor; got torch.float32"):
            fill(image, hole_mask.float())
        with pytest.raises(ValueError, match=r"`right_hole_mask` must have the B, H and W .*\[2, 1, 9, 12\]"):
            fill(image, hole_mask[..., :12])
    with pytest.raises(ValueError, match=r"`right_image` must have shape \[B,3,H,W\]; got \[3, 9, 13\]"):
        fill_from_photograph(image[0], hole_mask, donor)
    with pytest.raises(ValueError, match=r"`donor` must have the shape of `right_image`.*got \[2, 3, 9, 12\]"):
        fill_from_photograph(image, hole_mask, donor[..., :12])
