# SPDX-License-Identifier: Apache-2.0
"""Crops, flips and colours of training samples: known answers, and the generator decides."""

import colorsys

import numpy as np
import pytest
import torch

from tests.golden_files import load_golden
from training.augmentation import (
    ColorChange,
    ColorJitter,
    add_noise_and_blur,
    augment_for_fine_tuning,
    change_colors,
    crop_randomly,
    crop_resize_flip,
    crop_sample,
    draw_color_change,
    draw_color_jitter,
    enlarge_to_fit,
    jitter_colors,
    jitter_sample,
    rescale_sparse_disparity,
    resize_sample,
    turn_hue,
)
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


# ---------------------------------------------------------------------------------------------------------------------
# One sample of a data set
# ---------------------------------------------------------------------------------------------------------------------


def make_sample(height: int, width: int) -> dict:
    """Columns and rows as colours, the column as disparity, one pixel not valid."""
    columns = torch.arange(width).expand(height, width)
    rows = torch.arange(height)[:, None].expand(height, width)
    valid = torch.ones(1, height, width, dtype=torch.bool)
    valid[0, 1, 2] = False
    disparity = torch.where(valid, columns.float(), 0.0)
    left = torch.stack([columns, rows, columns + rows]).to(torch.uint8)
    return {
        "left_image": left,
        "right_image": left.flip(-1),
        "left_disparity": disparity,
        "valid_disparity_mask": valid,
        "name": "a/b.png",
    }


def copy_of(sample: dict) -> dict:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in sample.items()}


def assert_equal_samples(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]


def test_enlarging_and_cropping_agree_with_the_official_code():
    golden = load_golden("augment")
    valid = torch.from_numpy(golden["a_valid"] > 0.5)[None]
    sample = {
        "left_image": torch.from_numpy(golden["a_left"].astype(np.float64)).movedim(-1, 0),  # float32: 1.3e-4
        "right_image": torch.from_numpy(golden["a_right"].astype(np.float64)).movedim(-1, 0),
        "left_disparity": torch.from_numpy(golden["a_disp"])[None],
        "valid_disparity_mask": valid,
    }
    before = copy_of(sample)
    enlarged = enlarge_to_fit(sample, (40, 40))
    assert enlarged["left_image"].shape[-2:] == tuple(golden["a_full_hw"])
    result = crop_sample(enlarged, int(golden["a_y0"]), int(golden["a_x0"]), (40, 40))
    for name, recorded in (("left_image", "a_out_left"), ("right_image", "a_out_right")):
        expected = torch.from_numpy(golden[recorded].astype(np.float64)).movedim(-1, 0)
        torch.testing.assert_close(result[name], expected, atol=1e-4, rtol=0)
    assert np.array_equal(result["valid_disparity_mask"][0], golden["a_out_valid"] > 0.5)
    without_mask = {"left_disparity": sample["left_disparity"], "share": valid.float()}
    plain = crop_sample(enlarge_to_fit(without_mask, (40, 40)), int(golden["a_y0"]), int(golden["a_x0"]), (40, 40))
    expected = torch.from_numpy(golden["a_out_disp"]).float()[None]
    torch.testing.assert_close(plain["left_disparity"], expected, atol=1e-4, rtol=0)
    all_valid = plain["share"] == 1  # no invalid neighbour took part
    assert 0.8 < all_valid.float().mean() < 1
    torch.testing.assert_close(result["left_disparity"][all_valid], expected[all_valid], atol=1e-4, rtol=0)
    assert_equal_samples(sample, before)


def test_sparse_rescaling_agrees_with_the_official_code():
    golden = load_golden("augment")
    disparity, valid = torch.from_numpy(golden["a_disp"])[None], torch.from_numpy(golden["a_valid"] > 0.5)[None]
    found, known = rescale_sparse_disparity(disparity, valid, 0.8, 1.25)
    assert np.array_equal(known[0], golden["sparse_out_valid_fx08_fy125"] > 0.5)
    np.testing.assert_allclose(found[0], golden["sparse_out_disp_fx08_fy125"], atol=1e-4)


def test_sparse_rescaling_known_answer():
    disparity = torch.tensor([[[9.0, 9, 9, 9], [9, 2, 4, 6], [9, 9, 3, 9]]])
    valid = torch.tensor([[[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0]]]).bool()
    found, known = rescale_sparse_disparity(disparity, valid, 0.5, 1.0)
    assert found.tolist() == [[[0, 0], [0, 2], [0, 1.5]]]  # columns 0..3 go to 0, 0, 1, 2; 2 is outside
    assert known.tolist() == [[[False, False], [False, True], [False, True]]]


