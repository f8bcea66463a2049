# SPDX-License-Identifier: Apache-2.0
"""Right eye, left eye, two new eyes: which way things move, in which order views come, and that all share one warp."""

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline_zerostereo import NewViews, forward_warp, sample_disparity_scale, warp_to_views
from tests.tiny_components import embedded_pipeline, make_disparity, make_photos, official_pipeline, seeded

B, H, W = 2, 45, 70


@pytest.fixture(scope="module")
def pipe():
    return embedded_pipeline()


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return make_photos(B, H, W)


@pytest.fixture(scope="module")
def disparity() -> torch.Tensor:
    return make_disparity(B, H, W)


def columns(value: torch.Tensor) -> list[int]:
    """Return where the first row of [1,1,H,W] is lit."""
    return value[0, 0, 0].nonzero().flatten().tolist()


# --- the pure function ---


def test_an_object_moves_left_in_the_right_eye_and_right_in_the_left_one():
    """One bright column at 7 of 12 with disparity 2: at 5 for the right eye, at 9 for the left eye."""
    photo = torch.zeros(1, 1, 5, 12)
    photo[..., 7] = 1.0
    disparity = torch.full((1, 1, 5, 12), 2.0)
    right, left = (warp_to_views(photo, disparity, view) for view in ("right", "left"))
    assert columns(right.images) == [5] and columns(left.images) == [9]
    assert columns(right.hole_mask) == [10, 11] and columns(left.hole_mask) == [0, 1]
    assert columns(right.visible_mask) == list(range(2, 12)) and columns(left.visible_mask) == list(range(10))
    both = warp_to_views(photo, disparity, "both")  # one pixel to either side
    assert both.images.shape == (2, 1, 5, 12)
    assert [columns(both.images[i : i + 1]) for i in (0, 1)] == [[8], [6]]
    assert [columns(both.hole_mask[i : i + 1]) for i in (0, 1)] == [[0], [11]]
    assert [columns(both.visible_mask[i : i + 1]) for i in (0, 1)] == [list(range(11)), list(range(1, 12))]


def test_the_right_eye_is_the_forward_warp(photos, disparity):
    views, warp = warp_to_views(photos, disparity), forward_warp(photos, disparity)
    expected = (warp.right_image, warp.right_hole_mask, warp.left_visible_mask, warp.right_disparity)
    assert isinstance(views, NewViews)
    for found, wanted in zip(views, expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_left_eye_is_the_mirror_image_of_the_right_eye_of_the_mirror_image(photos, disparity):
    left = warp_to_views(photos, disparity, "left")
    right = warp_to_views(photos.flip(-1), disparity.flip(-1), "right")
    for found, wanted in zip(left, right, strict=True):
        assert torch.equal(found, wanted.flip(-1))


def test_both_eyes_come_left_then_right_of_each_photograph_half_way_each(photos, disparity):
    both = warp_to_views(photos, disparity, "both")
    left, right = (warp_to_views(photos, disparity / 2, view) for view in ("left", "right"))
    for name in NewViews._fields:
        factor = 2 if name == "new_view_disparity" else 1  # it is told for the whole distance of the eyes
        found = getattr(both, name)
        assert len(found) == 2 * B
        assert torch.equal(found[0::2], getattr(left, name) * factor if factor > 1 else getattr(left, name)), name
        assert torch.equal(found[1::2], getattr(right, name) * factor if factor > 1 else getattr(right, name)), name


def test_two_new_eyes_fit_together():
    """The disparity of the new left eye takes its pixels to the new right eye."""
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 3, 40)
    both = warp_to_views(ramp, torch.full((1, 1, 3, 40), 6.0), "both")
    left, right = both.images[:1], both.images[1:]
    known = ~both.hole_mask[:1]
    known[..., :6] = False  # seen by the left eye alone
    moved = left.roll(-6, dims=-1)
    assert (both.new_view_disparity[:1][known] == 6).all()
    assert torch.equal(moved[..., :31], right[..., :31]) and known[..., 6:37].all()


def test_unknown_disparity_is_dropped_in_every_view(photos, disparity):
    unknown = disparity.clone()
    unknown[0, 0, 10:13, 20:25] = torch.inf
    for view in ("right", "left", "both"):
        views = warp_to_views(photos, unknown, view)
        copies = 2 if view == "both" else 1
        assert not views.visible_mask[:copies, 0, 10:13, 20:25].any()
        assert views.images.isfinite().all() and views.new_view_disparity.isfinite().all()


def test_unknown_view_is_named(photos, disparity):
    with pytest.raises(ValueError, match=r"`target_view` must be one of \('right', 'left', 'both'\); got 'middle'"):
        warp_to_views(photos, disparity, "middle")


# --- the pipeline ---


def test_the_photograph_as_right_eye(pipe, photos, disparity):
    """Everything, the filled holes included, is the mirror image of the pair of the mirror image."""
    left = pipe(photos, disparity=disparity, target_view="left", generator=seeded(1, 2), output_type="pt")
    right = pipe(photos.flip(-1), disparity=disparity.flip(-1), generator=seeded(1, 2), output_type="pt")
    for name in ("images", "hole_mask", "visible_mask", "warped_images", "new_view_disparity", "disparity"):
        assert torch.equal(getattr(left, name), getattr(right, name).flip(-1)), name
    assert torch.equal(left.left_image, left.images) and torch.equal(left.right_image, photos)
    assert torch.equal(right.right_image, right.images) and torch.equal(right.left_image, photos.flip(-1))
    assert (left.target_view, right.target_view) == ("left", "right")


