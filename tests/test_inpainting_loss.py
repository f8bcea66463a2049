# SPDX-License-Identifier: Apache-2.0
"""The inpainting batch and loss: as the pipeline does it, known values, gradients where they belong."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DDPMScheduler

from pipeline_zerostereo import cover_holes, encode_latents, forward_warp
from tests.golden_files import load_golden
from tests.tiny_components import make_kl_autoencoder, read_golden_config
from tests.tiny_components import make_unet as make_recorded_unet
from tests.training_helpers import make_scenes
from training.inpainting_from_scratch import make_scheduler, make_unet
from training.inpainting_loss import (
    HOLE_WEIGHT,
    KNOWN_WEIGHT,
    InpaintingBatch,
    WarpedPair,
    as_predicted,
    denoising_loss,
    draw_timesteps,
    encode_pair,
    inpainting_loss,
    prediction_target,
    snr_weights,
    warp_pair,
)
from training.run import step_generator

PROMPT = torch.zeros(1, 1, 32)


def make_vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
        scaling_factor=1.7,
    )


def make_pair(masked_fill: str = "background") -> WarpedPair:
    scenes = make_scenes()
    return warp_pair(scenes.left_image, scenes.left_disparity, scenes.right_image, masked_fill)


def make_batch() -> InpaintingBatch:
    return encode_pair(make_vae(), make_pair(), "max", PROMPT)


class ConstantUnet(torch.nn.Module):
    """Predicts one value everywhere and keeps what it was given."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, sample, timesteps, encoder_hidden_states, return_dict):
        self.sample, self.timesteps, self.prompt = sample, timesteps, encoder_hidden_states
        return (self.value.expand(len(sample), (sample.shape[1] - 1) // 2, *sample.shape[2:]),)


# --- the pair ---


@pytest.mark.parametrize("masked_fill", ["background", "zero"])
def test_holes_are_covered_as_the_pipeline_covers_them(masked_fill):
    scenes, pair = make_scenes(), make_pair(masked_fill)
    warp = forward_warp(scenes.left_image, scenes.left_disparity)
    expected = cover_holes(warp.right_image, warp.right_hole_mask, warp.right_disparity, masked_fill)
    assert torch.equal(pair.masked_image, expected)
    assert torch.equal(pair.right_hole_mask, warp.right_hole_mask)
    torch.testing.assert_close(pair.right_image, 2 * scenes.right_image - 1)
    # the square of 5 px on 1 px leaves a hole of 4 px beside it, and 1 px at the right border
    assert pair.right_hole_mask[0, 0, 10].nonzero()[:, 0].tolist() == [25, 26, 27, 28, 47]


def test_warping_leaves_the_scene_unchanged():
    scenes = make_scenes()
    before = [tensor.clone() for tensor in scenes]
    warp_pair(scenes.left_image, scenes.left_disparity, scenes.right_image, "zero")
    assert all(torch.equal(a, b) for a, b in zip(scenes, before, strict=True))


def test_unknown_fill_is_refused():
    with pytest.raises(ValueError, match="`masked_fill` must be .*; got 'mean'"):
        make_pair("mean")


def test_views_of_different_size_are_refused():
    scenes = make_scenes()
    with pytest.raises(ValueError, match=r"`right_image` must have the shape of `left_image`.*; got \[3, 3, 32, 47\]"):
        warp_pair(scenes.left_image, scenes.left_disparity, scenes.right_image[..., :47], "zero")


# --- true maps treated like predicted ones ---


def test_a_blurred_and_sharpened_step_stays_a_step_near_its_place():
    disparity = torch.full((2, 1, 20, 40), 1.0)
    disparity[..., 20:] = 31.0
    treated = as_predicted(disparity, generator=step_generator(0, 0, 0))
    assert treated.shape == disparity.shape
    torch.testing.assert_close(treated[..., :10], disparity[..., :10])
    torch.testing.assert_close(treated[..., 30:], disparity[..., 30:])
    assert treated.diff(dim=-1).abs().amax() > 15  # sharpening left a hard step, wherever it is now
    assert not torch.equal(treated[0], treated[1])  # another deviation for each map


def test_the_blur_is_that_of_scipy(monkeypatch, require):
    filters = require("scipy.ndimage")
    monkeypatch.setattr("training.inpainting_loss.PREDICTED_BLUR", (1.75, 1.75))
    monkeypatch.setattr("training.inpainting_loss.sharpen_disparity", lambda disparity: disparity)
    disparity = make_scenes().left_disparity
    blurred = as_predicted(disparity, generator=step_generator(0, 0, 0))
    for found, given in zip(blurred, disparity, strict=True):
        expected = filters.gaussian_filter(given[0].numpy(), 1.75, mode="nearest", radius=8)
        torch.testing.assert_close(found[0], torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_flat_disparity_is_left_as_it_is():
    disparity = torch.full((1, 1, 9, 14), 2.5)
    torch.testing.assert_close(as_predicted(disparity, generator=step_generator(0, 0, 0)), disparity)


def test_a_negative_disparity_is_not_repaired():
    with pytest.raises(ValueError, match="`disparity` must not be negative"):
        as_predicted(torch.full((1, 1, 9, 14), -2.5), generator=step_generator(0, 0, 0))


# --- encoding ---


def test_encoding_gives_scaled_latents_mask_and_prompt():
    vae, pair = make_vae(), make_pair()
    batch = encode_pair(vae, pair, "max", PROMPT)
    assert batch.target_latents.shape == batch.masked_image_latents.shape == (3, 2, 16, 24)
    torch.testing.assert_close(batch.target_latents, encode_latents(vae, pair.right_image))
    torch.testing.assert_close(batch.masked_image_latents, encode_latents(vae, pair.masked_image))
    assert batch.latent_mask[0, 0, 5].nonzero()[:, 0].tolist() == [12, 13, 14, 23]
    assert batch.prompt_embeds.shape == (3, 1, 32)
    assert not any(tensor.requires_grad for tensor in batch)


def test_nearest_mask_takes_the_first_pixel_of_a_cell():
    batch = encode_pair(make_vae(), make_pair(), "nearest", PROMPT)
    assert batch.latent_mask[0, 0, 5].nonzero()[:, 0].tolist() == [13, 14]


def test_a_full_autoencoder_is_encoded_by_its_mean():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=3,
    ).eval()
    first, again = (encode_pair(vae, make_pair(), "max", PROMPT) for _ in range(2))
    assert first.target_latents.shape == (3, 3, 16, 24)
    assert torch.equal(first.target_latents, again.target_latents)


# --- timesteps and targets ---


def test_share_of_last_timesteps():
    def draw(share):
        return draw_timesteps(400, 1000, share, generator=step_generator(0, 0, 0))

    assert (draw(1.0) == 999).all()
    assert (draw(0.0) == 999).sum() < 5 and draw(0.0).min() >= 0
    assert 100 < (draw(0.3) == 999).sum() < 140


def test_target_follows_the_prediction_type():
    latents, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 5.0)
    timesteps = torch.tensor([0, 700])
    for kind, expected in (("epsilon", noise), ("sample", latents)):
        assert torch.equal(prediction_target(make_scheduler(kind), latents, noise, timesteps), expected)
    scheduler = make_scheduler("v_prediction")
    alpha = scheduler.alphas_cumprod[timesteps].view(2, 1, 1, 1)
    velocity = prediction_target(scheduler, latents, noise, timesteps)
    torch.testing.assert_close(velocity, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents)


def test_unknown_prediction_type_is_refused():
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="flow"))
    with pytest.raises(ValueError, match="`prediction_type` must be .*; got 'flow'"):
        prediction_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1))


