# SPDX-License-Identifier: Apache-2.0
"""Samples of every kind become views, and views a batch, through the pipeline's own warp."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from pipeline_zerostereo import cover_holes, encode_latents, forward_warp
from tests.tiny_components import embedded_pipeline, make_photos
from training import inpainting_data
from training.disparity_readers import DataFileError
from training.fine_tuning import FineTuningConfig, make_base
from training.inpainting_data import MixtureBatches, load_now, to_views
from training.inpainting_loss import as_predicted
from training.photograph_pairs import photograph_pair, select_photograph_disparity
from training.run import step_generator

H, W = 24, 40


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    embedded_pipeline().save_pretrained(folder)
    return folder


def make_batches(base: Path, output: Path, **changes) -> MixtureBatches:
    options = {"data": ("procedural:1",), "crop_size": 32, "batch_size": 2, "workers": 0, "seed": 3}
    config = FineTuningConfig(base=str(base), output=output, **(options | changes))
    return MixtureBatches(config, make_base(config), Accelerator())


def write_photographs(folder: Path) -> Path:
    folder.mkdir()
    for i, photo in enumerate(make_photos(2, 48, 64)):
        Image.fromarray((photo * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def make_samples(count: int = 2) -> dict:
    generator = torch.Generator().manual_seed(4)
    left, right = torch.randint(256, (2, count, 3, H, W), generator=generator, dtype=torch.uint8)
    disparity = torch.full((count, 1, H, W), 2.0)
    disparity[..., 5:15, 12:30] = 9.0
    return {"left_image": left, "right_image": right, "left_disparity": disparity}


def test_stereo_pairs_are_taken_as_they_are():
    samples = make_samples()
    views = to_views({"stereo": samples}, predicted_disparity=False, generator=step_generator(0, 0, 0))
    torch.testing.assert_close(views.left_image, samples["left_image"] / 255)
    torch.testing.assert_close(views.right_image, samples["right_image"] / 255)
    assert torch.equal(views.left_disparity, samples["left_disparity"])


def test_true_disparities_are_treated_as_predicted_where_asked():
    samples = make_samples()
    views = to_views({"procedural": samples}, predicted_disparity=True, generator=step_generator(0, 0, 0))
    expected = as_predicted(samples["left_disparity"], generator=step_generator(0, 0, 0))
    assert torch.equal(views.left_disparity, expected)
    assert not torch.equal(expected, samples["left_disparity"])


def test_a_photograph_is_the_right_view_and_its_pair_that_of_photograph_pair():
    generator = torch.Generator().manual_seed(5)
    photograph = torch.randint(256, (2, 3, H, W), generator=generator, dtype=torch.uint8)
    depth = torch.rand((2, 1, 1, W), generator=generator).expand(2, 1, H, W).contiguous()
    widths = torch.tensor([64, 50])
    samples = {"photograph": photograph, "normalized_inverse_depth": depth, "photograph_width": widths}
    views = to_views({"photos": samples}, predicted_disparity=True, generator=step_generator(0, 0, 0))
    drawn = step_generator(0, 0, 0)
    disparity = torch.cat(
        [select_photograph_disparity(depth[i : i + 1], int(widths[i]), generator=drawn) for i in range(2)]
    )
    expected = photograph_pair(photograph / 255, disparity, "zero")
    warp = forward_warp(views.left_image, views.left_disparity)
    assert torch.equal(warp.right_hole_mask, expected.right_hole_mask) and warp.right_hole_mask.any()
    covered = cover_holes(warp.right_image, warp.right_hole_mask, warp.right_disparity, "zero")
    torch.testing.assert_close(covered, expected.masked_image)
    torch.testing.assert_close(2 * views.right_image - 1, expected.right_image)


def test_kinds_are_put_together_in_their_order():
    samples = make_samples(1)
    other = {name: value.flip(-1) for name, value in samples.items()}
    both = {"stereo": samples, "procedural": other}
    views = to_views(both, predicted_disparity=False, generator=step_generator(0, 0, 0))
    assert torch.equal(views.left_disparity, torch.cat([samples["left_disparity"], other["left_disparity"]]))


def test_batch_is_the_warped_pair_encoded(base, tmp_path):
    batches = make_batches(base, tmp_path)
    sample = next(batches.samples(5, 1))
    generator, batch = batches.encode(sample)
    assert sample[0] == 5
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=step_generator(3, 5, 0)))
    views = to_views(
        inpainting_data.render_sources(sample[1], "cpu"), predicted_disparity=False, generator=step_generator(0, 0, 0)
    )
    expected = encode_latents(batches.base.vae, 2 * views.right_image - 1)
    torch.testing.assert_close(batch.target_latents, expected)
    assert batch.target_latents.shape == (2, 8, 16, 16) and batch.prompt_embeds.shape == (2, 2, 32)


def test_batches_are_functions_of_the_pass_and_held_out_views_are_others(base, tmp_path):
    batches = make_batches(base, tmp_path)
    several = batches.samples(0, 1)
    first, second = (batches.encode(next(several))[1] for _ in range(2))
    again = make_batches(base, tmp_path).encode(next(make_batches(base, tmp_path).samples(1, 1)))[1]
    assert torch.equal(second.target_latents, again.target_latents)
    assert not torch.equal(first.target_latents, second.target_latents)
    views = batches.held_out()
    assert views.truth.shape == (8, 3, 32, 32) and views.holes.any()
    assert torch.equal(views.warped, make_batches(base, tmp_path, seed=4).held_out().warped)


def test_kept_latents_are_those_that_were_encoded(base, tmp_path):
    batches = make_batches(base, tmp_path, latent_cache=2)
    several = batches.samples(0, 1)
    encoded = [batches.encode(next(several)) for _ in range(4)]
    for early, late in ((0, 2), (1, 3)):
        for one, other in zip(encoded[early][1], encoded[late][1], strict=True):
            assert torch.equal(one, other)
        assert encoded[early][0].initial_seed() != encoded[late][0].initial_seed()


def test_photographs_alone_need_no_other_data(base, tmp_path):
    photos = write_photographs(tmp_path / "photos")
    batches = make_batches(
        base, tmp_path / "run", data=(f"photos:{photos}:1",), validation_data=(f"photos:{photos}:1",)
    )
    _, batch = batches.encode(next(batches.samples(0, 1)))
    assert torch.isfinite(batch.masked_image_latents).all()
    assert batches.held_out().truth.shape == (8, 3, 32, 32)


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
def test_a_bad_photograph_ends_the_run_or_is_reported(base, tmp_path, on_bad_sample):
    photos = write_photographs(tmp_path / "photos")
    batches = make_batches(base, tmp_path / "run", data=(f"photos:{photos}:1",), on_bad_sample=on_bad_sample)
    (photos / "0.png").write_bytes(b"no picture")
    if on_bad_sample == "raise":
        with pytest.raises(DataFileError, match="0.png"):
            for _ in zip(range(4), batches.samples(0, 1), strict=False):
                pass
        with pytest.raises(DataFileError, match="0.png"):
            load_now(batches.mixture, 0)
    else:
        for _ in zip(range(4), batches.samples(0, 1), strict=False):
            pass
        assert "0.png" in batches.report()


def test_depth_of_another_pipeline_is_used_where_asked(base, tmp_path):
    photos = write_photographs(tmp_path / "photos")
    other = tmp_path / "other"
    embedded_pipeline(default_depth_resolution=28).save_pretrained(other)
    for name, changes in (("own", {}), ("asked", {"depth_pipeline": other})):
        make_batches(base, tmp_path / name, data=(f"photos:{photos}:1",), depth_cache=tmp_path / "depth", **changes)
    assert len([path for path in (tmp_path / "depth").iterdir() if path.is_dir()]) == 2
    assert json.loads((other / "model_index.json").read_text())["default_depth_resolution"] == 28
