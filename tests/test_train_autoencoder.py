# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's script: what it trains is what the pipeline runs; it learns; it resumes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from pipeline_zerostereo import fill_from_background, forward_warp
from tests.training_helpers import POOL_OPTIONS, assert_same_run, log_lines, make_scenes
from training import scene_sampling, train_autoencoder
from training.run import step_generator
from training.train_autoencoder import (
    AutoencoderConfig,
    Reconstruction,
    autoencoder_loss,
    make_autoencoder,
    measure_scaling_factor,
    prepare_pictures,
    train,
    validate,
)


def make_config(output: Path, **changes) -> AutoencoderConfig:
    options = {
        "pool": output.parent / "pool",
        "width": 8,
        "blocks": 1,
        "crop": 24,
        "max_steps": 5,
        "save_every_steps": 3,
        "validate_every_steps": 4,
        "learning_rate": 2e-3,
    }
    return AutoencoderConfig(output=output, **(POOL_OPTIONS | options | changes))


def make_network() -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(make_autoencoder(width=8, blocks=1))


@pytest.fixture
def picture() -> torch.Tensor:
    return prepare_pictures(make_scenes(), 24, step_generator(0, 0, 0))


def test_default_autoencoder_has_factor_two_and_eight_channels():
    vae = make_autoencoder(width=32, blocks=2)
    assert sum(p.numel() for p in vae.parameters()) < 0.25e6
    latents = vae.encode(torch.zeros(1, 3, 10, 14)).latents
    assert latents.shape == (1, 8, 5, 7)
    assert vae.decode(latents).sample.shape == (1, 3, 10, 14)


def test_loss_is_finite_and_reaches_every_parameter(picture):
    network = make_network()
    loss, figures = autoencoder_loss(network, picture, torch.zeros(3, 8, 12, 12))
    loss.backward()
    assert torch.isfinite(loss) and set(figures) == {"loss", "psnr", "latent_deviation"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_trained_path_is_encode_and_decode(picture):
    network = make_network()
    reconstruction, latents = network(picture, torch.zeros(3, 8, 12, 12))
    assert torch.equal(latents, network.vae.encode(picture).latents)
    assert torch.equal(reconstruction, network.vae.decode(latents).sample)


def test_psnr_of_a_known_error():
    class Shifted(torch.nn.Module):
        def forward(self, picture, noise):
            return picture + 0.2, torch.randn(2, 8, 4, 4, generator=step_generator(0, 0, 0))

    loss, figures = autoencoder_loss(Shifted(), torch.zeros(2, 3, 8, 8), torch.zeros(()))
    assert figures["psnr"] == pytest.approx(20.0, abs=1e-3)  # .2 in [-1,1] is .1 in [0,1]
    assert loss == pytest.approx(0.2, abs=0.02)


def test_thirty_steps_on_one_batch_lower_the_loss(picture):
    network = make_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss, _ = autoencoder_loss(network, picture, torch.zeros(3, 8, 12, 12))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_pictures_are_right_views_and_filled_views(monkeypatch):
    monkeypatch.setattr(train_autoencoder, "change_colors", lambda image, change: image)
    scenes = make_scenes(4)
    before = [tensor.clone() for tensor in scenes]
    whole = prepare_pictures(
        scenes._replace(
            left_image=scenes.left_image[..., :32],
            right_image=scenes.right_image[..., :32],
            left_disparity=scenes.left_disparity[..., :32],
        ),
        32,
        step_generator(0, 0, 0),
    )
    warp = forward_warp(scenes.left_image[..., :32], scenes.left_disparity[..., :32])
    filled = fill_from_background(warp.right_image, warp.right_hole_mask, warp.right_disparity)
    for sample in (0, 3):
        torch.testing.assert_close(whole[sample], 2 * filled[sample] - 1)
    for sample in (1, 2):
        torch.testing.assert_close(whole[sample], 2 * scenes.right_image[sample, ..., :32] - 1)
    assert all(torch.equal(a, b) for a, b in zip(scenes, before, strict=True))


def test_scaling_factor_gives_unit_variance(picture):
    vae = make_network().vae
    vae.register_to_config(scaling_factor=measure_scaling_factor(vae, picture))
    scaled = (vae.encode(picture).latents * vae.config.scaling_factor).detach()
    assert scaled.std().item() == pytest.approx(1, abs=1e-4)
    figures, grid = validate(vae, picture)
    deviations = scaled.std((0, 2, 3))
    assert figures["scaled_latent_smallest_deviation"] == pytest.approx(deviations.min().item(), rel=1e-4)
    assert figures["scaled_latent_largest_deviation"] == pytest.approx(deviations.max().item(), rel=1e-4)
    assert figures["scaled_latent_largest_mean"] == pytest.approx(scaled.mean((0, 2, 3)).abs().max().item(), rel=1e-4)
    assert grid.size == (3 * 24, 2 * 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 25}, "`crop` must be a multiple of 2 px; got 25"),
        ({"crop": 34}, r"`crop` must fit into `scene_size` \(32, 48\); got 34"),
        ({"blocks": 0}, "`blocks` must be >= 1; got 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path / "run", **changes)


def test_training_resumes_exactly_and_saves_a_loadable_network(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_sampling, "RENDER_BATCH", 2)  # no more held-out scenes than are used
    folder = train(make_config(tmp_path / "whole"))
    parts = make_config(tmp_path / "parts", stop_after_minutes=0)
    train(parts)  # one step
    train(dataclasses.replace(parts, stop_after_minutes=None, resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert "validation_psnr" in log_lines(tmp_path / "whole")[2]
    assert folder == tmp_path / "whole/vae"
    vae = AutoencoderTiny.from_pretrained(folder)
    assert vae.config.scaling_factor not in (0, 1)
    assert vae.encode(torch.zeros(1, 3, 8, 12)).latents.shape == (1, 8, 4, 6)
