# SPDX-License-Identifier: Apache-2.0
"""Tests of the normalisation of inverse depth and of the agreement between image and mirror image."""

import numpy as np
import pytest
import torch

from pipeline_zerostereo import flip_consistency, normalize_inverse_depth
from tests.golden_files import load_golden
from tests.reference import flip_consistency_loop, normalize_inverse_depth_loop

SIZES = [(1, 1), (1, 9), (9, 1), (5, 7), (12, 3)]


def random_map(shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# normalize_inverse_depth


def test_smallest_becomes_0_and_largest_1():
    inverse_depth = torch.tensor([[2.0, 4.0, 3.0], [10.0, 2.0, 6.0]])[None, None]
    expected = torch.tensor([[0.0, 0.25, 0.125], [1.0, 0.0, 0.5]])[None, None]
    assert torch.equal(normalize_inverse_depth(inverse_depth), expected)


def test_every_image_has_its_own_range():
    inverse_depth = torch.tensor([[[[-1.0, 0.0, 3.0]]], [[[100.0, 104.0, 101.0]]]])
    expected = torch.tensor([[[[0.0, 0.25, 1.0]]], [[[0.0, 1.0, 0.25]]]])
    assert torch.equal(normalize_inverse_depth(inverse_depth), expected)


@pytest.mark.parametrize("value", [0.0, 7.5, -3.0])
def test_constant_map_becomes_zeros(value):
    inverse_depth = torch.full((2, 1, 3, 5), value)
    inverse_depth[1, 0, 2, 4] += 2.0  # only the first image is constant
    normalized = normalize_inverse_depth(inverse_depth)
    assert torch.equal(normalized[0], torch.zeros(1, 3, 5))
    assert normalized[1].max() == 1


@pytest.mark.parametrize("size", SIZES)
def test_normalisation_equals_the_loop(size):
    inverse_depth = random_map((3, 1, *size), seed=1) * 50 - 10
    normalized = normalize_inverse_depth(inverse_depth)
    expected = np.stack([normalize_inverse_depth_loop(one[0].numpy()) for one in inverse_depth])[:, None]
    np.testing.assert_allclose(normalized.numpy(), expected, rtol=0, atol=1e-6)
    assert normalized.min() >= 0
    assert normalized.max() <= 1


def test_normalisation_equals_the_official_one():
    golden = load_golden("confidence")
    for source, result in (("inverse_depth", "normalized"), ("flipped_back_inverse_depth", "normalized_flipped")):
        normalized = normalize_inverse_depth(torch.from_numpy(golden[source]))
        np.testing.assert_allclose(normalized.numpy(), golden[result], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_normalisation_is_float32(dtype):
    inverse_depth = random_map((2, 1, 4, 6), seed=2, dtype=dtype)
    normalized = normalize_inverse_depth(inverse_depth)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, normalize_inverse_depth(inverse_depth.float()), rtol=0, atol=1e-6)


def test_normalisation_takes_strided_maps_and_leaves_them_alone():
    wide = random_map((2, 1, 6, 10), seed=3)
    strided = wide[:, :, ::2, 1::3]
    before = wide.clone()
    assert torch.equal(normalize_inverse_depth(strided), normalize_inverse_depth(strided.contiguous()))
    assert torch.equal(wide, before)


def test_batch_of_maps_equals_one_by_one():
    inverse_depth = random_map((4, 1, 5, 7), seed=4)
    one_by_one = torch.cat([normalize_inverse_depth(one[None]) for one in inverse_depth])
    assert torch.equal(normalize_inverse_depth(inverse_depth), one_by_one)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inverse_depth_must_be_finite(value):
    inverse_depth = random_map((2, 1, 3, 4))
    inverse_depth[1, 0, 2, 1] = value
    with pytest.raises(ValueError, match="`inverse_depth` must be finite"):
        normalize_inverse_depth(inverse_depth)


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (2, 3, 4, 6), (1, 1, 1, 4, 6)])
def test_inverse_depth_must_have_four_axes_and_one_channel(shape):
    with pytest.raises(ValueError, match=r"`inverse_depth` must.*\[B,1,H,W\].*got"):
        normalize_inverse_depth(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_inverse_depth_must_be_floating(dtype):
    with pytest.raises(TypeError, match="`inverse_depth` must.*float.*got"):
        normalize_inverse_depth(torch.zeros((1, 1, 3, 4), dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 1, 4, 6), (1, 1, 0, 6)])
def test_inverse_depth_must_not_be_empty(shape):
    with pytest.raises(ValueError, match="`inverse_depth` must.*no empty axis; got"):
        normalize_inverse_depth(torch.zeros(shape))


def test_inverse_depth_must_be_a_tensor():
    with pytest.raises(TypeError, match="`inverse_depth` must be a torch.Tensor; got ndarray"):
        normalize_inverse_depth(np.zeros((1, 1, 3, 4), dtype=np.float32))


# flip_consistency


def test_agreement_and_confidence_of_known_maps():
    normalized = torch.tensor([[0.0, 0.5, 1.0]])[None, None]
    normalized_of_mirror = torch.tensor([[0.25, 0.5, 0.5]])[None, None]
    result = flip_consistency(normalized, normalized_of_mirror)
    assert torch.equal(result.agreement, torch.tensor([[0.75, 1.0, 0.5]])[None, None])
    assert torch.equal(result.confidence, torch.tensor([[0.5, 1.0, 0.0]])[None, None])


