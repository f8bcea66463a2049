# SPDX-License-Identifier: Apache-2.0
"""Photographs alone: which pixels the other eye cannot see, by hand, by a slow loop, and beside real warps."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline_zerostereo import (
    forward_warp,
    normalize_inverse_depth,
    sample_disparity_scale,
    sharpen_disparity,
)
from tests.tiny_components import make_photos, seeded
from training.inpainting_loss import encode_pair
from training.photograph_pairs import photograph_pair, see_from_other_eye, select_photograph_disparity
from training.procedural_scenes import SceneBatch, render_scenes, scene_generator


def block_photo() -> tuple[Tensor, Tensor]:
    """Columns that tell their number, background at 1 px, a block at columns 4 to 6 at 5 px; 2 rows of 16."""
    photo = (torch.arange(16.0) / 16).expand(1, 3, 2, 16).contiguous()
    disparity = torch.ones(1, 1, 2, 16)
    disparity[..., 4:7] = 5.0
    return photo, disparity


def columns(image: Tensor) -> list[int]:
    """Return which columns of `block_photo` the first row of a picture in [-1,1] shows."""
    return ((image[0, 0, 0] + 1) * 8).round().int().tolist()


# --- known answers ---


def test_the_left_eye_sees_the_block_to_the_right_and_what_is_left_of_it_is_its_own():
    photo, disparity = block_photo()
    eye = see_from_other_eye(photo, disparity)
    # the block at 4 ... 6 stands at 9 ... 11, over background 8 ... 10; column 0 is beyond the photograph
    seen = [0, 0, 1, 2, 3, 7, 7, 7, 7, 4, 5, 6, 11, 12, 13, 14]
    assert (eye.left_image[0, 1, 0] * 16).int().tolist() == seen
    only_left = eye.left_disparity[0, 0, 0].isnan()
    assert only_left.nonzero()[:, 0].tolist() == [0, 5, 6, 7]
    assert eye.left_disparity[0, 0, 0][~only_left].tolist() == [1, 1, 1, 1, 1, 5, 5, 5, 1, 1, 1, 1]


def test_holes_are_the_pixels_behind_the_block_and_beyond_the_frame():
    photo, disparity = block_photo()
    pair = photograph_pair(photo, disparity, "background")
    assert pair.right_hole_mask[0, 0, 1].nonzero()[:, 0].tolist() == [8, 9, 10, 15]
    assert torch.equal(pair.right_image, 2 * photo - 1)
    # holes show the farther neighbour, and on a tie the right one; the last column has only a left neighbour
    assert columns(pair.masked_image) == [0, 1, 2, 3, 4, 5, 6, 7, 11, 11, 11, 11, 12, 13, 14, 14]


def test_holes_can_be_grey():
    photo, disparity = block_photo()
    pair = photograph_pair(photo, disparity, "zero")
    assert torch.equal(pair.masked_image[..., [8, 9, 10, 15]], torch.zeros(1, 3, 2, 4))
    known = ~pair.right_hole_mask.expand_as(photo)
    assert torch.equal(pair.masked_image[known], pair.right_image[known])  # whole disparities resample nothing


def test_a_wide_block_hides_the_pixels_beside_it():
    photo, disparity = block_photo()
    disparity[..., 4:10] = 4.0  # six columns, shifted by three more than the background
    pair = photograph_pair(photo, disparity, "zero")
    assert pair.right_hole_mask[0, 0, 0].nonzero()[:, 0].tolist() == [10, 11, 12, 15]


def test_no_black_of_the_left_eye_s_holes_bleeds_into_known_pixels():
    photo = torch.full((1, 3, 4, 24), 0.75)
    disparity = torch.full((1, 1, 4, 24), 1.5)
    disparity[..., 8:12] = 6.25
    pair = photograph_pair(photo, disparity, "background")
    assert 0 < pair.right_hole_mask.sum() < 40
    torch.testing.assert_close(pair.masked_image, torch.full_like(photo, 0.5))


# --- beside the slow loop and the real warp ---


def holes_loop(disparity: np.ndarray) -> np.ndarray:
    """Holes of one [H,W] map, pixel by pixel: to the left view, the nearest wins; back again; where nothing lands."""

    def landing(place: float) -> set[int]:
        return {t for t in (math.floor(place), math.ceil(place)) if 0 <= t < disparity.shape[1]}

    holes = np.ones(disparity.shape, dtype=bool)
    for y, row in enumerate(disparity):
        nearest: dict[int, float] = {}
        for x, d in enumerate(row):
            for t in landing(x + float(d)) if math.isfinite(d) else ():
                nearest[t] = max(float(d), nearest.get(t, -1.0))
        for t, d in nearest.items():
            for x in landing(t - d):
                holes[y, x] = False
    return holes


@pytest.mark.parametrize("kind", ["whole", "halves", "eighths", "unknown"])
def test_holes_agree_with_the_loop(kind: str):
    rng = np.random.default_rng(7)
    for _ in range(25):
        height, width = int(rng.integers(1, 5)), int(rng.integers(1, 19))
        step = {"whole": 1.0, "halves": 0.5, "eighths": 0.125, "unknown": 0.5}[kind]
        disparity = (rng.integers(0, 9, (height, width)) * step).astype(np.float32)
        if kind == "unknown":
            disparity[rng.random(disparity.shape) < 0.2] = rng.choice([np.inf, np.nan])
        maps = torch.from_numpy(disparity)[None, None]
        found = photograph_pair(torch.zeros(1, 3, *disparity.shape), maps, "zero").right_hole_mask[0, 0]
        np.testing.assert_array_equal(found.numpy(), holes_loop(disparity), err_msg=str(disparity))


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    return render_scenes(12, 72, 104, generator=scene_generator(31, 0))


def test_hole_shares_are_those_of_real_warps(scenes: SceneBatch):
    """Right views with their true disparity, taken as photographs, against the warps of the true left views."""
    real = forward_warp(scenes.left_image, scenes.left_disparity).right_hole_mask
    ours = photograph_pair(scenes.right_image, scenes.right_disparity, "zero").right_hole_mask
    real_share, our_share = (mask.float().mean((1, 2, 3)) for mask in (real, ours))
    assert 0.03 < real_share.mean() < 0.2
    assert abs(our_share.mean() - real_share.mean()) < 0.05 * real_share.mean()  # measured on 32 scenes: +1 %
    assert (our_share - real_share).abs().max() < 0.02
    assert (real & ours).sum() / (real | ours).sum() > 0.85  # measured: .90


def test_known_pixels_are_those_of_real_warps_but_somewhat_softer(scenes: SceneBatch):
    warp = forward_warp(scenes.left_image, scenes.left_disparity)
    pair = photograph_pair(scenes.right_image, scenes.right_disparity, "zero")
    known = ~(warp.right_hole_mask | pair.right_hole_mask)
    difference = (pair.masked_image / 2 + 0.5 - warp.right_image).abs().mean(1, keepdim=True)[known]
    assert difference.mean() < 0.02

    def energy(image: Tensor) -> float:
        both = (known[..., 1:] & known[..., :-1]).expand(-1, 3, -1, -1)
        return float((image[..., 1:] - image[..., :-1])[both].square().sum())

    truth, once, twice = (energy(x) for x in (scenes.right_image, warp.right_image, pair.masked_image / 2 + 0.5))
    assert twice < once < truth  # measured, shares of the truth's: .73 once, .48 twice; at 192x256 .67 and .50
    assert twice > 0.6 * once


# --- the sample as training takes it ---


class Autoencoder:
    """Latents are 2 x 2 means."""

    class Config:
        scaling_factor = 1.0

    config, dtype = Config, torch.float32

    def encode(self, image: Tensor):
        return type("Encoded", (), {"latents": torch.nn.functional.avg_pool2d(image, 2)})


def test_a_pair_goes_through_the_loss():
    photo, disparity = block_photo()
    batch = encode_pair(Autoencoder(), photograph_pair(photo, disparity, "background"), "max", torch.zeros(1, 1, 8))
    assert batch.latent_mask[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 0, 1]
    assert batch.target_latents.shape == (1, 3, 1, 8)


def test_arguments_stay_as_they_are():
    photo, disparity = block_photo()
    before = photo.clone(), disparity.clone()
    photograph_pair(photo, disparity, "background")
    assert torch.equal(photo, before[0]) and torch.equal(disparity, before[1])


# --- degenerate cases ---


def test_zero_disparity_leaves_the_photograph_and_no_hole():
    photo = make_photos(2, 9, 13)
    pair = photograph_pair(photo, torch.zeros(2, 1, 9, 13), "background")
    assert not pair.right_hole_mask.any()
    assert torch.equal(pair.masked_image, pair.right_image)


def test_constant_disparity_loses_the_last_columns_only():
    photo = make_photos(1, 5, 17)
    pair = photograph_pair(photo, torch.full((1, 1, 5, 17), 3.0), "zero")
    assert pair.right_hole_mask[0, 0].all(0).nonzero()[:, 0].tolist() == [14, 15, 16]
    assert not pair.right_hole_mask[..., :14].any()
    assert torch.equal(pair.masked_image[..., :14], pair.right_image[..., :14])


@pytest.mark.parametrize("disparity", [50.0, math.inf, math.nan])
def test_a_photograph_that_the_other_eye_does_not_see_is_all_hole(disparity: float):
    pair = photograph_pair(make_photos(1, 4, 7), torch.full((1, 1, 4, 7), disparity), "background")
    assert pair.right_hole_mask.all()
    assert torch.isfinite(pair.masked_image).all()


def test_one_column():
    pair = photograph_pair(torch.full((1, 3, 2, 1), 0.25), torch.tensor([0.0, 0.5]).view(1, 1, 2, 1), "zero")
    assert pair.right_hole_mask.view(-1).tolist() == [False, False]  # half a pixel away it still covers its column
    assert pair.masked_image[0, :, :, 0].tolist() == [[-0.5, -0.5]] * 3


# --- the disparity of a photograph ---


def test_disparity_is_selected_and_sharpened_as_inference_does():
    inverse_depth = normalize_inverse_depth(torch.linspace(0, 1, 480).view(2, 1, 6, 40).square().cumsum(-1))
    found = select_photograph_disparity(inverse_depth, 40, generator=seeded(5))
    scale = sample_disparity_scale(2, seeded(5))
    assert torch.equal(found, sharpen_disparity(inverse_depth * (scale * 40).view(2, 1, 1, 1)))
    assert found.amax((1, 2, 3)).tolist() == pytest.approx((40 * scale).tolist())


def test_a_crop_has_the_disparities_of_its_photograph():
    inverse_depth = torch.full((1, 1, 4, 10), 0.5)
    scale = sample_disparity_scale(1, seeded(5)).item()
    found = select_photograph_disparity(inverse_depth, 200, generator=seeded(5))
    assert found[0, 0, 2, 3].item() == pytest.approx(0.5 * scale * 200)


def test_each_photograph_can_have_its_own_generator():
    inverse_depth = torch.linspace(0, 1, 24).view(2, 1, 3, 4)
    both = select_photograph_disparity(inverse_depth, 90, generator=seeded(6, 7))
    for i, seed in enumerate((6, 7)):
        one = select_photograph_disparity(inverse_depth[i : i + 1], 90, generator=seeded(seed))
        assert torch.equal(both[i], one[0])


def test_a_constant_photograph_does_not_move():
    flat = normalize_inverse_depth(torch.full((1, 1, 3, 8), 4.0))
    assert torch.equal(select_photograph_disparity(flat, 8, generator=seeded(0)), torch.zeros(1, 1, 3, 8))


# --- errors ---


def test_wrong_arguments_are_refused():
    photo, disparity = block_photo()
    with pytest.raises(ValueError, match="`disparity` must not be negative; got -1.0"):
        photograph_pair(photo, disparity - 2, "zero")
    with pytest.raises(ValueError, match="`left_image` must have shape .*; got"):
        photograph_pair(photo[..., :-1], disparity, "zero")
    with pytest.raises(ValueError, match="`masked_fill` must be .*; got 'mean'"):
        photograph_pair(photo, disparity, "mean")
    with pytest.raises(ValueError, match="`photograph_width` must be at least .*, 16; got 15"):
        select_photograph_disparity(disparity / 5, 15, generator=seeded(0))
    with pytest.raises(ValueError, match=r"`normalized_inverse_depth` must lie in \[0, 1\]; got 1 to 5"):
        select_photograph_disparity(disparity, 16, generator=seeded(0))
    with pytest.raises(TypeError, match="`left_image` must be a float tensor; got torch.uint8"):
        photograph_pair((photo * 255).to(torch.uint8), disparity, "zero")