@pytest.mark.parametrize(
    ("factors", "message"), [((0.0, 1.0), "factor_x.* 0.0"), ((1.0, 0.01), "factor_y.*3 px; got")]
)
def test_sparse_rescaling_to_nothing(factors, message):
    with pytest.raises(ValueError, match=message):
        rescale_sparse_disparity(torch.ones(1, 3, 4), torch.ones(1, 3, 4).bool(), *factors)


def test_resizing_multiplies_disparity_by_the_ratio_of_widths():
    sample = {"left_disparity": torch.full((1, 4, 6), 3.0), "inverse_depth": torch.full((1, 4, 6), 3.0)}
    result = resize_sample(sample, (12, 9))
    torch.testing.assert_close(result["left_disparity"], torch.full((1, 12, 9), 4.5))
    torch.testing.assert_close(result["inverse_depth"], torch.full((1, 12, 9), 3.0))


def test_shrinking_averages_over_what_a_pixel_covers():
    stripes = torch.arange(24) % 4 == 0  # one column in four is lit
    picture = torch.where(stripes, 200, 0).to(torch.uint8).expand(3, 8, 24)
    result = resize_sample({"photograph": picture}, (2, 6))["photograph"]
    assert result.dtype == torch.uint8 and result.shape == (3, 2, 6)
    assert (result[:, :, 1:-1].float() - 50).abs().max() < 15  # picking neighbours alone would give 0


def test_invalid_pixels_do_not_leak_into_their_neighbours():
    sample = make_sample(4, 6)
    sample["left_disparity"] = torch.where(sample["valid_disparity_mask"], 10.0, 0.0)
    for size in ((8, 12), (7, 9), (3, 4)):
        result = resize_sample(sample, size)
        valid = result["valid_disparity_mask"]
        expected = torch.full_like(result["left_disparity"], 10 * size[1] / 6)
        torch.testing.assert_close(result["left_disparity"][valid], expected[valid])
        assert (result["left_disparity"][~valid] == 0).all()
    assert (~resize_sample(sample, (8, 12))["valid_disparity_mask"]).sum() == 4


def test_resizing_a_map_without_valid_pixels():
    sample = make_sample(4, 6) | {"valid_disparity_mask": torch.zeros(1, 4, 6, dtype=torch.bool)}
    result = resize_sample(sample, (9, 7))
    assert not result["valid_disparity_mask"].any() and not result["left_disparity"].any()


def test_a_sample_that_is_large_enough_is_not_resized():
    sample = make_sample(9, 11)
    assert_equal_samples(enlarge_to_fit(sample, (8, 10)), sample)
    assert enlarge_to_fit(sample, (9, 10))["left_image"].shape == (3, 10, 12)  # by 10/9, as 512 px become 513


def test_cropping_cuts_everything_alike():
    result = crop_sample(make_sample(9, 11), 2, 5, (4, 3))
    assert result["left_image"][0].tolist() == [[5, 6, 7]] * 4
    assert result["left_image"][1, :, 0].tolist() == [2, 3, 4, 5]
    assert result["right_image"][0].tolist() == [[5, 4, 3]] * 4
    assert result["left_disparity"][0].tolist() == [[5, 6, 7]] * 4
    assert result["name"] == "a/b.png"


@pytest.mark.parametrize("window", [(6, 0, (4, 3)), (0, 9, (4, 3)), (-1, 0, (4, 3)), (0, 0, (10, 3))])
def test_a_window_outside(window):
    with pytest.raises(ValueError, match="must give a window inside 9x11; got"):
        crop_sample(make_sample(9, 11), *window)


