# SPDX-License-Identifier: Apache-2.0
"""Augmentation of pairs: the official numbers, and whatever is done the views still belong to each other."""

import math

import numpy as np
import pytest
import skimage.filters
import torch

from tests.golden_files import load_golden
from training import stereo_augmentation
from training.augmentation import jitter_colors
from training.run import step_generator
from training.stereo_augmentation import (
    Rectangle,
    Window,
    augment_pair,
    blur,
    change_colors_of_pair,
    crop_pair,
    disturb,
    disturb_pair,
    draw_rectangles,
    draw_size,
    draw_window,
    erase,
    rescale_pair,
)

MASKS = ("valid_disparity_mask", "left_visible_mask", "right_hole_mask")


def make_sample(height: int = 60, width: int = 90, shift: int = 7) -> dict:
    """A random picture and its neighbour, `shift` px to the left; masks and maps that differ from each other."""
    generator = torch.Generator().manual_seed(3)
    wide = torch.randint(0, 256, (3, height, width + shift), generator=generator, dtype=torch.uint8)
    return {
        "left_image": wide[..., :width].contiguous(),
        "right_image": wide[..., shift:].contiguous(),
        "disparity": torch.full((1, height, width), float(shift)),
        "confidence": torch.linspace(0, 1, width).expand(1, height, width).contiguous(),
        "valid_disparity_mask": torch.ones(1, height, width, dtype=torch.bool),
        "left_visible_mask": torch.arange(width).ge(shift).expand(1, height, width).contiguous(),
        "right_hole_mask": torch.arange(height).eq(5)[None, :, None].expand(1, height, width).contiguous(),
        "name": "a",
    }


def copy_of(sample: dict) -> dict:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in sample.items()}


def assert_equal_samples(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


def fix(monkeypatch, **constants) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(stereo_augmentation, name, value)


def without_disturbance(monkeypatch) -> None:
    """Leave the colours as they are, so that only the geometry changes."""
    monkeypatch.setattr(stereo_augmentation, "disturb_pair", lambda left, right, *, generator: (left, right))


# --- pictures ---


@pytest.mark.parametrize("sigma", [0.13, 0.3, 0.8, 1.0])
def test_blur_is_that_of_scikit_image(sigma):
    image = torch.rand(3, 9, 12, generator=step_generator(0, 0, 0))
    expected = skimage.filters.gaussian(image.numpy(), sigma=sigma, channel_axis=0)
    np.testing.assert_allclose(blur(image, sigma), expected, atol=1e-6)


def test_hardly_any_blur_is_none():
    image = torch.rand(3, 4, 5, generator=step_generator(0, 0, 0))
    assert torch.equal(blur(image, 0.0), image) and torch.equal(blur(image, 0.12), image)
    assert not torch.equal(blur(image, 0.3), image)


def test_noise_has_its_strength_and_stays_in_range(monkeypatch):
    fix(monkeypatch, BLUR_PROBABILITY=0.0)
    grey = torch.full((3, 100, 130), 0.4)
    difference = disturb(grey, generator=step_generator(0, 0, 0)) - grey
    assert difference.std().item() == pytest.approx(0.02, rel=0.03) and abs(difference.mean().item()) < 5e-4
    for value in (0.0, 1.0):
        noisy = disturb(torch.full((3, 20, 20), value), generator=step_generator(0, 0, 0))
        assert noisy.min() >= 0 and noisy.max() <= 1


def test_every_second_right_picture_is_blurred():
    grey = torch.full((3, 20, 20), 0.5)
    spread = torch.tensor([disturb(grey, generator=step_generator(1, i, 0)).std() for i in range(400)])
    # noise that is averaged over neighbours has less spread; below .125 px of 0..1 nothing changes
    assert (spread < 0.018).float().mean().item() == pytest.approx(0.5 * (1 - 0.3), abs=0.08)


@pytest.mark.parametrize(("probability", "alike"), [(0.0, True), (1.0, False)])
def test_both_views_change_colour_alike_or_each_alone(monkeypatch, probability, alike):
    fix(monkeypatch, ASYMMETRIC_PROBABILITY=probability)
    picture = torch.rand(3, 6, 8, generator=step_generator(0, 0, 0))
    left, right = change_colors_of_pair(picture, picture, generator=step_generator(2, 0, 0))
    assert torch.equal(left, right) == alike
    assert not torch.equal(left, picture)


def test_colours_of_a_pair_are_those_of_the_stacked_pictures(monkeypatch):
    fix(monkeypatch, ASYMMETRIC_PROBABILITY=0.0)
    pair = torch.rand(2, 3, 6, 8, generator=step_generator(0, 0, 0))
    draws = []

    def note(image, jitter):
        draws.append(jitter)
        return jitter_colors(image, jitter)

    monkeypatch.setattr(stereo_augmentation, "jitter_colors", note)
    found = change_colors_of_pair(*pair, generator=step_generator(2, 0, 0))
    assert torch.equal(torch.stack(found), jitter_colors(pair, draws[0])) and len(draws) == 1


def test_one_pair_in_five_is_asymmetric():
    picture = torch.rand(3, 4, 4, generator=step_generator(0, 0, 0))
    pairs = [change_colors_of_pair(picture, picture, generator=step_generator(3, i, 0)) for i in range(400)]
    share = sum(not torch.equal(left, right) for left, right in pairs) / 400
    assert share == pytest.approx(0.2, abs=0.06)


def test_erasing_paints_the_mean_colour():
    image = torch.zeros(3, 4, 5)
    image[0, 1, 2] = 1.0
    result = erase(image, [Rectangle(top=1, left=2, height=2, width=9), Rectangle(0, 0, 1, 1)])
    painted = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]) / 20
    torch.testing.assert_close(result, torch.stack([painted, torch.zeros(4, 5), torch.zeros(4, 5)]))
    assert image.sum() == 1


