# SPDX-License-Identifier: Apache-2.0
"""The ablation's pairs: what its rows share, what differs, and what is left on disk."""

import pytest
import torch

from benchmarks import ablation_pairs
from benchmarks.ablation_pairs import (
    DISPARITY_STEPS,
    FILLS,
    STRENGTHS,
    UNIFORM_SCALES,
    Pairs,
    chunk_path,
    claimed,
    draw_scale,
    make_chunk,
    make_pairs,
    match_colors,
    pairs_are_made,
    read_pairs,
)
from benchmarks.small_training import DEFAULT_WEIGHTS
from pipeline_zerostereo import ZeroStereoPipeline, forward_warp, sample_disparity_scale
from training.run import step_generator

CHUNK = 2
SEED = 71


@pytest.fixture(scope="module")
def pipe():
    pipe = ZeroStereoPipeline.from_pretrained(DEFAULT_WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def small(monkeypatch):
    """Two pictures of 48x80 in a chunk."""
    for name, value in {"CHUNK": CHUNK, "HEIGHT": 48, "WIDTH": 80}.items():
        monkeypatch.setattr(ablation_pairs, name, value)


def fields(chunk, strength, fill):
    return Pairs(*(chunk[f"{strength}/{fill}/{name}"] for name in Pairs._fields))


def test_colors_are_matched_by_mean_and_spread_of_each_channel():
    image = torch.tensor([[0.2, 0.4], [0.1, 0.1], [0.5, 0.9]]).view(1, 3, 1, 2)
    like = torch.tensor([[0.5, 0.7], [0.3, 0.3], [0.8, 0.9]]).view(1, 3, 1, 2)
    expected = torch.tensor([[0.5, 0.7], [0.3, 0.3], [0.8, 0.9]]).view(1, 3, 1, 2)
    torch.testing.assert_close(match_colors(image, like), expected)


def test_matched_colors_stay_in_range():
    image = torch.tensor([0.0, 0.1, 0.1, 0.1, 0.1, 0.1]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    like = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    matched = match_colors(image, like)
    assert matched.min() == 0
    assert matched.max() <= 1


def test_uniform_strengths_fill_their_range_and_ads_is_the_pipelines():
    uniform = torch.tensor([draw_scale("uniform", SEED, i) for i in range(400)])
    lowest, highest = UNIFORM_SCALES
    assert uniform.min() >= lowest
    assert uniform.max() <= highest
    quarter = (highest - lowest) / 4
    counts = torch.histc(uniform, 4, lowest, highest)
    assert counts.min() > 70, quarter  # 100 expected
    assert draw_scale("ads", SEED, 9) == float(sample_disparity_scale(1, step_generator(SEED, 9, 0)))


@pytest.mark.slow
def test_ways_to_make_pairs_differ_in_what_they_compare_only(pipe, small):
    chunk = make_chunk(pipe, 3, SEED)
    assert len(chunk) == len(STRENGTHS) * len(FILLS) * len(Pairs._fields)
    for strength in STRENGTHS:
        background, inpainted = (fields(chunk, strength, fill) for fill in FILLS)
        for name in set(Pairs._fields) - {"right_image"}:
            assert torch.equal(getattr(background, name), getattr(inpainted, name)), name
        holes = background.right_hole_mask.expand(-1, 3, -1, -1)
        assert torch.equal(background.right_image[~holes], inpainted.right_image[~holes])
        assert (background.right_image[holes] != inpainted.right_image[holes]).float().mean() > 0.9
        views = forward_warp(background.left_image.float() / 255, background.disparity / DISPARITY_STEPS)
        assert torch.equal(views.right_hole_mask, background.right_hole_mask)
        assert torch.equal(views.left_visible_mask, background.left_visible_mask)
        known = (255 * views.right_image).round().byte()
        assert torch.equal(known[~holes], background.right_image[~holes])
    uniform, ads = (fields(chunk, strength, "inpainting") for strength in STRENGTHS)
    assert torch.equal(uniform.left_image, ads.left_image)
    assert torch.equal(uniform.confidence, ads.confidence)
    assert not torch.equal(uniform.disparity, ads.disparity)
    largest = uniform.disparity.amax((1, 2, 3)) / DISPARITY_STEPS
    expected = 80 * torch.tensor([draw_scale("uniform", SEED, 6 + i) for i in range(CHUNK)])
    torch.testing.assert_close(largest, expected, rtol=0, atol=1 / DISPARITY_STEPS)


@pytest.mark.slow
def test_chunks_are_made_once_and_read_in_order(pipe, small, tmp_path, monkeypatch):
    make_pairs(tmp_path, pipe, 3, SEED)
    assert pairs_are_made(tmp_path, 4, SEED)
    assert not pairs_are_made(tmp_path, 5, SEED)
    second = make_chunk(pipe, 1, SEED)
    pairs = read_pairs(tmp_path, 3, "ads", "background", SEED)
    assert [len(plane) for plane in pairs] == [3] * len(Pairs._fields)
    for plane, expected in zip(pairs, fields(second, "ads", "background"), strict=True):
        assert torch.equal(plane[2], expected[0])
    monkeypatch.setattr(ablation_pairs, "make_chunk", None)  # a call would fail
    make_pairs(tmp_path, pipe, 4, SEED)


def test_a_file_is_claimed_by_one_at_a_time(tmp_path):
    path = chunk_path(tmp_path, 0, SEED)
    with claimed(path) as first:
        assert first
        with claimed(path) as second:
            assert not second
    with claimed(path) as again:
        assert again
    assert not path.exists()