def test_tensors_of_different_sizes():
    sample = make_sample(9, 11) | {"right_image": torch.zeros(3, 9, 12, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"one height and width; got .*'right_image': \(9, 12\)"):
        crop_sample(sample, 0, 0, (2, 2))


def test_random_crops_reach_every_place_and_repeat_by_their_generator():
    sample = make_sample(6, 7)
    before = copy_of(sample)
    tops_and_lefts = set()
    for seed in range(60):
        crop = crop_randomly(sample, (5, 5), generator=step_generator(seed, 0, 0))
        assert_equal_samples(crop, crop_randomly(sample, (5, 5), generator=step_generator(seed, 0, 0)))
        tops_and_lefts.add((int(crop["left_image"][1, 0, 0]), int(crop["left_image"][0, 0, 0])))
    assert tops_and_lefts == {(top, left) for top in range(2) for left in range(3)}
    assert_equal_samples(sample, before)


def test_crop_of_a_small_sample():
    crop = crop_randomly(make_sample(4, 6), (8, 8), generator=step_generator(0, 0, 0))
    assert crop["left_image"].shape == (3, 8, 8) and crop["valid_disparity_mask"].shape == (1, 8, 8)


NEUTRAL = ColorJitter(1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("jitter", "expected"),
    [
        (NEUTRAL._replace(brightness=0.5), [(0.3, 0.1, 0.05), (0.1, 0.2, 0.4)]),
        (NEUTRAL._replace(brightness=2.0), [(1.0, 0.4, 0.2), (0.4, 0.8, 1.0)]),
        # luma .3082 and .3858: mean .347
        (NEUTRAL._replace(contrast=0.0), [(0.347,) * 3, (0.347,) * 3]),
        (NEUTRAL._replace(contrast=0.5), [(0.4735, 0.2735, 0.2235), (0.2735, 0.3735, 0.5735)]),
        (NEUTRAL._replace(saturation=0.0), [(0.3082,) * 3, (0.3858,) * 3]),
        (NEUTRAL._replace(saturation=1.5), [(0.7459, 0.1459, 0.0), (0.1071, 0.4071, 1.0)]),
        (NEUTRAL._replace(hue=1 / 3), [(0.1, 0.6, 0.2), (0.8, 0.2, 0.4)]),
    ],
)
def test_known_jitters_of_two_pixels(jitter, expected):
    image = make_image((0.6, 0.2, 0.1), (0.2, 0.4, 0.8))
    torch.testing.assert_close(jitter_colors(image, jitter), make_image(*expected), atol=1e-4, rtol=0)


def test_order_of_the_jitter_matters_and_is_kept():
    image = make_image((0.6, 0.6, 0.6), (0.2, 0.2, 0.2))
    jitter = NEUTRAL._replace(brightness=2.0, contrast=0.5)
    assert jitter_colors(image, jitter)[0, 0, 0].tolist() == pytest.approx([0.85, 0.55])  # 1.0 and 0.4, mean 0.7
    reverse = jitter._replace(order=(3, 2, 1, 0))
    assert jitter_colors(image, reverse)[0, 0, 0].tolist() == pytest.approx([1.0, 0.6])  # 0.5 and 0.3


def test_neutral_jitter_keeps_the_picture():
    image = torch.rand(2, 3, 4, 5, generator=step_generator(0, 0, 0))
    before = image.clone()
    torch.testing.assert_close(jitter_colors(image, NEUTRAL), before)
    jitter_colors(image, ColorJitter(0.7, 1.3, 0.2, 0.1))
    assert torch.equal(image, before)


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.15, 0.5, 1.0])
def test_hue_agrees_with_the_standard_library(turn):
    image = torch.rand(3, 5, 7, generator=step_generator(0, 0, 0), dtype=torch.float64)
    image[:, 0, :2] = torch.tensor([0.4, 0.0], dtype=torch.float64)  # grey and black
    turned = turn_hue(image, turn)
    for row in range(5):
        for column in range(7):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            assert turned[:, row, column].tolist() == pytest.approx(expected, abs=1e-9)


def test_jitter_is_drawn_from_the_papers_ranges():
    drawn = [draw_color_jitter(generator=step_generator(seed, 0, 0)) for seed in range(300)]
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.0, 1.4),
        ("hue", -0.1592, 0.1592),
    ):
        values = [getattr(jitter, name) for jitter in drawn]
        width = high - low
        assert low <= min(values) < low + 0.03 * width and high - 0.03 * width < max(values) <= high
    assert len({jitter.order for jitter in drawn}) == 24


def test_both_views_of_a_sample_change_alike():
    sample = make_sample(9, 11)
    sample["right_image"] = sample["left_image"].clone()
    sample["right_image"][:, 0] = 255  # its own mean differs
    before = copy_of(sample)
    changed = jitter_sample(sample, generator=step_generator(3, 0, 0))
    assert torch.equal(changed["left_image"][:, 1:], changed["right_image"][:, 1:])
    assert not torch.equal(changed["left_image"], sample["left_image"])
    assert changed["left_image"].dtype == torch.uint8
    assert torch.equal(changed["left_disparity"], sample["left_disparity"])
    assert_equal_samples(sample, before)


def test_augmentation_for_fine_tuning_is_a_function_of_its_generator():
    sample = make_sample(20, 30)
    before, state = copy_of(sample), torch.get_rng_state()
    first, again, other = (
        augment_for_fine_tuning(sample, (8, 9), generator=step_generator(seed, 0, 0)) for seed in (1, 1, 2)
    )
    assert_equal_samples(first, again)
    assert first["left_image"].shape == (3, 8, 9) and first["left_disparity"].shape == (1, 8, 9)
    assert not torch.equal(first["left_image"], other["left_image"])
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal_samples(sample, before)