def test_what_is_erased_has_the_official_counts_and_sides():
    drawn = [draw_rectangles(300, 500, generator=step_generator(0, i, 0)) for i in range(600)]
    counts = [len(rectangles) for rectangles in drawn]
    assert set(counts) == {0, 1, 2}
    assert counts.count(0) / 600 == pytest.approx(0.5, abs=0.07)
    assert counts.count(1) / 600 == pytest.approx(0.25, abs=0.06)
    everything = [rectangle for rectangles in drawn for rectangle in rectangles]
    inside = [r for r in everything if r.top + r.height < 300 and r.left + r.width < 500]
    assert {min(r.height for r in inside), max(r.height for r in inside)} <= {50, 51, 98, 99}
    assert {min(r.width for r in inside), max(r.width for r in inside)} <= {50, 51, 98, 99}
    assert all(r.top + r.height <= 300 and r.left + r.width <= 500 for r in everything)
    assert max(r.left for r in everything) > 400 and max(r.top for r in everything) > 240


def test_left_pictures_get_no_noise_and_nothing_is_erased_of_them(monkeypatch):
    monkeypatch.setattr(stereo_augmentation, "jitter_colors", lambda image, jitter: image)
    fix(monkeypatch, ERASE_PROBABILITY=1.0)
    sample = make_sample(120, 130)
    left, right = disturb_pair(sample["left_image"], sample["right_image"], generator=step_generator(0, 0, 0))
    assert torch.equal(left, sample["left_image"])
    erased = (right.flatten(1) == right.flatten(1).mode(1).values[:, None]).all(0)
    assert 50 * 50 * 0.5 < erased.sum() < 2 * 99 * 99 + 200


# --- geometry ---


