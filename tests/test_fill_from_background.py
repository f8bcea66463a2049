# SPDX-License-Identifier: Apache-2.0
"""Tests of the filling of holes from the farther side of the row."""

import numpy as np
import pytest
import torch

from pipeline_zerostereo import fill_from_background, forward_warp
from tests.reference import fill_from_background_loop


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, None, None]


def holes(pattern: str) -> torch.Tensor:
    """Mask of one row from text: "#" is a hole, "." is known."""
    return torch.tensor([letter == "#" for letter in pattern])[None, None, None]


def random_case(seed: int, share: float, batch=3, channels=2, height=4, width=11):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, channels, height, width, generator=generator)
    hole_mask = torch.rand(batch, 1, height, width, generator=generator) < share
    disparity = torch.randint(0, 4, (batch, 1, height, width), generator=generator).float()  # many ties
    return image, hole_mask, disparity.masked_fill(hole_mask, 0.0)


@pytest.mark.parametrize(
    ("pattern", "disparity", "expected"),
    [
        ("..##..", (9, 2, 0, 0, 5, 1), (10, 20, 20, 20, 50, 60)),  # left is farther
        ("..##..", (1, 5, 0, 0, 2, 9), (10, 20, 50, 50, 50, 60)),  # right is farther
        ("..##..", (1, 3, 0, 0, 3, 9), (10, 20, 50, 50, 50, 60)),  # equal: right
        ("###...", (0, 0, 0, 7, 1, 1), (40, 40, 40, 40, 50, 60)),  # only the right side is known
        ("....##", (1, 1, 1, 7, 0, 0), (10, 20, 30, 40, 40, 40)),  # only the left side is known
        ("#.#.##", (0, 4, 0, 6, 0, 0), (20, 20, 20, 40, 40, 40)),
        ("######", (0, 0, 0, 0, 0, 0), (10, 20, 30, 40, 50, 60)),  # nothing known: nothing changes
        ("......", (1, 2, 3, 4, 5, 6), (10, 20, 30, 40, 50, 60)),
    ],
)
def test_known_rows(pattern, disparity, expected):
    filled = fill_from_background(row(10, 20, 30, 40, 50, 60), holes(pattern), row(*disparity))
    assert torch.equal(filled, row(*expected))


def test_rows_are_filled_alone():
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])[None, None]
    hole_mask = torch.tensor([[False, False, True], [True, True, True], [True, False, False]])[None, None]
    filled = fill_from_background(image, hole_mask, torch.zeros(1, 1, 3, 3))
    assert torch.equal(filled[0, 0], torch.tensor([[1.0, 2.0, 2.0], [4.0, 5.0, 6.0], [8.0, 8.0, 9.0]]))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [(4, 11), (1, 1), (5, 1), (1, 16)])
def test_filling_equals_the_loop(share, size):
    image, hole_mask, disparity = random_case(int(share * 10), share, height=size[0], width=size[1])
    filled = fill_from_background(image, hole_mask, disparity)
    for index in range(3):
        expected = fill_from_background_loop(
            image[index].numpy(), hole_mask[index, 0].numpy(), disparity[index, 0].numpy()
        )
        assert np.array_equal(filled[index].numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_known_pixels_stay_bit_for_bit(dtype):
    image, hole_mask, disparity = random_case(1, 0.4)
    image = (image * 300 - 100).to(dtype)
    filled = fill_from_background(image, hole_mask, disparity)
    assert filled.dtype == dtype
    known = ~hole_mask.expand_as(image)
    assert torch.equal(filled[known], image[known])


def test_filling_batch_equals_one_by_one():
    case = random_case(2, 0.5)
    filled = fill_from_background(*case)
    for index in range(3):
        assert torch.equal(fill_from_background(*(one[index : index + 1] for one in case))[0], filled[index])


def test_filling_takes_strided_tensors_and_leaves_them_alone():
    case = random_case(3, 0.5, height=6, width=22)
    before = [one.clone() for one in case]
    strided = [one[:, :, ::2, 1::2] for one in case]
    filled = fill_from_background(*strided)
    assert torch.equal(filled, fill_from_background(*(one.contiguous() for one in strided)))
    transposed = [one.transpose(2, 3) for one in case]
    filled = fill_from_background(*transposed)
    assert torch.equal(filled, fill_from_background(*(one.contiguous() for one in transposed)))
    assert all(torch.equal(one, copy) for one, copy in zip(case, before, strict=True))


def test_result_is_a_copy_even_without_holes():
    image, hole_mask, disparity = random_case(4, 0.0)
    filled = fill_from_background(image, hole_mask, disparity)
    assert torch.equal(filled, image)
    assert filled.data_ptr() != image.data_ptr()


def test_a_warped_object_uncovers_its_background():
    left_image = torch.full((1, 1, 1, 12), 0.25)
    left_image[..., 6:9] = 0.75
    disparity = torch.full((1, 1, 1, 12), 1.0)
    disparity[..., 6:9] = 4.0
    warp = forward_warp(left_image, disparity)
    filled = fill_from_background(warp.right_image, warp.right_hole_mask, warp.right_disparity)
    expected = torch.full((1, 1, 1, 12), 0.25)
    expected[..., 2:5] = 0.75
    assert torch.equal(filled, expected)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("right_hole_mask", (2, 1, 3, 4)),
        ("right_hole_mask", (1, 1, 3, 5)),
        ("right_disparity", (2, 1, 4, 5)),
        ("right_disparity", (2, 2, 3, 5)),
    ],
)
def test_mask_and_map_must_fit_the_image(argument, shape):
    arguments = {
        "right_image": torch.zeros(2, 3, 3, 5),
        "right_hole_mask": torch.zeros(2, 1, 3, 5, dtype=torch.bool),
        "right_disparity": torch.zeros(2, 1, 3, 5),
    }
    arguments[argument] = torch.zeros(shape, dtype=arguments[argument].dtype)
    with pytest.raises(ValueError, match=f"`{argument}` must.*got"):
        fill_from_background(**arguments)


def test_image_and_map_must_be_floating_and_the_mask_bool():
    image, hole_mask, disparity = random_case(5, 0.5)
    with pytest.raises(TypeError, match="`right_image` must be a float tensor; got torch.uint8"):
        fill_from_background(image.byte(), hole_mask, disparity)
    with pytest.raises(TypeError, match="`right_hole_mask` must be a bool tensor; got torch.float32"):
        fill_from_background(image, hole_mask.float(), disparity)
    with pytest.raises(TypeError, match="`right_disparity` must be a float tensor; got dtype torch.int64"):
        fill_from_background(image, hole_mask, disparity.long())


def test_image_and_mask_must_be_tensors():
    image, hole_mask, disparity = random_case(5, 0.5)
    with pytest.raises(TypeError, match="`right_image` must be a float tensor; got ndarray"):
        fill_from_background(image.numpy(), hole_mask, disparity)
    with pytest.raises(TypeError, match="`right_hole_mask` must be a bool tensor; got ndarray"):
        fill_from_background(image, hole_mask.numpy(), disparity)
