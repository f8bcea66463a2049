# SPDX-License-Identifier: Apache-2.0
"""Ways to fill the holes: a bounded working picture, tiles at native resolution, the background alone."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_zerostereo import (
    Tile,
    ZeroStereoPipeline,
    blend_tiles,
    fill_from_background,
    forward_warp,
    place_tiles,
    shrink_warped_view,
    warp_to_views,
)
from tests.reference import shrink_warped_view_loop
from tests.tiny_components import (
    embedded_pipeline,
    inputs_of,
    make_disparity,
    make_photos,
    official_pipeline,
    quiet,
    seeded,
)

B, H, W = 2, 45, 70


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return make_photos(B, H, W)


@pytest.fixture(scope="module")
def disparity() -> torch.Tensor:
    return make_disparity(B, H, W)


def tiled_pipeline(**changes) -> ZeroStereoPipeline:
    """Tiles of 16 px are 8 latent pixels: several in each direction of 45x70."""
    return embedded_pipeline(tile_size=16, **changes)


def refuse(module: nn.Module, args) -> None:
    raise AssertionError(f"{type(module).__name__} ran")


# --- the working picture ---


def test_shrinking_takes_the_mean_of_known_pixels():
    image = torch.tensor([[0.2, 0.4, 0.9, 0.9, 0.5, 0.1], [0.6, 0.8, 0.9, 0.3, 0.5, 0.1]]).view(1, 1, 2, 6)
    hole = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 1, 0]], dtype=torch.bool).view(1, 1, 2, 6)
    disparity = torch.tensor([[1.0, 2, 0, 0, 0, 7], [3, 4, 0, 6, 0, 9]]).view(1, 1, 2, 6)
    working = shrink_warped_view(image, hole, disparity, 1, 3)
    torch.testing.assert_close(working.image.flatten(), torch.tensor([0.5, 0.0, 0.1]))
    assert working.hole_mask.flatten().tolist() == [False, True, False]  # three of four are hole; half of it is not
    torch.testing.assert_close(working.disparity.flatten(), torch.tensor([2.5, 0.0, 8.0]))


def test_shrinking_agrees_with_the_slow_reference(photos, disparity):
    views = warp_to_views(photos, 3 * disparity)
    for height, width in ((20, 31), (1, 1), (45, 13), (44, 69)):
        found = shrink_warped_view(views.images, views.hole_mask, views.new_view_disparity, height, width)
        expected = shrink_warped_view_loop(
            views.images.numpy(), views.hole_mask.numpy(), views.new_view_disparity.numpy(), height, width
        )
        assert np.array_equal(found.hole_mask.numpy(), expected[1])
        np.testing.assert_allclose(found.image, expected[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.disparity, expected[2], rtol=0, atol=1e-5)


def test_shrinking_to_the_same_size_changes_nothing(photos, disparity):
    warp = forward_warp(photos, disparity)
    working = shrink_warped_view(warp.right_image, warp.right_hole_mask, None, H, W)
    assert working.image is warp.right_image and working.hole_mask is warp.right_hole_mask
    assert working.disparity is None
    assert shrink_warped_view(warp.right_image, warp.right_hole_mask, None, 9, 9).disparity is None


@pytest.mark.parametrize("size", [(0, 5), (46, 70), (45, 71), (5, 0)])
def test_shrinking_never_enlarges(photos, size):
    hole = torch.zeros(B, 1, H, W, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=rf"`height` and `width` must lie in 1 to \[45, 70\]; got \[{size[0]}, {size[1]}\]"
    ):
        shrink_warped_view(photos, hole, None, *size)


# --- tiles ---


def test_tiles_of_a_known_picture():
    assert place_tiles(8, 20, 8) == [Tile(0, 8, 0, 8), Tile(0, 8, 6, 14), Tile(0, 8, 12, 20)]
    assert place_tiles(5, 9, 8) == [Tile(0, 5, 0, 8), Tile(0, 5, 1, 9)]
    assert place_tiles(5, 7, 8) == [Tile(0, 5, 0, 7)]
    assert Tile(1, 3, 2, 5).scaled(4) == Tile(4, 12, 8, 20)
    assert torch.equal(Tile(1, 3, 2, 5).of(torch.arange(24).view(4, 6)), torch.tensor([[8, 9, 10], [14, 15, 16]]))


@pytest.mark.parametrize("tile_size", [1, 2, 3, 8, 64])
def test_tiles_cover_the_picture_and_overlap_by_a_quarter(tile_size):
    for length in range(1, 70):
        tiles = place_tiles(length, length, tile_size)
        starts = sorted({tile.top for tile in tiles})
        assert [(tile.top, tile.left) for tile in tiles] == [(top, left) for top in starts for left in starts]
        assert all(tile.bottom - tile.top == min(tile_size, length) for tile in tiles)
        assert starts[0] == 0 and starts[-1] + min(tile_size, length) == length
        if tile_size > 1:
            overlap = -(-tile_size // 4)
            assert all(two - one <= tile_size - overlap for one, two in zip(starts, starts[1:], strict=False)), length


def test_blending_gives_a_picture_back_that_tiles_agree_on():
    picture = torch.rand(B, 3, 21, 30, generator=seeded(0))
    tiles = place_tiles(21, 30, 8)
    used = torch.ones(B, len(tiles), dtype=torch.bool)
    blended = blend_tiles(tiles, tuple(picture.shape), used, lambda tile: tile.of(picture))
    torch.testing.assert_close(blended, picture)
    enlarged = picture.repeat_interleave(2, -1).repeat_interleave(2, -2)
    blended = blend_tiles(tiles, tuple(enlarged.shape), used, lambda tile: tile.scaled(2).of(enlarged), factor=2)
    torch.testing.assert_close(blended, enlarged)


def test_blending_weights_fall_linearly_to_the_border():
    """Two tiles of 4 columns that overlap by 2: the left one says 0, the right one 1."""
    tiles = [Tile(0, 1, 0, 4), Tile(0, 1, 2, 6)]
    used = torch.ones(1, 2, dtype=torch.bool)
    blended = blend_tiles(tiles, (1, 1, 1, 6), used, lambda tile: torch.full((1, 1, 1, 4), float(tile.left > 0)))
    torch.testing.assert_close(blended.flatten(), torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))  # weights 2:1, 1:2


def test_blending_skips_what_no_image_needs_and_mixes_nothing_in():
    tiles = [Tile(0, 1, 0, 4), Tile(0, 1, 2, 6), Tile(0, 1, 4, 8)]
    used = torch.tensor([[True, False, False], [False, True, False]])
    computed = []

    def compute(tile: Tile) -> torch.Tensor:
        computed.append(tile.left)
        return torch.full((2, 1, 1, 4), 5.0 + tile.left)

    blended = blend_tiles(tiles, (2, 1, 1, 8), used, compute)
    assert computed == [0, 2]
    assert blended[0].flatten().tolist() == [5, 5, 5, 5, 0, 0, 0, 0]
    assert blended[1].flatten().tolist() == [0, 0, 7, 7, 7, 7, 0, 0]
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert not blend_tiles(tiles, (2, 1, 1, 8), nothing, compute).any() and computed == [0, 2]


# --- fill="whole" ---


@pytest.mark.parametrize(
    ("configured", "argument", "expected"),
    [(0, None, (46, 70)), (30, None, (30, 48)), (30, 0, (46, 70)), (0, 20, (20, 32)), (400, None, (46, 70))],
)
def test_inpaint_resolution_bounds_the_working_picture(photos, disparity, configured, argument, expected):
    """45x70 becomes 30x47 and 20x31, padded to even sizes."""
    pipe = embedded_pipeline(default_inpaint_resolution=configured)
    for turned in (False, True):
        pictures, maps = (value.transpose(2, 3) if turned else value for value in (photos, disparity))
        with inputs_of(pipe.vae.encoder) as seen:
            output = pipe(
                pictures, disparity=maps, inpaint_resolution=argument, generator=seeded(1, 2), output_type="pt"
            )
        assert [tuple(value.shape[-2:]) for value in seen] == [expected[::-1] if turned else expected]
        assert output.images.shape == pictures.shape


def test_only_holes_come_from_the_working_picture(photos, disparity):
    pipe = embedded_pipeline()
    output = pipe(photos, disparity=disparity, inpaint_resolution=20, generator=seeded(1, 2), output_type="pt")
    known = ~output.hole_mask.expand(-1, 3, -1, -1)
    assert torch.equal(output.images[known], output.warped_images[known])
    unbounded = pipe(photos, disparity=disparity, generator=seeded(1, 2), output_type="pt")
    assert torch.equal(output.hole_mask, unbounded.hole_mask)
    assert not torch.equal(output.images[~known], unbounded.images[~known])


def test_holes_are_the_decoded_working_picture_enlarged(photos, disparity):
    pipe = embedded_pipeline()
    warp = forward_warp(photos, disparity)
    latents = pipe.inpaint(
        warp.right_image,
        warp.right_hole_mask,
        warp.right_disparity,
        inpaint_resolution=20,
        generator=seeded(1, 2),
        output_type="latent",
    )
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample[..., :20, :31]  # 31 padded to 32
    enlarged = nn.functional.interpolate((decoded / 2 + 0.5).clamp(0, 1), (H, W), mode="bicubic").clamp(0, 1)
    found = pipe.inpaint(
        warp.right_image, warp.right_hole_mask, warp.right_disparity, inpaint_resolution=20, generator=seeded(1, 2)
    )
    expected = torch.where(warp.right_hole_mask, enlarged, warp.right_image)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)


def test_latents_have_the_size_of_the_working_picture(photos, disparity):
    pipe = embedded_pipeline()
    noise = torch.randn(B, 8, 10, 16, generator=seeded(0))
    pipe(photos, disparity=disparity, inpaint_resolution=20, latents=noise)
    with pytest.raises(ValueError, match=r"`latents` must be a tensor of shape \[B,c,h,w\] = \[2, 8, 10, 16\]"):
        pipe(photos, disparity=disparity, inpaint_resolution=20, latents=torch.zeros(B, 8, 23, 35))


def test_output_type_latent_gives_what_is_decoded_else(photos, disparity):
    pipe = embedded_pipeline()
    last = []
    arguments = {"disparity": disparity, "output_type": "latent"}
    output = pipe(
        photos,
        generator=seeded(1, 2),
        callback_on_step_end=lambda pipe, step, timestep, tensors: last.append(tensors["latents"]) or {},
        **arguments,
    )
    assert torch.equal(output.images, last[-1]) and output.images.shape == (B, 8, 23, 35)
    assert torch.equal(output.input_images, photos) and output.hole_mask.dtype == torch.bool
    decoded = pipe.vae.decode(output.images / pipe.vae.config.scaling_factor).sample[..., :H, :]
    images = pipe(photos, disparity=disparity, generator=seeded(1, 2), output_type="pt").images
    hole = output.hole_mask.expand(-1, 3, -1, -1)
    torch.testing.assert_close(images[hole], (decoded / 2 + 0.5).clamp(0, 1)[hole].detach(), rtol=0, atol=1e-6)


# --- fill="tiled" ---


def test_one_tile_is_the_whole_picture(photos, disparity):
    pipe = embedded_pipeline(default_inpaint_resolution=20)
    tiled = pipe(photos, disparity=disparity, fill="tiled", generator=seeded(1, 2), output_type="pt")
    whole = pipe(photos, disparity=disparity, inpaint_resolution=0, generator=seeded(1, 2), output_type="pt")
    assert torch.equal(tiled.images, whole.images)


@pytest.mark.parametrize("build", ["embedded", "official"])
def test_tiles_of_the_native_picture_go_through_the_networks(tmp_path, photos, disparity, build):
    pipe = tiled_pipeline() if build == "embedded" else official_pipeline(tmp_path, tile_size=32)
    latent = 8 if build == "embedded" else 4
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    output = pipe(photos, disparity=disparity, fill="tiled", generator=seeded(1, 2), output_type="pt")
    assert set(seen) == {(latent, latent)} and len(seen) % pipe.num_timesteps == 0
    known = ~output.hole_mask.expand(-1, 3, -1, -1)
    assert torch.equal(output.images[known], output.warped_images[known])
    assert output.images.isfinite().all() and output.images[~known].std() > 0


def test_tiles_without_a_hole_are_left_out(photos):
    pipe = tiled_pipeline()
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(1))
    hole = torch.zeros(B, 1, H, W, dtype=torch.bool)
    hole[1, 0, 2, 3] = True  # in the first tile alone
    disparity = torch.ones(B, 1, H, W)
    filled = pipe.inpaint(photos, hole, disparity, fill="tiled", generator=seeded(1, 2))
    assert len(seen) == pipe.num_timesteps
    assert torch.equal(filled[0], photos[0]) and (filled[1, :, 2, 3] != photos[1, :, 2, 3]).any()
    hole[1] = False
    assert torch.equal(pipe.inpaint(photos, hole, disparity, fill="tiled"), photos)
    assert len(seen) == pipe.num_timesteps


def test_a_tiled_batch_equals_its_photographs_one_by_one(photos, disparity):
    pipe = tiled_pipeline()
    different = disparity.clone()
    different[1] = 0.5  # the second photograph has other holes, so other tiles
    different[1, 0, 30:40, 50:60] = 6.0
    batch = pipe(photos, disparity=different, fill="tiled", generator=seeded(1, 2), output_type="pt")
    for b in range(B):
        single = pipe(
            photos[b : b + 1],
            disparity=different[b : b + 1],
            fill="tiled",
            generator=seeded(1 + b),
            output_type="pt",
        )
        torch.testing.assert_close(batch.images[b : b + 1], single.images, rtol=0, atol=1e-5)


def test_any_scheduler_steps_the_blended_picture(photos, disparity):
    """A scheduler with memory is stepped once per timestep, not once per tile."""
    from diffusers import DPMSolverMultistepScheduler

    pipe = tiled_pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=False)
    steps = []
    inner = pipe.scheduler.step

    def counted(*args, **kwargs):
        steps.append(args[0].shape)
        return inner(*args, **kwargs)

    pipe.scheduler.step = counted
    output = pipe(
        photos, disparity=disparity, fill="tiled", num_inference_steps=3, generator=seeded(1, 2), output_type="pt"
    )
    assert steps == [(B, 8, 23, 35)] * 3 and output.images.isfinite().all()


def test_tiled_left_and_both_views(photos, disparity):
    pipe = tiled_pipeline()
    left = pipe(
        photos, disparity=disparity, fill="tiled", target_view="left", generator=seeded(1, 2), output_type="pt"
    )
    right = pipe(photos.flip(-1), disparity=disparity.flip(-1), fill="tiled", generator=seeded(1, 2), output_type="pt")
    assert torch.equal(left.images, right.images.flip(-1))
    both = pipe(
        photos, disparity=disparity, fill="tiled", target_view="both", generator=seeded(1, 2), output_type="pt"
    )
    assert both.images.shape == (2 * B, 3, H, W) and both.images.isfinite().all()


# --- fill="background" ---


def test_background_runs_no_inpainting_network(photos, disparity):
    pipe = embedded_pipeline()
    for network in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder):
        network.register_forward_pre_hook(refuse)
    for target_view in ("right", "left", "both"):
        output = pipe(photos, disparity=disparity, fill="background", target_view=target_view, output_type="pt")
        assert output.images.isfinite().all()
    output = pipe(photos, disparity=disparity, fill="background", output_type="pt")
    expected = fill_from_background(output.warped_images, output.hole_mask, output.new_view_disparity)
    assert torch.equal(output.images, expected)
    left = pipe(photos.flip(-1), disparity=disparity.flip(-1), fill="background", target_view="left", output_type="pt")
    assert torch.equal(left.images.flip(-1), output.images)


def test_background_needs_neither_prompt_nor_text_encoder(photos, disparity):
    pipe = embedded_pipeline(empty_prompt_embeds=None)
    assert pipe(photos, disparity=disparity, fill="background").images
    with pytest.raises(ValueError, match="`text_encoder` and `tokenizer` are needed"):
        pipe(photos, disparity=disparity)


def test_background_of_a_batch_equals_its_photographs(photos):
    pipe = quiet(embedded_pipeline())
    batch = pipe(photos, fill="background", generator=seeded(4, 5), output_type="pt")
    for b in range(B):
        single = pipe(photos[b : b + 1], fill="background", generator=seeded(4 + b), output_type="pt")
        torch.testing.assert_close(batch.images[b : b + 1], single.images, rtol=0, atol=1e-5)