def test_enlarging_agrees_with_the_official_code():
    golden = load_golden("augment")
    valid = torch.from_numpy(golden["a_valid"] > 0.5)[None]
    sample = {
        "left_image": torch.from_numpy(golden["a_left"].astype(np.float64)).movedim(-1, 0),  # float32: 1.3e-4
        "right_image": torch.from_numpy(golden["a_right"].astype(np.float64)).movedim(-1, 0),
        "disparity": torch.from_numpy(golden["a_disp"])[None],
        "valid_disparity_mask": valid,
        "share": valid.float(),
    }
    before = copy_of(sample)
    size = tuple(golden["a_full_hw"].tolist())
    factor = float(golden["a_scale"])
    assert tuple(round(length * factor) for length in valid.shape[-2:]) == size
    top, left = int(golden["a_y0"]), int(golden["a_x0"])
    result = crop_pair(rescale_pair(sample, size), Window(top, left, top), (40, 40))
    for name, recorded in (("left_image", "a_out_left"), ("right_image", "a_out_right")):
        expected = torch.from_numpy(golden[recorded].astype(np.float64)).movedim(-1, 0)
        torch.testing.assert_close(result[name], expected, atol=1e-4, rtol=0)
    assert np.array_equal(result["valid_disparity_mask"][0], golden["a_out_valid"] > 0.5)
    all_valid = result["share"] == 1  # no invalid neighbour took part
    assert 0.8 < all_valid.float().mean() < 1
    expected = torch.from_numpy(golden["a_out_disp"]).float()[None]
    torch.testing.assert_close(result["disparity"].float()[all_valid], expected[all_valid], atol=1e-4, rtol=0)
    assert_equal_samples(sample, before)


def linear_loop(row: list[float], length: int) -> list[float]:
    """OpenCV's INTER_LINEAR of one row: pixel areas match, borders repeated, no averaging where it becomes smaller."""
    result = []
    for x in range(length):
        place = min(max((x + 0.5) * len(row) / length - 0.5, 0), len(row) - 1)
        low = min(math.floor(place), len(row) - 2)
        result.append(row[low] + (place - low) * (row[low + 1] - row[low]))
    return result


@pytest.mark.parametrize("width", [4, 5, 8, 11])
def test_scaling_agrees_with_the_slow_reference(width):
    row = [3.0, 9.0, 1.0, 4.0, 20.0, 6.0, 2.0]
    sample = make_sample(2, 7)
    sample["disparity"] = torch.tensor(row).expand(1, 2, 7).contiguous()
    sample["confidence"] = sample["disparity"] / 20
    result = rescale_pair(sample, (3, width))
    expected = torch.tensor(linear_loop(row, width)).expand(1, 3, width)
    torch.testing.assert_close(result["disparity"], expected * width / 7)
    torch.testing.assert_close(result["confidence"], expected / 20)


def test_scaling_averages_valid_disparities_only():
    sample = make_sample(1, 4)
    sample["disparity"] = torch.tensor([[[2.0, 99.0, 4.0, 6.0]]])
    sample["valid_disparity_mask"] = torch.tensor([[[True, False, True, True]]])
    result = rescale_pair(sample, (1, 8))
    assert result["valid_disparity_mask"][0, 0].tolist() == [True, True, False, False, True, True, True, True]
    # twice as wide: disparities are doubled; 99 is nowhere in them
    torch.testing.assert_close(result["disparity"][0, 0], torch.tensor([4.0, 4, 0, 0, 8, 9, 11, 12]))
    assert result["name"] == "a"