# --- weights by signal-to-noise ratio ---


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("epsilon", [5 / 99, 1.0, 1.0]), ("v_prediction", [5 / 100, 0.25, 0.0]), ("sample", [5.0, 1 / 3, 0.0])],
)
def test_weights_bound_the_signal_to_noise_ratio(kind, expected):
    config = SimpleNamespace(prediction_type=kind)
    scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.tensor([0.99, 0.25, 0.0]))  # ratio 99, 1/3, 0
    weights = snr_weights(scheduler, torch.tensor([0, 1, 2]), 5.0)
    assert weights.tolist() == pytest.approx(expected, rel=1e-4)


def test_weighted_loss_of_one_timestep_is_its_weight_times_the_loss():
    batch, scheduler, noise = make_batch(), make_scheduler("epsilon"), torch.zeros(3, 2, 16, 24)
    for timestep in (3, 700):
        timesteps = torch.full((3,), timestep)
        plain = denoising_loss(ConstantUnet(0.5), scheduler, batch, noise, timesteps)
        weighted = denoising_loss(ConstantUnet(0.5), scheduler, batch, noise, timesteps, snr_gamma=5.0)
        weight = snr_weights(scheduler, timesteps, 5.0)[0]
        torch.testing.assert_close(weighted, weight * plain)
        assert (weight < 1) == (timestep == 3)


