# SPDX-License-Identifier: Apache-2.0
"""Tests of the forward warp: known answers, the slow loop, the official masks, the Motorcycle pair, odd input."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

import pipeline_zerostereo
from pipeline_zerostereo import WarpResult, forward_warp
from tests.golden_files import WARP_CASES, image_to_tensor, load_golden, load_motorcycle, map_to_tensor
from tests.reference import forward_warp_loop
from tests.test_sharpen_disparity import NoFloat64

INFINITY = float("inf")
KINDS = ("whole", "half", "quarter", "fraction", "steps", "unknown", "sub_pixel", "wide")


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, None, None]


def mask(pattern: str) -> torch.Tensor:
    """Mask of one row from text: "#" is True."""
    return torch.tensor([letter == "#" for letter in pattern])[None, None, None]


def random_disparity(kind: str, shape, generator: torch.Generator) -> torch.Tensor:
    """Draw disparities of one kind; whole, half and steps are full of ties."""
    width = shape[-1]
    uniform = torch.rand(shape, generator=generator)
    if kind in ("whole", "half", "quarter"):
        parts = {"whole": 1, "half": 2, "quarter": 4}[kind]
        return (uniform * parts * (width / 2 + 2)).floor() / parts
    if kind == "steps":
        level = torch.randint(0, 9, (*shape[:-1], -(-width // 4)), generator=generator) / 2
        return level.repeat_interleave(4, dim=-1)[..., :width].contiguous()
    if kind == "unknown":
        disparity = uniform * width / 2
        which = torch.rand(shape, generator=generator)
        return disparity.masked_fill(which < 0.2, INFINITY).masked_fill(which > 0.9, float("nan"))
    return {"fraction": uniform * width / 2, "sub_pixel": uniform, "wide": uniform * 3 * width}[kind]


def random_case(kind: str, seed: int, batch=2, channels=3, height=4, width=13) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, channels, height, width, generator=generator)
    return image, random_disparity(kind, (batch, 1, height, width), generator)


def assert_equals_loop(image: torch.Tensor, disparity: torch.Tensor, atol: float = 1e-5) -> None:
    result = forward_warp(image, disparity)
    for index in range(image.shape[0]):
        expected = forward_warp_loop(image[index].numpy(), disparity[index, 0].numpy())
        assert np.array_equal(result.right_hole_mask[index, 0].numpy(), expected.right_hole_mask)
        assert np.array_equal(result.left_visible_mask[index, 0].numpy(), expected.left_visible_mask)
        assert np.array_equal(result.right_disparity[index, 0].numpy(), expected.right_disparity.astype(np.float32))
        np.testing.assert_allclose(result.right_image[index].numpy(), expected.right_image, rtol=0, atol=atol)


def assert_same(first: WarpResult, second: WarpResult) -> None:
    for name, one, other in zip(WarpResult._fields, first, second, strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


# Known answers


def test_disparity_moves_pixels_left():
    image = torch.full((1, 1, 1, 11), 0.25)
    image[..., 7] = 1.0
    disparity = torch.zeros(1, 1, 1, 11)
    disparity[..., 7] = 3.0
    result = forward_warp(image, disparity)
    assert torch.equal(result.right_image, row(0.25, 0.25, 0.25, 0.25, 1, 0.25, 0.25, 0, 0.25, 0.25, 0.25))
    assert torch.equal(result.right_hole_mask, mask(".......#..."))
    assert torch.equal(result.left_visible_mask, mask("####.######"))
    assert torch.equal(result.right_disparity, row(0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0))


def test_half_pixels_cover_two_columns_and_are_sampled_backwards():
    image = row(10, 20, 40, 80, 160, 320)
    result = forward_warp(image, torch.full((1, 1, 1, 6), 2.5))
    # Column 3 samples the left image at 5.5, beyond its last column.
    assert torch.equal(result.right_image, row(60, 120, 240, 320, 0, 0))
    assert torch.equal(result.right_hole_mask, mask("....##"))
    assert torch.equal(result.left_visible_mask, mask("..####"))
    assert torch.equal(result.right_disparity, row(2.5, 2.5, 2.5, 2.5, 0, 0))


def test_the_nearest_surface_wins():
    #            column: 0  1  2  3  4   5   6  7
    image = row(10, 20, 30, 40, 50, 60, 70, 80)
    result = forward_warp(image, row(0, 0, 0, 0, 2, 4, 0, 0))  # columns 4 and 5 land on 2 and 1
    assert torch.equal(result.right_image, row(10, 60, 50, 40, 0, 0, 70, 80))
    assert torch.equal(result.right_disparity, row(0, 4, 2, 0, 0, 0, 0, 0))
    assert torch.equal(result.left_visible_mask, mask("#..#####"))


def test_the_next_column_never_hides_a_pixel():
    image = row(10, 20, 30, 40)
    result = forward_warp(image, row(0, 0, 1, 0))  # column 2 lands on 1, where column 1 is
    assert torch.equal(result.left_visible_mask, mask("####"))
    assert torch.equal(result.right_image, row(10, 30, 0, 40))


def test_a_half_covered_pixel_is_visible():
    image = row(10, 20, 30, 40, 50, 60)
    result = forward_warp(image, row(0, 0, 0.5, 2.0, 0, 0))  # column 2 lands on 1 and 2; column 3 lands on 1
    assert result.left_visible_mask[0, 0, 0, 2]
    half_covered = forward_warp(image, row(0, 0, 0.5, 0, 3.0, 0))  # column 4 covers 1, not 2
    assert half_covered.left_visible_mask[0, 0, 0, 2]
    covered = forward_warp(image, row(0, 0, 0.5, 0, 2.5, 0))  # column 4 covers 1 and 2
    assert not covered.left_visible_mask[0, 0, 0, 2]


def test_column_0_keeps_the_target_that_is_inside():
    image = row(10, 20, 30, 40, 50)
    result = forward_warp(image, row(0.5, 3, 3, 3, 3))  # column 0 lands between -1 and 0
    assert torch.equal(result.right_hole_mask, mask("..###"))
    assert torch.equal(result.right_image[..., :2], row(40, 50))  # column 3, disparity 3, hides it
    assert torch.equal(result.left_visible_mask, mask("...##"))  # column 0 is hidden by column 3
    alone = forward_warp(image, row(0.5, INFINITY, INFINITY, INFINITY, INFINITY))
    assert torch.equal(alone.right_hole_mask, mask(".####"))
    assert torch.equal(alone.right_image, row(15, 0, 0, 0, 0))
    assert torch.equal(alone.left_visible_mask, mask("#...."))
    gone = forward_warp(image, row(1.0, INFINITY, INFINITY, INFINITY, INFINITY))
    assert gone.right_hole_mask.all()
    assert not gone.left_visible_mask.any()


def test_an_object_leaves_a_hole_on_its_right():
    disparity = row(1, 1, 1, 1, 1, 1, 4, 4, 4, 1, 1, 1)
    result = forward_warp(torch.rand(1, 3, 1, 12, generator=torch.Generator().manual_seed(0)), disparity)
    assert torch.equal(result.right_hole_mask, mask(".....###...#"))
    assert torch.equal(result.left_visible_mask, mask(".##...######"))


# The slow loop


@pytest.mark.parametrize("kind", KINDS)
def test_warp_equals_the_loop_on_random_images(kind):
    """25 images of each of 8 kinds."""
    sizes = [(1, 1), (3, 1), (1, 2), (2, 3), (1, 5), (3, 4), (2, 7), (3, 13), (2, 20), (3, 24)]
    for seed in range(25):
        height, width = sizes[seed % len(sizes)]
        channels = 1 + seed % 4
        assert_equals_loop(*random_case(kind, 100 + seed, 1, channels, height, width))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_one_by_one(kind):
    image, disparity = random_case(kind, 7, batch=3, channels=2)
    result = forward_warp(image, disparity)
    assert result.right_image.shape == (3, 2, 4, 13)
    assert all(one.shape == (3, 1, 4, 13) for one in result[1:])
    for index in range(3):
        one = forward_warp(image[index : index + 1], disparity[index : index + 1])
        assert_same(one, WarpResult(*(part[index : index + 1] for part in result)))


# Official masks


def places_above_0(disparity: np.ndarray) -> np.ndarray:
    return np.arange(disparity.shape[1]) - disparity.astype(np.float64) > 0


@pytest.mark.parametrize("case", WARP_CASES)
def test_masks_equal_the_official_ones_but_for_column_0(case):
    golden = {key.split("__")[1]: array for key, array in load_golden("warp").items() if key.startswith(f"{case}__")}
    result = forward_warp(image_to_tensor(golden["image"]), map_to_tensor(golden["disp"]))
    hole, visible = result.right_hole_mask[0, 0].numpy(), result.left_visible_mask[0, 0].numpy()
    assert np.array_equal(hole[:, 1:], golden["hole"][:, 1:])
    inside = places_above_0(golden["disp"])
    assert np.array_equal(visible[inside], golden["nocc"][inside])
    if golden["disp"].size < 3000:  # our own rule at column 0 is the loop's
        assert_equals_loop(image_to_tensor(golden["image"]), map_to_tensor(golden["disp"]), atol=1e-2)


@pytest.mark.parametrize("case", ["const3", "random_int", "inf_and_zero_patch"])
def test_where_we_differ_at_column_0(case):
    """Officially an occluded pixel is painted there and never inpainted; here column 0 is a hole if nothing lands."""
    golden = {key.split("__")[1]: array for key, array in load_golden("warp").items() if key.startswith(f"{case}__")}
    hole = forward_warp(image_to_tensor(golden["image"]), map_to_tensor(golden["disp"])).right_hole_mask[0, 0, :, 0]
    places = np.arange(golden["disp"].shape[1]) - golden["disp"]
    lands = ((places > -1) & (places < 1)).any(axis=1)
    assert np.array_equal(hole.numpy(), ~lands)
    assert not golden["hole"][:, 0].any()


@pytest.mark.parametrize("case", ["zero", "const3", "random_int"])
def test_colours_of_whole_disparities_equal_the_official_ones(case):
    golden = {key.split("__")[1]: array for key, array in load_golden("warp").items() if key.startswith(f"{case}__")}
    image = forward_warp(image_to_tensor(golden["image"]), map_to_tensor(golden["disp"])).right_image
    np.testing.assert_allclose(image[0, :, :, 1:].permute(1, 2, 0), golden["warped"][:, 1:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["0", "0int", "1", "1int"])
def test_visible_mask_equals_the_official_one(name):
    golden = load_golden("nocc")
    places = golden[f"s{name}"]
    disparity = map_to_tensor(np.arange(places.shape[1]) - places)
    visible = forward_warp(torch.zeros_like(disparity), disparity).left_visible_mask[0, 0].numpy()
    assert np.array_equal(visible[places > 0], golden[f"m{name}"][places > 0])
    leaves = places <= -1
    assert not visible[leaves].any()


# Motorcycle


@pytest.fixture(scope="module")
def motorcycle_warp():
    pair = load_motorcycle()
    return pair, forward_warp(pair.left_image, pair.disparity)


def test_motorcycle_masks_equal_the_official_ones(motorcycle_warp):
    pair, result = motorcycle_warp
    golden = load_golden("motorcycle")
    height, width = golden["shape"]
    hole, visible = (
        np.unpackbits(golden[f"{name}_packed"])[: height * width].reshape(height, width).astype(bool)
        for name in ("hole", "nocc")
    )
    assert np.array_equal(result.right_hole_mask[0, 0, :, 1:].numpy(), hole[:, 1:])
    inside = places_above_0(pair.disparity[0, 0].numpy())
    assert np.array_equal(result.left_visible_mask[0, 0].numpy()[inside], visible[inside])


def test_motorcycle_is_closer_to_the_true_right_image_than_the_official_warp(motorcycle_warp):
    """Known pixels without column 0; officially 27.165 dB and .9459."""
    pair, result = motorcycle_warp
    known = ~result.right_hole_mask
    known[..., 0] = False
    true_image = pair.right_image
    error = (result.right_image - true_image)[known.expand_as(true_image)]
    psnr = 10 * math.log10(255**2 / error.double().square().mean().item())
    assert psnr >= 27.9
    whole = torch.where(known, result.right_image, true_image)  # holes hold the true image before SSIM looks around
    _, similarity = structural_similarity(
        true_image[0].permute(1, 2, 0).numpy(),
        whole[0].permute(1, 2, 0).numpy(),
        data_range=255,
        channel_axis=2,
        full=True,
    )
    assert similarity[known[0, 0].numpy()].mean() >= 0.950


# Degenerate disparities


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(5, 9), (3, 1), (1, 6)])
def test_zero_disparity_returns_the_image_bit_for_bit(dtype, size):
    image = (torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 600 - 200).to(dtype)
    result = forward_warp(image, torch.zeros(2, 1, *size))
    assert result.right_image.dtype == dtype
    assert torch.equal(result.right_image, image)
    assert not result.right_hole_mask.any()
    assert result.left_visible_mask.all()
    assert torch.equal(result.right_disparity, torch.zeros(2, 1, *size))


@pytest.mark.parametrize("value", [1e-20, 1e-14])
def test_a_vanishing_disparity_is_whole(value):
    image, _ = random_case("whole", 2)
    result = forward_warp(image, torch.full((2, 1, 4, 13), value))
    assert torch.equal(result.right_image, image)
    assert result.left_visible_mask.all()
    assert not result.right_hole_mask.any()


@pytest.mark.parametrize("value", [INFINITY, float("nan")])
def test_unknown_disparity_drops_the_pixel(value):
    image = row(10, 20, 30, 40, 50)
    result = forward_warp(image, row(0, value, 0, value, 0))
    assert torch.equal(result.right_image, row(10, 0, 30, 0, 50))
    assert torch.equal(result.right_hole_mask, mask(".#.#."))
    assert torch.equal(result.left_visible_mask, mask("#.#.#"))
    assert torch.equal(result.right_disparity, torch.zeros(1, 1, 1, 5))


@pytest.mark.parametrize("value", [INFINITY, float("nan"), 13.0, 100.0, 2.0**31, 3e38])
def test_where_everything_leaves_the_frame_all_is_hole(value):
    image, _ = random_case("whole", 3)
    result = forward_warp(image, torch.full((2, 1, 4, 13), value))
    assert result.right_hole_mask.all()
    assert not result.left_visible_mask.any()
    assert torch.equal(result.right_image, torch.zeros_like(image))
    assert torch.equal(result.right_disparity, torch.zeros(2, 1, 4, 13))


def test_one_column():
    image = torch.tensor([10.0, 20.0, 30.0, 40.0]).reshape(1, 1, 4, 1)
    result = forward_warp(image, torch.tensor([0.0, 0.75, 1.0, INFINITY]).reshape(1, 1, 4, 1))
    assert result.right_image.flatten().tolist() == [10, 20, 0, 0]
    assert result.right_hole_mask.flatten().tolist() == [False, False, True, True]
    assert result.left_visible_mask.flatten().tolist() == [True, True, False, False]
    assert result.right_disparity.flatten().tolist() == [0, 0.75, 0, 0]


def test_large_disparities_stay_exact():
    """At 4096 columns x - d in float32 would land isolated pixels a column off; whole targets come from floor(d)."""
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(1, 1, 1, 4096, generator=generator)
    hundreds = torch.randint(1, 40, (1, 1, 1, 4096), generator=generator) * 100
    disparity = hundreds + (torch.rand(1, 1, 1, 4096, generator=generator) - 0.5) * 4e-4  # just below and above
    result = forward_warp(image, disparity)
    exact = np.arange(4096) - disparity[0, 0, 0].double().numpy()
    covered = np.zeros(4096, dtype=bool)
    for target in np.concatenate([np.floor(exact), np.ceil(exact)]).astype(int):
        if target >= 0:
            covered[target] = True
    assert np.array_equal(result.right_hole_mask[0, 0, 0].numpy(), ~covered)


# How it is done


@pytest.mark.parametrize("chunk_pixels", [1, 80, 120, 1000])  # 1, 2, 3 and all of 7 rows of 3 x 13 pixels
def test_row_chunks_cannot_be_seen(monkeypatch, chunk_pixels):
    image, disparity = random_case("fraction", 5, batch=3, height=7)
    whole = forward_warp(image, disparity)
    monkeypatch.setattr(pipeline_zerostereo, "WARP_CHUNK_PIXELS", chunk_pixels)
    assert_same(forward_warp(image, disparity), whole)


def test_strided_tensors_are_taken_and_left_alone():
    image, disparity = random_case("fraction", 6, height=8, width=26)
    before = image.clone(), disparity.clone()
    strided_image, strided_disparity = image[:, :, ::2, 1::2], disparity[:, :, ::2, 1::2]
    result = forward_warp(strided_image, strided_disparity)
    assert_same(result, forward_warp(strided_image.contiguous(), strided_disparity.contiguous()))
    transposed = [one.transpose(2, 3) for one in (image, disparity)]
    assert_same(forward_warp(*transposed), forward_warp(*(one.contiguous() for one in transposed)))
    channels_last = image.to(memory_format=torch.channels_last)
    assert_same(forward_warp(channels_last, disparity), forward_warp(image, disparity))
    expanded = disparity[:1].expand(2, -1, -1, -1)
    assert_same(forward_warp(image, expanded), forward_warp(image, expanded.contiguous()))
    assert torch.equal(image, before[0])
    assert torch.equal(disparity, before[1])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-5)])
def test_image_dtype_is_kept(dtype, atol):
    image, disparity = random_case("fraction", 8)
    result, full = forward_warp(image.to(dtype), disparity), forward_warp(image, disparity)
    assert result.right_image.dtype == dtype
    torch.testing.assert_close(result.right_image.float(), full.right_image, rtol=0, atol=atol)
    assert_same(WarpResult(full.right_image, *result[1:]), full)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_maps_are_float32_and_masks_bool(dtype):
    image, disparity = random_case("quarter", 9)  # quarters are exact in half precision
    result = forward_warp(image, disparity.to(dtype))
    assert result.right_disparity.dtype == torch.float32
    assert result.right_hole_mask.dtype == result.left_visible_mask.dtype == torch.bool
    assert_same(result, forward_warp(image, disparity))


def test_no_float64_inside():
    case = random_case("unknown", 10)
    with NoFloat64():
        forward_warp(*case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_equals_cpu(kind):
    image, disparity = random_case(kind, 11, height=64, width=500)
    result, expected = forward_warp(image.cuda(), disparity.cuda()), forward_warp(image, disparity)
    assert_same(WarpResult(expected.right_image, *(one.cpu() for one in result[1:])), expected)
    torch.testing.assert_close(result.right_image.cpu(), expected.right_image, rtol=0, atol=1e-4)


# Errors


@pytest.mark.parametrize("value", [-0.5, -1e-6, -40.0])
def test_disparity_must_not_be_negative(value):
    disparity = torch.ones(2, 1, 3, 5)
    disparity[1, 0, 2, 4] = value
    disparity[0, 0, 0, 0] = float("nan")  # does not hide the negative one
    with pytest.raises(ValueError, match="`disparity` must.*(negative|>= 0).*got"):
        forward_warp(torch.zeros(2, 3, 3, 5), disparity)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 3, 5)])
def test_disparity_must_have_four_axes_and_one_channel(shape):
    with pytest.raises(ValueError, match=r"`disparity` must have shape \[B,1,H,W\].*got"):
        forward_warp(torch.zeros(2, 3, 3, 5), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 1, 4, 5), (2, 1, 3, 6)])
def test_image_and_disparity_must_agree(shape):
    with pytest.raises(ValueError, match=r"`left_image` must have.*B, H and W of `disparity`.*got \[2, 3, 3, 5\]"):
        forward_warp(torch.zeros(2, 3, 3, 5), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 5), (3, 3, 5)])
def test_image_must_have_four_axes(shape):
    with pytest.raises(ValueError, match=r"`left_image` must.*\[B,C,H,W\].*got"):
        forward_warp(torch.zeros(shape), torch.zeros(1, 1, 3, 5))


def test_devices_must_agree():
    with pytest.raises(ValueError, match="`disparity` must.*device.*got"):
        forward_warp(torch.zeros(2, 3, 3, 5), torch.zeros(2, 1, 3, 5, device="meta"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_image_and_disparity_must_be_floating(dtype):
    with pytest.raises(TypeError, match="`left_image` must be a float tensor; got torch"):
        forward_warp(torch.zeros((2, 3, 3, 5), dtype=dtype), torch.zeros(2, 1, 3, 5))
    with pytest.raises(TypeError, match="`disparity` must be a float tensor; got dtype torch"):
        forward_warp(torch.zeros(2, 3, 3, 5), torch.zeros((2, 1, 3, 5), dtype=dtype))


def test_image_must_be_a_tensor():
    with pytest.raises(TypeError, match="`left_image` must be a float tensor; got ndarray"):
        forward_warp(np.zeros((2, 3, 3, 5), dtype=np.float32), torch.zeros(2, 1, 3, 5))
