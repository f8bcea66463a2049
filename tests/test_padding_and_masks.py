# SPDX-License-Identifier: Apache-2.0
"""Tests of padding to a multiple and of the reduction of masks to latent size."""

import numpy as np
import pytest
import torch

from pipeline_zerostereo import pad_to_multiple, reduce_mask_to_latent, unpad
from tests.golden_files import load_golden, map_to_tensor
from tests.reference import reduce_mask_to_latent_loop


def test_border_is_repeated_and_the_larger_half_comes_last():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[None, None]
    padded, padding = pad_to_multiple(image, 5)
    assert (padding.left, padding.right, padding.top, padding.bottom) == (1, 2, 1, 1)
    assert padded[0, 0].tolist() == [
        [1, 1, 2, 2, 2],
        [1, 1, 2, 2, 2],
        [3, 3, 4, 4, 4],
        [5, 5, 6, 6, 6],
        [5, 5, 6, 6, 6],
    ]


@pytest.mark.parametrize("row", load_golden("mono_misc")["pads_h_w_div_left_right_top_bottom"].tolist())
def test_paddings_equal_the_official_ones(row):
    height, width, multiple, *expected = row
    padded, padding = pad_to_multiple(torch.zeros(1, 1, height, width), multiple)
    assert [padding.left, padding.right, padding.top, padding.bottom] == expected
    assert padded.shape == (1, 1, height + expected[2] + expected[3], width + expected[0] + expected[1])


@pytest.mark.parametrize("size", [(1, 1), (3, 11), (11, 3), (8, 16), (13, 7)])
@pytest.mark.parametrize("multiple", [1, 2, 8, 14])
def test_unpad_undoes_the_padding(size, multiple):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    padded, padding = pad_to_multiple(image, multiple)
    assert padded.shape[-2] % multiple == 0
    assert padded.shape[-1] % multiple == 0
    assert torch.equal(unpad(padded, padding), image)
    assert torch.equal(image, before)


def test_a_fitting_image_is_not_padded():
    image = torch.rand(2, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    padded, padding = pad_to_multiple(image, 8)
    assert tuple(padding) == (0, 0, 0, 0)
    assert torch.equal(padded, image)
    assert torch.equal(unpad(padded, padding), image)


def test_nearest_takes_the_top_left_pixel_of_each_cell():
    mask = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    mask[0, 0, 0, 2] = True  # top left of the second cell
    mask[0, 0, 3, 5] = True  # bottom right of the last cell
    assert reduce_mask_to_latent(mask, 2, "nearest")[0, 0].tolist() == [[False, True, False], [False, False, False]]
    assert reduce_mask_to_latent(mask, 2, "max")[0, 0].tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.parametrize("reduction", ["nearest", "max"])
@pytest.mark.parametrize(("factor", "size"), [(1, (3, 5)), (2, (4, 6)), (4, (4, 12)), (8, (16, 8))])
def test_reduction_equals_the_loop(reduction, factor, size):
    mask = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(factor)) < 0.2
    before = mask.clone()
    reduced = reduce_mask_to_latent(mask, factor, reduction)
    assert reduced.dtype == torch.bool
    assert reduced.shape == (3, 1, size[0] // factor, size[1] // factor)
    for index in range(3):
        expected = reduce_mask_to_latent_loop(mask[index, 0].numpy(), factor, reduction)
        assert np.array_equal(reduced[index, 0].numpy(), expected)
    assert torch.equal(mask, before)


@pytest.mark.parametrize("reduction", ["nearest", "max"])
def test_reduction_takes_strided_masks(reduction):
    wide = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(5)) < 0.2
    strided = wide[:, :, ::2, 1::2]
    assert torch.equal(
        reduce_mask_to_latent(strided, 4, reduction), reduce_mask_to_latent(strided.contiguous(), 4, reduction)
    )


@pytest.mark.parametrize("reduction", ["nearest", "max"])
@pytest.mark.parametrize("value", [False, True])
def test_uniform_masks_stay_uniform(reduction, value):
    mask = torch.full((2, 1, 8, 24), value)
    assert torch.equal(reduce_mask_to_latent(mask, 8, reduction), torch.full((2, 1, 1, 3), value))


def test_nearest_equals_the_official_reduction():
    golden = load_golden("stereogen_tiny")
    reduced = reduce_mask_to_latent(map_to_tensor(golden["mask"]), 8, "nearest")
    assert np.array_equal(reduced.numpy(), golden["mask_latent"] > 0.5)


def test_reduction_must_be_known():
    with pytest.raises(ValueError, match="`reduction` must be.*nearest.*max.*got"):
        reduce_mask_to_latent(torch.zeros(1, 1, 4, 4, dtype=torch.bool), 2, "mean")