# --- the loss ---


def test_training_step_is_the_recorded_one_of_the_official_code():
    golden = {name: torch.from_numpy(value) for name, value in load_golden("stereogen_tiny").items()}
    vae, unet = make_kl_autoencoder(), make_recorded_unet()
    scheduler = DDPMScheduler(**read_golden_config("stereogen_tiny")["ddpm_config"])
    truth = golden["train_image_u8"].permute(0, 3, 1, 2) / 127.5 - 1
    warped = golden["train_warped"].float().permute(0, 3, 1, 2) / 127.5 - 1
    hole = golden["train_mask"]
    pair = WarpedPair(truth, warped.masked_fill(hole, 0.0), hole)
    batch = encode_pair(vae, pair, "nearest", golden["empty_text_embed"])
    close = {"rtol": 0.0, "atol": 1e-4}
    torch.testing.assert_close(batch.target_latents, golden["train_image_latent"], **close)
    torch.testing.assert_close(batch.masked_image_latents, golden["train_masked_latent"], **close)
    assert torch.equal(batch.latent_mask, golden["train_mask_latent"].float())
    loss = denoising_loss(
        unet, scheduler, batch, golden["train_noise"], golden["train_timestep"], known_weight=1.0, hole_weight=0.0
    )
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in unet.parameters()]).norm()
    assert loss.item() == pytest.approx(1.317655, rel=1e-5) == float(golden["train_loss"])
    assert norm.item() == pytest.approx(3.911588, rel=1e-4) == float(golden["train_grad_norm"])


def test_unet_sees_noisy_latents_mask_and_masked_latents_in_this_order():
    batch, unet = make_batch(), ConstantUnet()
    inpainting_loss(unet, make_scheduler("sample"), batch, step_generator(0, 0, 0), last_timestep_share=1.0)
    assert unet.sample.shape == (3, 5, 16, 24)
    noise = torch.randn(batch.target_latents.shape, generator=step_generator(0, 0, 0))
    torch.testing.assert_close(unet.sample[:, :2], noise)  # zero terminal SNR: nothing but noise at the last timestep
    assert torch.equal(unet.sample[:, 2:3], batch.latent_mask)
    assert torch.equal(unet.sample[:, 3:], batch.masked_image_latents)
    assert unet.timesteps.tolist() == [999] * 3
    assert torch.equal(unet.prompt, batch.prompt_embeds)


def test_loss_weighs_holes_and_their_neighbours():
    mask = torch.zeros(1, 1, 5, 7)
    mask[0, 0, 1, 2] = 1  # dilated: 3 x 3 of 35 latent pixels
    batch = InpaintingBatch(torch.full((1, 2, 5, 7), 2.0), torch.zeros(1, 2, 5, 7), mask, PROMPT)
    loss = inpainting_loss(ConstantUnet(0.5), make_scheduler("sample"), batch, step_generator(0, 0, 0))
    assert loss.item() == pytest.approx(1.5**2 * (KNOWN_WEIGHT + HOLE_WEIGHT * 9 / 35))
    plain = inpainting_loss(
        ConstantUnet(0.5), make_scheduler("sample"), batch, step_generator(0, 0, 0), known_weight=1.0, hole_weight=0.0
    )
    assert plain.item() == pytest.approx(1.5**2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
def test_loss_is_finite_and_reaches_only_the_unet(kind, scheduler_class):
    torch.manual_seed(0)
    vae, unet = make_vae(), make_unet(2, (8, 8))
    batch = encode_pair(vae, make_pair(), "max", PROMPT)
    scheduler = scheduler_class.from_config(make_scheduler(kind).config)
    loss = inpainting_loss(unet, scheduler, batch, step_generator(0, 0, 0), last_timestep_share=0.3)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in vae.parameters())
    # a prompt of zeros cannot teach the weights it is multiplied with
    without = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(".attn2." in name or ".norm2." in name for name in without), without


def test_loss_repeats_and_depends_on_the_generator():
    batch, scheduler = make_batch(), make_scheduler("epsilon")
    state = torch.random.get_rng_state()
    first, again, other = (
        inpainting_loss(ConstantUnet(), scheduler, batch, step_generator(0, step, 0)).item() for step in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_thirty_steps_on_one_batch_lower_the_loss():
    torch.manual_seed(0)
    batch, scheduler, unet = make_batch(), make_scheduler("sample"), make_unet(2, (8, 8))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = inpainting_loss(unet, scheduler, batch, step_generator(0, 0, 0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
