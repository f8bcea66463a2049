# SPDX-License-Identifier: Apache-2.0
"""Tests of the random disparity scale: the mapping of two uniforms, and the drawing of them."""

import math
import random

import numpy as np
import pytest
import torch

from pipeline_zerostereo import sample_disparity_scale, scale_from_uniforms
from tests.golden_files import load_golden
from tests.reference import scale_from_uniforms_loop


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_segment_has_its_own_range():
    segment = torch.tensor([0.0, 0.05, 0.5, 0.5, 0.95, 1.0], dtype=torch.float64)
    position = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    scale = scale_from_uniforms(segment, position)
    expected = torch.tensor([0.0, 0.025, 0.05, 0.075, 0.175, 0.2], dtype=torch.float64)
    torch.testing.assert_close(scale, expected, rtol=0, atol=1e-12)


def test_segment_borders_belong_to_the_central_segment():
    segment = torch.tensor([0.1, 0.9], dtype=torch.float64)
    scale = scale_from_uniforms(segment, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(scale, torch.full((2,), 0.05, dtype=torch.float64), rtol=0, atol=1e-12)


def test_center_and_radius_move_the_segments():
    segment, position = torch.tensor([0.02, 0.5, 0.97]), torch.tensor([0.5, 0.25, 1.0])
    scale = scale_from_uniforms(segment, position, center=0.3, radius=0.08)
    torch.testing.assert_close(scale, torch.tensor([0.18, 0.26, 0.46]), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("center", "radius"), [(0.1, 0.05), (0.3, 0.08), (0.5, 0.25)])
def test_mapping_equals_the_loop(center, radius):
    draws = torch.rand(2, 300, generator=seeded(3), dtype=torch.float64)
    expected = scale_from_uniforms_loop(draws[0].tolist(), draws[1].tolist(), center, radius)
    scale = scale_from_uniforms(draws[0], draws[1], center=center, radius=radius)
    np.testing.assert_allclose(scale.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mapping_equals_the_official_draws(dtype):
    golden = load_golden("ads_distribution")
    uniforms = torch.from_numpy(golden["uniforms128_seed7"]).to(dtype)
    segment, position = uniforms[0::2], uniforms[1::2]  # every other number: strided input
    scale = scale_from_uniforms(segment, position)
    assert scale.dtype == dtype
    assert scale.shape == (64,)
    np.testing.assert_allclose(scale.double().numpy(), golden["first64_seed7"], rtol=0, atol=1e-7)


def test_mapping_leaves_its_arguments_alone():
    draws = torch.rand(2, 7, generator=seeded(4))
    before = draws.clone()
    scale_from_uniforms(draws[0], draws[1])
    assert torch.equal(draws, before)


@pytest.mark.parametrize("radius", [0.0, -0.05])
def test_radius_must_be_positive(radius):
    with pytest.raises(ValueError, match=r"`radius` must be (positive|> 0|greater than 0).*got"):
        scale_from_uniforms(torch.tensor([0.5]), torch.tensor([0.5]), radius=radius)


@pytest.mark.parametrize(("center", "radius"), [(0.1, 0.06), (0.9, 0.06), (0.5, 0.3)])
def test_all_scales_must_lie_between_0_and_1(center, radius):
    with pytest.raises(ValueError, match="`center`.*`?radius`?.*got"):
        scale_from_uniforms(torch.tensor([0.5]), torch.tensor([0.5]), center=center, radius=radius)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
@pytest.mark.parametrize("argument", ["segment_draw", "position_draw"])
def test_draws_must_lie_between_0_and_1(argument, value):
    draws = {"segment_draw": torch.tensor([0.5, 0.5]), "position_draw": torch.tensor([0.5, 0.5])}
    draws[argument] = torch.tensor([0.5, value])
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        scale_from_uniforms(**draws)


def test_draws_must_have_one_shape():
    with pytest.raises(ValueError, match="`position_draw`.*shape"):
        scale_from_uniforms(torch.rand(3), torch.rand(2))


def test_distribution_is_the_official_one():
    golden = load_golden("ads_distribution")
    draws = np.sort(sample_disparity_scale(100_000, generator=seeded(2)).double().numpy())
    official_cdf = np.interp(draws, golden["quantiles"], golden["quantile_levels"])
    steps = np.arange(draws.size + 1) / draws.size
    distance = max(np.abs(official_cdf - steps[1:]).max(), np.abs(official_cdf - steps[:-1]).max())
    assert distance < 0.01
    assert abs((draws < 0.05).mean() - 0.1) < 0.004
    assert abs((draws > 0.15).mean() - 0.1) < 0.004
    assert draws[0] >= 0
    assert draws[-1] <= 0.2 + 1e-6


def test_center_and_radius_reach_the_draws():
    draws = sample_disparity_scale(500, generator=seeded(5), center=0.4, radius=0.1)
    assert draws.min() >= 0.2 - 1e-6
    assert draws.max() <= 0.6 + 1e-6
    assert draws.max() - draws.min() > 0.3


def test_one_generator_gives_its_uniforms_in_turn():
    scale = sample_disparity_scale(5, generator=seeded(6))
    assert scale.shape == (5,)
    assert scale.dtype == torch.float32
    assert scale.device.type == "cpu"
    uniforms = torch.rand(5, 2, generator=seeded(6))  # segment, position, segment, ...
    assert torch.equal(scale, scale_from_uniforms(uniforms[:, 0], uniforms[:, 1]))


def test_batch_equals_one_by_one():
    generator = seeded(7)
    one_by_one = torch.cat([sample_disparity_scale(1, generator=generator) for _ in range(4)])
    assert torch.equal(sample_disparity_scale(4, generator=seeded(7)), one_by_one)


def test_list_of_generators_equals_one_by_one():
    one_by_one = torch.cat([sample_disparity_scale(1, generator=seeded(seed)) for seed in (11, 12, 13)])
    batch = sample_disparity_scale(3, generator=[seeded(seed) for seed in (11, 12, 13)])
    assert torch.equal(batch, one_by_one)
    assert len(set(batch.tolist())) == 3


def test_seed_decides():
    assert torch.equal(sample_disparity_scale(3, generator=seeded(1)), sample_disparity_scale(3, generator=seeded(1)))
    assert not torch.equal(
        sample_disparity_scale(3, generator=seeded(1)), sample_disparity_scale(3, generator=seeded(2))
    )


def test_global_random_state_is_untouched_when_a_generator_is_given():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    sample_disparity_scale(3, generator=seeded(1))
    sample_disparity_scale(2, generator=[seeded(1), seeded(2)])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_without_a_generator_the_global_torch_state_decides():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        first = sample_disparity_scale(3)
        torch.manual_seed(8)
        assert torch.equal(sample_disparity_scale(3), first)
        assert not torch.equal(sample_disparity_scale(3), first)


def test_generator_list_must_have_one_per_image():
    with pytest.raises(ValueError, match="`generator` must.*got"):
        sample_disparity_scale(3, generator=[seeded(1), seeded(2)])


@pytest.mark.parametrize("batch_size", [0, -2, 2.0])
def test_batch_must_hold_an_image(batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` must be an integer of at least 1; got {batch_size}"):
        sample_disparity_scale(batch_size)


def test_drawing_checks_the_distribution():
    with pytest.raises(ValueError, match="`center` must keep.*got center=0.1, radius=0.06"):
        sample_disparity_scale(2, generator=seeded(1), radius=0.06)


def test_not_a_number_is_no_distribution_and_a_list_no_draw():
    with pytest.raises(ValueError, match="`radius` must be positive; got nan"):
        sample_disparity_scale(1, radius=math.nan)
    with pytest.raises(ValueError, match="`center` must keep .*; got center=nan"):
        sample_disparity_scale(1, center=math.nan)
    draw = torch.tensor([0.5])
    with pytest.raises(TypeError, match="`segment_draw` must be a float tensor; got list"):
        scale_from_uniforms([0.5], draw)
    with pytest.raises(TypeError, match="`position_draw` must be a float tensor; got torch.int64"):
        scale_from_uniforms(draw, draw.long())