def test_scaling_a_pair_keeps_its_views_together(monkeypatch):
    """A wider pair has larger disparities: what is at x on the left is at x - d on the right, whatever the stretch."""
    column = torch.arange(96.0)
    scene = (128 + 100 * torch.sin(column / 9)).round().to(torch.uint8).expand(3, 40, 96)
    sample = make_sample(40, 90) | {"left_image": scene[..., :90], "right_image": scene[..., 6:]}
    sample["disparity"] = torch.full((1, 40, 90), 6.0)
    for size in ((40, 135), (60, 90), (44, 120)):
        result = rescale_pair(sample, size)
        d = result["disparity"].unique().item()
        assert d == pytest.approx(6 * size[1] / 90)
        left, right = (result[name][0, 7].float() for name in ("left_image", "right_image"))
        x = torch.arange(20, size[1] - 5)
        place = x - d
        low = place.floor().long()
        found = right[low] + (place - low) * (right[low + 1] - right[low])
        torch.testing.assert_close(found, left[x], atol=1.5, rtol=0)


def draw_factors(count: int) -> torch.Tensor:
    """Exponents of 2 of both axes."""
    sizes = torch.tensor([draw_size(6000, 8000, (30, 40), generator=step_generator(0, i, 0)) for i in range(count)])
    return torch.log2(sizes / torch.tensor([6000.0, 8000.0]))


def test_drawn_scales_are_those_of_the_official_code(monkeypatch):
    fix(monkeypatch, STRETCH_PROBABILITY=0.0)
    height, width = draw_factors(1000).unbind(1)
    torch.testing.assert_close(height, width, atol=3e-4, rtol=0)
    assert -0.201 < height.min() < -0.19 and 0.39 < height.max() < 0.401
    assert height.mean().item() == pytest.approx(0.1, abs=0.02)


def test_four_in_five_are_stretched_on_each_axis():
    height, width = draw_factors(1000).unbind(1)
    stretched = (height - width).abs() > 3e-4
    assert stretched.float().mean().item() == pytest.approx(0.8, abs=0.05)
    assert 0.35 < (height - width).max() < 0.401 and -0.401 < (height - width).min() < -0.35
    assert height.min() >= -0.401 and height.max() <= 0.601 and height.max() > 0.5


def test_small_samples_are_scaled_until_the_crop_fits():
    sizes = {draw_size(33, 90, (64, 96), generator=step_generator(0, i, 0)) for i in range(50)}
    assert min(height for height, _ in sizes) == 65 and min(width for _, width in sizes) == round(90 * 65 / 33)


def test_windows_lie_inside_and_reach_every_border():
    windows = [draw_window(20, 34, (10, 30), generator=step_generator(0, i, 0)) for i in range(400)]
    assert {w.top for w in windows} == set(range(2, 9)) and {w.left for w in windows} == set(range(5))
    assert {w.right_top - w.top for w in windows} == {-2, -1, 0, 1, 2}
    assert {w.right_top for w in windows} == set(range(11))


@pytest.mark.parametrize(("height", "reach"), [(11, 0), (12, 1), (13, 1), (14, 2)])
def test_a_tight_sample_leaves_less_room_for_the_vertical_shift(height, reach):
    windows = [draw_window(height, 31, (10, 30), generator=step_generator(0, i, 0)) for i in range(100)]
    assert max(abs(w.right_top - w.top) for w in windows) == reach
    assert all(0 <= w.right_top <= height - 10 for w in windows)


def test_only_the_right_picture_of_the_network_is_shifted():
    sample = make_sample() | {"clean_right_image": make_sample()["right_image"]}
    result = crop_pair(sample, Window(top=4, left=9, right_top=6), (20, 30))
    assert torch.equal(result["right_image"], sample["right_image"][:, 6:26, 9:39])
    for name in ("left_image", "clean_right_image", "disparity", *MASKS):
        assert torch.equal(result[name], sample[name][:, 4:24, 9:39]), name


def test_a_window_outside_is_refused():
    with pytest.raises(ValueError, match="`top`, `left` and `size` must give a window inside 60x90; got 4, 70"):
        crop_pair(make_sample(), Window(4, 70, 4), (20, 30))


# --- together ---