def test_order_of_the_record():
    confidence, agreement = flip_consistency(torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([[[[0.5, 0.5]]]]))
    assert torch.equal(confidence, torch.tensor([[[[0.0, 1.0]]]]))
    assert torch.equal(agreement, torch.tensor([[[[0.5, 1.0]]]]))


@pytest.mark.parametrize("difference", [0.0, 0.25])
def test_constant_agreement_gives_full_confidence(difference):
    normalized = torch.tensor([[[[0.0, 0.25, 0.5], [0.75, 0.5, 0.0]]], [[[0.0, 0.25, 0.5], [0.75, 0.5, 1.0]]]])
    normalized_of_mirror = normalized + difference
    normalized_of_mirror[1, 0, 0, 0] += 0.125  # only the first image agrees equally everywhere
    result = flip_consistency(normalized, normalized_of_mirror)
    assert torch.equal(result.confidence[0], torch.ones(1, 2, 3))
    assert torch.equal(result.agreement[0], torch.full((1, 2, 3), 1 - difference))
    assert result.confidence[1].min() == 0
    assert result.confidence[1].max() == 1


def test_symmetric_image_agrees_with_its_mirror():
    half = random_map((1, 1, 5, 4), seed=5)
    normalized = normalize_inverse_depth(torch.cat([half, half.flip(-1)], dim=-1))
    result = flip_consistency(normalized, normalized.flip(-1))
    assert torch.equal(result.agreement, torch.ones(1, 1, 5, 8))
    assert torch.equal(result.confidence, torch.ones(1, 1, 5, 8))


@pytest.mark.parametrize("size", SIZES)
def test_consistency_equals_the_loop(size):
    first, second = random_map((3, 1, *size), seed=6), random_map((3, 1, *size), seed=7)
    result = flip_consistency(first, second)
    for index in range(3):
        confidence, agreement = flip_consistency_loop(first[index, 0].numpy(), second[index, 0].numpy())
        np.testing.assert_allclose(result.confidence[index, 0].numpy(), confidence, rtol=0, atol=2e-6)
        np.testing.assert_allclose(result.agreement[index, 0].numpy(), agreement, rtol=0, atol=1e-6)
    assert result.confidence.dtype == result.agreement.dtype == torch.float32


def test_confidence_equals_the_official_one():
    golden = {name: torch.from_numpy(array) for name, array in load_golden("confidence").items()}
    result = flip_consistency(golden["normalized"], golden["normalized_flipped"])
    torch.testing.assert_close(result.confidence, golden["confidence"], rtol=0, atol=1e-6)
    whole_way = flip_consistency(
        normalize_inverse_depth(golden["inverse_depth"]), normalize_inverse_depth(golden["flipped_back_inverse_depth"])
    )
    torch.testing.assert_close(whole_way.confidence, golden["confidence"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [1, 2])
def test_depth_stage_of_a_whole_photo_equals_the_official_one(step):
    golden = load_golden("mono_misc")
    inverse, mirrored_back = (torch.from_numpy(golden[f"mono_scale{step}_{kind}"]) for kind in ("inv", "flip"))
    result = flip_consistency(normalize_inverse_depth(inverse), normalize_inverse_depth(mirrored_back))
    np.testing.assert_allclose(result.confidence.numpy(), golden[f"mono_scale{step}_conf"], rtol=0, atol=1e-5)


def test_consistency_batch_equals_one_by_one_and_leaves_arguments_alone():
    wide = random_map((2, 4, 1, 5, 14), seed=8)
    before = wide.clone()
    first, second = wide[0, ..., ::2], wide[1, ..., ::2]
    batch = flip_consistency(first, second)
    for index in range(4):
        one = flip_consistency(first[index : index + 1].contiguous(), second[index : index + 1].contiguous())
        assert torch.equal(one.confidence[0], batch.confidence[index])
        assert torch.equal(one.agreement[0], batch.agreement[index])
    assert torch.equal(wide, before)


def test_both_maps_must_have_one_shape():
    with pytest.raises(ValueError, match="`normalized_of_mirror` must.*shape.*got"):
        flip_consistency(torch.zeros(2, 1, 3, 5), torch.zeros(1, 1, 3, 5))


@pytest.mark.parametrize("argument", ["normalized", "normalized_of_mirror"])
def test_both_maps_are_checked(argument):
    good = {"normalized": torch.zeros(2, 1, 3, 5), "normalized_of_mirror": torch.zeros(2, 1, 3, 5)}
    with pytest.raises(TypeError, match=f"`{argument}` must be a float tensor; got dtype torch.int64"):
        flip_consistency(**{**good, argument: torch.zeros((2, 1, 3, 5), dtype=torch.int64)})
    with pytest.raises(ValueError, match=rf"`{argument}` must have shape \[B,1,H,W\].*got \[2, 3, 5\]"):
        flip_consistency(**{**good, argument: torch.zeros(2, 3, 5)})
    unknown = torch.zeros(2, 1, 3, 5)
    unknown[1, 0, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=f"`{argument}` must be finite; got 1 "):
        flip_consistency(**{**good, argument: unknown})