def test_two_new_eyes(pipe, photos, disparity):
    output = pipe(photos, disparity=disparity, target_view="both", generator=seeded(1, 2), output_type="pt")
    for name in ("images", "warped_images"):
        assert getattr(output, name).shape == (2 * B, 3, H, W), name
    for name in ("hole_mask", "new_view_disparity", "visible_mask"):
        assert getattr(output, name).shape == (2 * B, 1, H, W), name
    assert output.disparity.shape == (B, 1, H, W) and torch.equal(output.disparity, disparity)
    assert torch.equal(output.input_images, photos)
    assert torch.equal(output.left_image, output.images[[0, 2]])
    assert torch.equal(output.right_image, output.images[[1, 3]])
    views = warp_to_views(photos, disparity, "both")
    assert torch.equal(output.warped_images, views.images) and torch.equal(output.hole_mask, views.hole_mask)
    known = ~output.hole_mask.expand(-1, 3, -1, -1)
    assert torch.equal(output.images[known], output.warped_images[known])
    assert output.images[~known].std() > 0


def test_noise_is_drawn_left_first_from_the_photographs_generator(pipe, photos, disparity):
    output = pipe(photos, target_view="both", generator=seeded(8, 9), output_type="pt")
    scales, noise = [], []
    for generator in seeded(8, 9):
        scales.append(sample_disparity_scale(1, generator))
        noise += [torch.randn((1, 8, 23, 35), generator=generator) for _ in ("left", "right")]
    assert torch.equal(output.disparity_scale, torch.cat(scales))
    given = pipe(
        photos, target_view="both", disparity_scale=torch.cat(scales), latents=torch.cat(noise), output_type="pt"
    )
    assert torch.equal(output.images, given.images)


@pytest.mark.parametrize("target_view", ["right", "left", "both"])
@pytest.mark.parametrize("stochastic", [False, True], ids=["ddim", "ddpm"])
def test_a_batch_equals_its_photographs_one_by_one(tmp_path, photos, target_view, stochastic):
    from diffusers import DDPMScheduler

    pipe = official_pipeline(tmp_path)
    if stochastic:
        pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    batch = pipe(photos, target_view=target_view, generator=seeded(11, 12), output_type="pt")
    for b in range(B):
        single = pipe(photos[b : b + 1], target_view=target_view, generator=seeded(11 + b), output_type="pt")
        for name in ("images", "hole_mask", "disparity", "new_view_disparity", "left_image", "right_image"):
            copies = len(getattr(single, name))
            found = getattr(batch, name)[b * copies : (b + 1) * copies]
            torch.testing.assert_close(found, getattr(single, name), rtol=0, atol=1e-5)


def test_one_generator_serves_photograph_after_photograph(pipe, photos, disparity):
    together = pipe(photos, disparity=disparity, generator=seeded(3), output_type="pt")
    shared = seeded(3)
    apart = [
        pipe(photos[b : b + 1], disparity=disparity[b : b + 1], generator=shared, output_type="pt") for b in range(B)
    ]
    torch.testing.assert_close(together.images, torch.cat([one.images for one in apart]), rtol=0, atol=1e-5)


def test_eyes_of_every_output_type(pipe, photos):
    arguments = {"disparity_scale": 0.1, "target_view": "both"}
    tensors = pipe(photos, generator=seeded(1, 2), output_type="pt", **arguments)
    arrays = pipe(photos, generator=seeded(1, 2), output_type="np", **arguments)
    pictures = pipe(photos, generator=seeded(1, 2), **arguments)
    for name in ("left_image", "right_image", "input_images"):
        expected = getattr(tensors, name).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(getattr(arrays, name), expected), name
        listed = getattr(pictures, name)
        assert len(listed) == B and all(isinstance(picture, PIL.Image.Image) for picture in listed), name
        assert np.array_equal(np.stack(listed), np.rint(expected * 255).astype(np.uint8)), name


def test_inpaint_alone_fills_left_views_as_mirror_images(pipe, photos, disparity):
    views = warp_to_views(photos, disparity, "left")
    found = pipe.inpaint(
        views.images, views.hole_mask, views.new_view_disparity, target_view="left", generator=seeded(1, 2)
    )
    mirrored = (views.images.flip(-1), views.hole_mask.flip(-1), views.new_view_disparity.flip(-1))
    assert torch.equal(found, pipe.inpaint(*mirrored, generator=seeded(1, 2)).flip(-1))


def test_inpaint_alone_takes_one_generator_per_view_or_per_pair(pipe, photos, disparity):
    views = warp_to_views(photos, disparity, "both")
    arguments = (views.images, views.hole_mask, views.new_view_disparity)
    per_pair = pipe.inpaint(*arguments, target_view="both", generator=seeded(5, 6))
    first, second = seeded(5, 6)
    per_view = pipe.inpaint(*arguments, target_view="both", generator=[first, first, second, second])
    assert torch.equal(per_pair, per_view)


def test_inpaint_alone_wants_an_even_number_of_both(pipe, photos, disparity):
    views = warp_to_views(photos[:1], disparity[:1])
    with pytest.raises(ValueError, match=r"`warped_image` must hold left and right views by turns .*; got 1"):
        pipe.inpaint(views.images, views.hole_mask, views.new_view_disparity, target_view="both")
