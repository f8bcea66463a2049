# SPDX-License-Identifier: Apache-2.0
"""Figures of filled holes: known answers, scikit-image's SSIM, and a validation that repeats."""

import math

import numpy as np
import pytest
import torch

from tests.tiny_components import embedded_pipeline
from tests.training_helpers import make_scenes
from training.inpainting_validation import (
    HeldOutViews,
    border_difference,
    hold_out,
    hole_gradient_energy,
    hole_psnr,
    score,
    similarity,
    validate,
)


@pytest.fixture(scope="module")
def views() -> HeldOutViews:
    scenes = make_scenes()
    return hold_out(scenes.left_image, scenes.left_disparity, scenes.right_image)


def holes_at(*places: tuple[int, int], size: tuple[int, int] = (4, 5)) -> torch.Tensor:
    holes = torch.zeros(1, 1, *size, dtype=torch.bool)
    for row, column in places:
        holes[0, 0, row, column] = True
    return holes


def test_hole_psnr_counts_holes_only():
    truth = torch.zeros(2, 3, 4, 5)
    image = truth + 0.5
    holes = torch.cat([holes_at(), holes_at((2, 3))])
    image[1, :, 2, 3] = 0.1
    assert hole_psnr(image, truth, holes) == pytest.approx(20.0, abs=1e-4)
    assert math.isnan(hole_psnr(image, truth, torch.zeros_like(holes)))


def test_gradient_energy_counts_pairs_inside_holes_only():
    image = torch.zeros(1, 3, 4, 5)
    image[:, :, 1, 2] = 0.5  # its right and lower neighbours are holes too, the left one is known
    holes = holes_at((1, 2), (1, 3), (2, 2))
    assert hole_gradient_energy(image, holes) == pytest.approx(3 * (0.25 + 0.25))


def test_border_difference_counts_pairs_across_the_border_only():
    image = torch.zeros(1, 3, 4, 5)
    holes = holes_at((1, 2), (1, 3))
    image[:, :, 1, 2], image[:, :, 1, 3] = 0.3, 0.9  # 3 known neighbours each; the pair between them does not count
    assert border_difference(image, holes) == pytest.approx((3 * 0.3 + 3 * 0.9) / 6)
    assert math.isnan(border_difference(image, torch.zeros_like(holes)))


def test_similarity_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(5)
    image = torch.rand((2, 3, 19, 26), generator=generator)
    truth = (0.7 * image + 0.3 * torch.rand((2, 3, 19, 26), generator=generator)).clamp(0, 1)
    found = similarity(image, truth)
    for i in range(2):
        a, b = (x[i].movedim(0, -1).numpy().astype(np.float64) for x in (image, truth))
        _, expected = structural_similarity(a, b, data_range=1.0, channel_axis=-1, full=True)
        np.testing.assert_allclose(found[i, 0].numpy(), expected.mean(-1), rtol=0, atol=1e-6)


def test_the_truth_scores_best(views):
    perfect, blurred = (
        score(views.truth, views),
        score(views.truth.mean((2, 3), keepdim=True) + 0 * views.truth, views),
    )
    assert perfect["psnr"] == pytest.approx(90) and perfect["ssim"] == pytest.approx(1)
    assert perfect["gradient_ratio"] == pytest.approx(1) and blurred["gradient_ratio"] == 0
    assert blurred["psnr"] < 20 and blurred["ssim"] < 0.5


def test_validation_repeats_and_pictures_what_it_says(views):
    pipe = embedded_pipeline()
    state = torch.random.get_rng_state()
    first, picture = validate(pipe, views, (1, 2))
    again, _ = validate(pipe, views, (1, 2))
    assert first == again and torch.equal(torch.random.get_rng_state(), state)
    names = {"psnr", "gradient_ratio", "ssim", "border_difference"}
    expected = {f"validation_{name}_{steps}_steps" for name in names for steps in (1, 2)}
    expected |= {f"validation_background_{name}" for name in names} | {"validation_true_border_difference"}
    assert set(first) == expected and all(math.isfinite(value) for value in first.values())
    H, W = views.truth.shape[-2:]
    assert picture.size == (4 * W, 3 * H)
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(shown[:, :H, 3 * W :], views.truth[0], rtol=0, atol=0.003)
    torch.testing.assert_close(shown[:, :H, :W], views.warped[0], rtol=0, atol=0.003)