def test_a_sample_is_augmented_by_its_generator_and_not_changed():
    sample = make_sample()
    before, state = copy_of(sample), torch.get_rng_state()
    results = [augment_pair(sample, (32, 48), generator=step_generator(seed, 0, 0)) for seed in (1, 1, 2)]
    assert_equal_samples(results[0], results[1])
    assert not torch.equal(results[0]["left_image"], results[2]["left_image"])
    assert_equal_samples(sample, before)
    assert torch.equal(torch.get_rng_state(), state)
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in results[0].items() if name != "name"}
    pictures = ("left_image", "right_image", "clean_left_image", "clean_right_image")
    assert shapes == {
        **dict.fromkeys(pictures, (torch.uint8, (3, 32, 48))),
        **dict.fromkeys(("disparity", "confidence"), (torch.float32, (1, 32, 48))),
        **dict.fromkeys(MASKS, (torch.bool, (1, 32, 48))),
    }
    assert results[0]["name"] == "a"


def test_disparity_belongs_to_the_clean_pair_after_every_augmentation():
    """Smooth pictures of a slanted plane: the clean right picture, warped, is the clean left one."""
    column = torch.arange(160.0)
    wave = 128 + 60 * torch.sin(column / 11) + 40 * torch.cos(column / 23)
    left = wave.round().to(torch.uint8).expand(3, 70, 160)
    d = 3 + 9 * column / 160  # x - d on the right shows column x of the left
    right = torch.from_numpy(np.interp(column, column - d, wave)).round().to(torch.uint8).expand(3, 70, 160)
    sample = make_sample(70, 160) | {"left_image": left, "right_image": right}
    sample["disparity"] = d.expand(1, 70, 160).contiguous()
    for i in range(8):
        result = augment_pair(sample, (48, 64), generator=step_generator(5, i, 0))
        found, truth = result["clean_right_image"][0, 20].float(), result["clean_left_image"][0, 20].float()
        disparity = result["disparity"][0, 20]
        x = torch.arange(24, 60)
        low = (x - disparity[x]).floor().long()
        share = x - disparity[x] - low
        torch.testing.assert_close(found[low] + share * (found[low + 1] - found[low]), truth[x], atol=3.0, rtol=0)
        assert not torch.equal(result["right_image"], result["clean_right_image"])


def test_without_disturbance_the_network_sees_the_clean_pair_but_for_the_vertical_shift(monkeypatch):
    without_disturbance(monkeypatch)
    shifts = set()
    for i in range(20):
        result = augment_pair(make_sample(), (32, 48), generator=step_generator(0, i, 0))
        assert torch.equal(result["left_image"], result["clean_left_image"])
        seen, clean = result["right_image"], result["clean_right_image"]
        for shift in (-2, -1, 0, 1, 2):
            if torch.equal(seen[:, max(0, -shift) : 32 - max(0, shift)], clean[:, max(0, shift) : 32 + min(0, shift)]):
                shifts.add(shift)
    assert shifts == {-2, -1, 0, 1, 2}


def test_a_clean_pair_that_is_there_already_is_kept(monkeypatch):
    fix(monkeypatch, SCALE_EXPONENT=(0.0, 0.0), STRETCH_PROBABILITY=0.0)
    sample = make_sample(33, 49)
    sample |= {f"clean_{name}": 255 - sample[name] for name in ("left_image", "right_image")}
    result = augment_pair(sample, (32, 48), generator=step_generator(0, 0, 0))
    views = [(255 - sample["left_image"])[:, t : t + 32, x : x + 48] for t in (0, 1) for x in (0, 1)]
    assert any(torch.equal(result["clean_left_image"], view) for view in views)


def test_tensors_of_different_sizes_are_refused():
    sample = make_sample() | {"confidence": torch.ones(1, 60, 89)}
    with pytest.raises(ValueError, match=r"size of `left_image`, \[60, 90\]; got {'confidence': \[1, 60, 89\]}"):
        augment_pair(sample, (32, 48), generator=step_generator(0, 0, 0))
