# SPDX-License-Identifier: Apache-2.0
"""Crops, flips and colours of training samples: known answers, and the generator decides."""

import pytest
import torch

from training.augmentation import ColorChange, add_noise_and_blur, change_colors, crop_resize_flip, draw_color_change
from training.run import step_generator


def make_change(contrast=1.0, brightness=1.0, saturation=1.0, tint=(1.0, 1.0, 1.0)) -> ColorChange:
    numbers = (torch.full((1, 1, 1, 1), value) for value in (contrast, brightness, saturation))
    return ColorChange(*numbers, torch.tensor(tint).view(1, 3, 1, 1))


def make_image(*pixels: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(pixels).T.reshape(1, 3, 1, len(pixels))


def test_neutral_change_keeps_the_picture():
    image = torch.rand(2, 3, 4, 5, generator=step_generator(0, 0, 0))
    torch.testing.assert_close(change_colors(image, make_change()), image)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (make_change(contrast=0.5), [(0.3, 0.3, 0.3), (0.5, 0.5, 0.5)]),
        (make_change(brightness=0.5), [(0.0, 0.0, 0.0), (0.4, 0.4, 0.4)]),
        (make_change(brightness=2.0), [(0.6, 0.6, 0.6), (1.0, 1.0, 1.0)]),
        (make_change(tint=(1.0, 0.5, 0.0)), [(0.2, 0.1, 0.0), (0.6, 0.3, 0.0)]),
    ],
)
def test_known_changes_of_two_grey_pixels(change, expected):
    image = make_image((0.2, 0.2, 0.2), (0.6, 0.6, 0.6))  # mean .4
    torch.testing.assert_close(change_colors(image, change), make_image(*expected))


def test_no_saturation_leaves_grey():
    image = make_image((0.1, 0.3, 0.8), (0.4, 0.5, 0.3))
    torch.testing.assert_close(change_colors(image, make_change(saturation=0.0)), make_image((0.4,) * 3, (0.4,) * 3))


def test_center_of_another_picture_makes_both_change_alike():
    first, second = make_image((0.2, 0.2, 0.2), (0.6, 0.6, 0.6)), make_image((0.6, 0.6, 0.6), (0.6, 0.6, 0.6))
    change, center = make_change(contrast=0.5), first.mean((1, 2, 3), keepdim=True)
    both = [change_colors(image, change, center) for image in (first, second)]
    assert torch.equal(both[0][..., 1], both[1][..., 0])


def test_zero_strength_draws_no_change():
    change = draw_color_change(5, generator=step_generator(0, 0, 0), strength=0.0)
    assert all(torch.equal(part, torch.ones_like(part)) for part in change)
    assert change.tint.shape == (5, 3, 1, 1)


def test_noise_and_blur_stay_in_range_and_keep_the_input():
    image = torch.rand(30, 3, 6, 7, generator=step_generator(0, 0, 0))
    before = image.clone()
    changed = add_noise_and_blur(image, generator=step_generator(0, 1, 0))
    assert torch.equal(image, before) and 0 <= changed.min() and changed.max() <= 1
    blurred = add_noise_and_blur(image, generator=step_generator(0, 1, 0), max_noise=0.0)
    untouched = (blurred == image).flatten(1).all(1)
    assert 15 < untouched.sum() < 27


def test_crop_cuts_image_and_disparity_alike_and_mirrors_half():
    B, H, W = 40, 12, 20
    columns = torch.arange(float(W)).expand(B, 1, H, W).contiguous()
    image, disparity = crop_resize_flip(
        columns.expand(B, 3, H, W), columns, (12, 10), generator=step_generator(0, 0, 0), smallest=1.0
    )
    assert image.shape == (B, 3, 12, 10) and disparity.shape == (B, 1, 12, 10)
    assert torch.equal(image[:, :1], disparity)
    assert torch.equal(disparity.diff(dim=3).abs(), torch.ones(B, 1, 12, 9))  # no resize: a plain window
    mirrored = disparity[:, 0, 0, 0] > disparity[:, 0, 0, -1]
    assert 8 < mirrored.sum() < 32
    assert len(disparity.amin((1, 2, 3)).unique()) > 5


def test_crop_resizes_to_the_asked_size():
    image, disparity = torch.rand(2, 3, 12, 20), torch.full((2, 1, 12, 20), 3.0)
    image, disparity = crop_resize_flip(image, disparity, (28, 42), generator=step_generator(0, 0, 0))
    assert image.shape == (2, 3, 28, 42)
    torch.testing.assert_close(disparity, torch.full((2, 1, 28, 42), 3.0))
