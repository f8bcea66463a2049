# SPDX-License-Identifier: Apache-2.0
"""The small UNet from random weights: its networks, crops and colours."""

from pathlib import Path

import pytest
import torch

from tests.training_helpers import POOL_OPTIONS, SCENE_SIZE, make_scenes
from training.inpainting_from_scratch import (
    FromScratchConfig,
    crop_pair,
    draw_crop_size,
    make_scheduler,
    make_unet,
    prepare_pair,
)
from training.inpainting_loss import WarpedPair
from training.run import step_generator


def make_config(output: Path, **changes) -> FromScratchConfig:
    options = {
        "pool": output.parent / "pool",
        "vae": output.parent / "vae",
        "channels": (8, 16),
        "smallest_crop": 16,
        "largest_crop": 32,
        "max_steps": 5,
        "save_every_steps": 3,
        "validate_every_steps": 4,
        "learning_rate": 2e-3,
    }
    return FromScratchConfig(output=output, **(POOL_OPTIONS | options | changes))


def test_default_unet_fits_the_embedded_weights():
    unet = make_unet(8, (32, 64, 96, 96))
    assert (unet.config.in_channels, unet.config.out_channels) == (17, 8)
    assert 2.5e6 < sum(p.numel() for p in unet.parameters()) < 3.5e6


def test_attention_only_at_the_lowest_level():
    unet = make_unet(2, (8, 16, 24))
    kinds = [type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)]
    assert kinds == ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"] + ["UpBlock2D"] * 2


def test_scheduler_begins_at_pure_noise_and_samples_in_few_steps():
    scheduler = make_scheduler("sample")
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
    assert make_scheduler("epsilon").alphas_cumprod[-1] > 0


def test_crops_are_cut_alike_and_reach_the_right_border():
    B, (H, W) = 50, SCENE_SIZE
    places = (torch.arange(H)[:, None] * 100 + torch.arange(W)).float().expand(B, 3, H, W)
    pair = WarpedPair(places, places + 1, places[:, :1] % 2 == 0)
    for share, low, high in ((1.0, 50, 50), (0.0, 0, 12), (0.5, 15, 40)):
        cut = crop_pair(pair, 16, share, step_generator(0, 0, 0))
        assert cut.right_image.shape == (B, 3, 16, 16)
        assert torch.equal(cut.right_image + 1, cut.masked_image)
        assert torch.equal(cut.right_image[:, :1] % 2 == 0, cut.right_hole_mask)
        at_border = cut.right_image[:, 0, 0, -1] % 100 == W - 1
        assert low <= at_border.sum() <= high


def test_crop_at_the_border_contains_the_border_hole(tmp_path):
    config = make_config(tmp_path / "run", border_share=1.0, smallest_crop=16, largest_crop=16)
    pair = prepare_pair(make_scenes(), config, step_generator(0, 0, 0))
    assert pair.right_hole_mask[..., -1].float().mean() > 0.5


def test_crop_sizes_are_multiples_of_sixteen(tmp_path):
    config = make_config(tmp_path / "run", scene_size=(192, 256), smallest_crop=128, largest_crop=192)
    sizes = [draw_crop_size(config, step_generator(0, step, 0)) for step in range(200)]
    assert set(sizes) == {128, 144, 160, 176, 192}
    assert sizes.count(128) > sizes.count(192)


def test_colours_of_both_views_change_alike(tmp_path):
    scenes = make_scenes()
    same = scenes._replace(right_image=scenes.left_image, left_disparity=torch.zeros_like(scenes.left_disparity))
    pair = prepare_pair(same, make_config(tmp_path / "run"), step_generator(0, 0, 0))
    assert torch.equal(pair.right_image, pair.masked_image)
    assert not pair.right_hole_mask.any()
    assert not torch.isin(pair.right_image[0, 0], 2 * scenes.left_image[0, 0] - 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smallest_crop": 20}, "`smallest_crop` must be a multiple of 16 px; got 20"),
        ({"largest_crop": 40}, "`largest_crop` must be a multiple of 16 px; got 40"),
        ({"largest_crop": 48}, r"`largest_crop` must fit into `scene_size` \(32, 48\); got 48"),
        ({"smallest_crop": 32, "largest_crop": 16}, "`smallest_crop` must be <= `largest_crop`; got 32"),
        ({"channels": (8, 12)}, r"`channels` must be two or more multiples of 8; got \(8, 12\)"),
        ({"channels": (8,)}, r"`channels` must be two or more multiples of 8; got \(8,\)"),
        ({"prediction_type": "flow"}, "`prediction_type` must be one of .*; got 'flow'"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path / "run", **changes)
