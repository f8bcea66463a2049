# SPDX-License-Identifier: Apache-2.0
"""Tests of the edge sharpening of disparity maps."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline_zerostereo import sharpen_disparity
from tests.golden_files import load_golden, map_to_tensor
from tests.reference import dilate_with_cross_loop, sharpen_disparity_loop


def row_map(*values: float) -> torch.Tensor:
    """One map [1,1,3,W] of three equal rows."""
    return torch.tensor(values, dtype=torch.float32).expand(1, 1, 3, -1).clone()


def blocks(shape, seed, levels=40) -> torch.Tensor:
    """Random blocks of quarter-pixel disparities: flat parts, steps and thin things."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, height, width = shape
    coarse = torch.randint(0, 4 * levels, (batch, 1, -(-height // 4), -(-width // 5)), generator=generator) / 4
    disparity = coarse.repeat_interleave(4, dim=2).repeat_interleave(5, dim=3)[:, :, :height, :width].clone()
    noise = torch.randint(0, 4, shape, generator=generator) / 4
    thin = torch.rand(shape, generator=generator) < 0.02
    return torch.where(thin, disparity + 12, disparity) + noise


def slope(height: int, width: int) -> torch.Tensor:
    """Return a diagonal slope [H,W], steep enough that dilation leaves no calm corner: every pixel is an edge."""
    return torch.arange(width) * 20.0 + torch.arange(height)[:, None] * 30.0


def assert_within_sources(sharpened: torch.Tensor, reference) -> None:
    """Check a map [H,W]: every pixel carries, bit for bit, one of the values it may take."""
    for y, row in enumerate(reference.sources):
        for x, values in enumerate(row):
            assert float(sharpened[y, x]) in values, f"row {y} column {x}: {float(sharpened[y, x])} not in {values}"


def test_a_step_stays_sharp_and_its_near_side_grows_by_one_pixel():
    sharpened = sharpen_disparity(row_map(10, 10, 10, 10, 30, 30, 30, 30, 30))
    assert torch.equal(sharpened, row_map(10, 10, 10, 30, 30, 30, 30, 30, 30))


def test_a_soft_edge_becomes_a_step():
    sharpened = sharpen_disparity(row_map(10, 10, 10, 10, 16, 22, 28, 28, 28, 28))
    assert torch.equal(sharpened, row_map(10, 10, 10, 10, 28, 28, 28, 28, 28, 28))


def test_a_soft_edge_in_a_column_becomes_a_step():
    column = row_map(10, 10, 10, 10, 16, 22, 28, 28, 28, 28).transpose(2, 3)
    expected = row_map(10, 10, 10, 10, 28, 28, 28, 28, 28, 28).transpose(2, 3)
    assert torch.equal(sharpen_disparity(column), expected)


def test_threshold_is_in_pixels_and_steps_below_it_are_no_edges():
    soft = row_map(10, 10, 12, 14, 16, 16, 16)  # 2 px a column: magnitude at most 4 / sqrt(2) = 2.83
    assert torch.equal(sharpen_disparity(soft), row_map(10, 12, 14, 16, 16, 16, 16))
    sharpened = sharpen_disparity(soft, threshold=2.0)  # the first three columns and the next one change by more
    assert torch.equal(sharpened, row_map(10, 10, 16, 16, 16, 16, 16))


def test_a_single_pixel_grows_into_a_cross():
    disparity = torch.zeros(1, 1, 5, 7)
    disparity[0, 0, 1, 4] = 2.0
    dilated = torch.zeros(1, 1, 5, 7)
    dilated[0, 0, 1, 3:6] = dilated[0, 0, 0:3, 4] = 2.0
    assert torch.equal(sharpen_disparity(disparity), dilated)


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_sharpening_equals_the_official_one(case):
    golden = {key[8:]: array for key, array in load_golden("mono_misc").items() if key.startswith(f"sharp_{case}_")}
    sharpened = sharpen_disparity(map_to_tensor(golden["in"]))[0, 0].numpy()
    assert np.array_equal(sharpened[~golden["edge"]], golden["dilated"][~golden["edge"]])
    assert np.array_equal(sharpened[golden["unique"]], golden["out"][golden["unique"]].astype(np.float32))
    assert (sharpened >= golden["lo"]).all()
    assert (sharpened <= golden["hi"]).all()


def test_the_loop_equals_the_official_one():
    golden = {key[8:]: array for key, array in load_golden("mono_misc").items() if key.startswith("sharp_b_")}
    patch = slice(0, 24), slice(0, 40)  # dilation and edges are local, so a corner can be checked alone
    inner = slice(0, 22), slice(0, 38)
    reference = sharpen_disparity_loop(golden["in"][patch])
    assert np.array_equal(reference.dilated[inner], golden["dilated"][inner])
    assert np.array_equal(reference.edge[inner], golden["edge"][inner])
    np.testing.assert_allclose(reference.sobel[inner], golden["sobel"][inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (13, 1), (2, 9), (9, 2), (11, 17), (16, 23)])
@pytest.mark.parametrize("levels", [6, 40])
def test_sharpening_equals_the_loop(size, levels):
    disparity = blocks((3, 1, *size), seed=size[0] * size[1], levels=levels)
    sharpened = sharpen_disparity(disparity, threshold=3.01)  # no quarter-pixel map has a magnitude of just 3.01
    for index in range(3):
        reference = sharpen_disparity_loop(disparity[index, 0].numpy(), threshold=3.01)
        assert_within_sources(sharpened[index, 0], reference)


def test_edges_at_the_top_and_at_the_bottom_do_not_meet():
    """Neither across columns nor across images, however the pixels lie in memory."""
    rows = torch.cat([10 + 15 * torch.arange(8.0), 116 + torch.arange(6.0), torch.tensor([95.0, 75.0])])  # 7 + 2 edges
    noise = torch.randint(0, 5, (2, 1, 16, 9), generator=torch.Generator().manual_seed(12)) / 4
    for disparity in (rows[:, None] + noise, (rows[:, None] + noise).transpose(2, 3).contiguous()):
        sharpened = sharpen_disparity(disparity, threshold=3.01)
        for index in range(2):
            reference = sharpen_disparity_loop(disparity[index, 0].numpy(), threshold=3.01)
            assert reference.edge[0].any()
            assert reference.edge[-1].any()
            assert_within_sources(sharpened[index, 0], reference)


def test_far_sources_are_found():
    disparity = torch.arange(40.0).expand(30, 40) * 8 + torch.arange(30.0)[:, None] * 3  # edges everywhere ...
    disparity = disparity.clone()
    disparity[24:28, 2:5] = 40.0  # ... but on one small calm place, 40 columns from the far corner
    sharpened = sharpen_disparity(disparity[None, None])
    reference = sharpen_disparity_loop(disparity.numpy())
    assert 0 < (~reference.edge).sum() < 12
    assert_within_sources(sharpened[0, 0], reference)


def test_where_everything_is_an_edge_the_dilated_map_remains():
    disparity = slope(4, 9)
    reference = sharpen_disparity_loop(disparity.numpy())
    assert reference.edge.all()
    assert np.array_equal(sharpen_disparity(disparity[None, None])[0, 0].numpy(), reference.dilated)


@pytest.mark.parametrize("value", [0.0, 12.5])
def test_constant_map_is_unchanged(value):
    """No pixel is an edge, so nothing is searched for."""
    disparity = torch.full((2, 1, 5, 3), value)
    assert torch.equal(sharpen_disparity(disparity), disparity)


def test_images_of_a_batch_do_not_meet():
    first, last = blocks((2, 1, 11, 17), 1)[:, 0]
    batch = torch.stack([first, slope(11, 17), last, torch.zeros(11, 17)])
    batch = batch[:, None]
    sharpened = sharpen_disparity(batch)
    for index in range(4):
        assert torch.equal(sharpened[index], sharpen_disparity(batch[index : index + 1])[0])
    assert torch.equal(sharpened[3], batch[3])
    assert np.array_equal(sharpened[1, 0].numpy(), dilate_with_cross_loop(slope(11, 17).numpy()))  # no calm pixel


def test_sharpening_takes_strided_maps_and_leaves_them_alone():
    wide = blocks((2, 1, 22, 30), seed=9)
    before = wide.clone()
    transposed, expanded = wide.transpose(2, 3), wide[:1].expand(3, 1, 22, 30)
    for strided in (wide[:, :, ::2, 1::2], transposed, expanded):
        assert torch.equal(sharpen_disparity(strided), sharpen_disparity(strided.contiguous()))
    assert torch.equal(wide, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_result_is_float32(dtype):
    disparity = blocks((1, 1, 9, 14), seed=10)  # quarters below 64 are exact in half precision
    sharpened = sharpen_disparity(disparity.to(dtype))
    assert sharpened.dtype == torch.float32
    assert torch.equal(sharpened, sharpen_disparity(disparity))


class NoFloat64(TorchDispatchMode):
    """Raises when any operation makes a float64 tensor, which Apple GPUs do not have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else [result]
        assert not any(isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in outputs), func
        return result


def test_no_float64_inside():
    with NoFloat64():
        sharpen_disparity(blocks((2, 1, 9, 14), seed=11))


def test_disparity_must_be_floating():
    with pytest.raises(TypeError, match="`disparity` must be a float tensor; got dtype torch.int32"):
        sharpen_disparity(torch.ones((1, 1, 3, 5), dtype=torch.int32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_disparity_must_be_finite(value):
    disparity = torch.ones(2, 1, 3, 5)
    disparity[1, 0, 1, 3] = value
    with pytest.raises(ValueError, match="`disparity` must be finite"):
        sharpen_disparity(disparity)


def test_disparity_must_not_be_negative():
    disparity = torch.ones(2, 1, 3, 5)
    disparity[1, 0, 1, 3] = -0.25
    with pytest.raises(ValueError, match="`disparity` must.*(negative|>= 0).*got"):
        sharpen_disparity(disparity)


@pytest.mark.parametrize("threshold", [0.0, -3.0])
def test_threshold_must_be_positive(threshold):
    with pytest.raises(ValueError, match="`threshold` must be (positive|> 0|greater than 0).*got"):
        sharpen_disparity(torch.ones(1, 1, 3, 5), threshold=threshold)


@pytest.mark.parametrize("shape", [(3, 5), (1, 3, 5), (2, 3, 3, 5)])
def test_disparity_must_have_four_axes_and_one_channel(shape):
    with pytest.raises(ValueError, match=r"`disparity` must.*\[B,1,H,W\].*got"):
        sharpen_disparity(torch.ones(shape))
