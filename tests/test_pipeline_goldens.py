# SPDX-License-Identifier: Apache-2.0
"""The pipeline's steps against recorded outputs of the official code (tests/goldens/README.md)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline_zerostereo import ZeroStereoPipeline, decode_latents, encode_latents, reduce_mask_to_latent
from tests.golden_files import image_to_tensor, load_golden
from tests.tiny_components import (
    fill_by_rule,
    make_ddim,
    make_kl_autoencoder,
    make_sample_ddim,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    quiet,
    read_golden_config,
)

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """All arrays of stereogen_tiny.npz as tensors of unchanged shape."""
    return {name: torch.from_numpy(value) for name, value in load_golden("stereogen_tiny").items()}


@pytest.fixture(scope="module")
def pipe(golden) -> ZeroStereoPipeline:
    """The official configuration: masks reduced to the top-left pixel, holes shown as grey, the recorded prompt."""
    return quiet(
        ZeroStereoPipeline(
            unet=make_unet(),
            vae=make_kl_autoencoder(),
            scheduler=make_ddim(),
            empty_prompt_embeds=golden["empty_text_embed"][0].tolist(),
        )
    )


@pytest.mark.parametrize(
    ("network", "keys"), [(make_unet, "unet_keys"), (make_kl_autoencoder, "vae_keys")], ids=["unet", "vae"]
)
def test_tiny_networks_have_the_recorded_parameters(network, keys):
    recorded = [(entry["name"], entry["shape"]) for entry in read_golden_config("stereogen_tiny")[keys]]
    assert [(name, list(value.shape)) for name, value in sorted(network().state_dict().items())] == recorded


def test_fill_rule_by_hand():
    linear = fill_by_rule(nn.Linear(2, 3))

    def b(i: int, n: int) -> float:
        x = np.sin(12.9898 * n + 78.233 * i + 1.0) * 43758.5453
        return 2 * (x - np.floor(x)) - 1

    np.testing.assert_allclose(linear.bias.tolist(), [0.05 * b(0, n) for n in range(3)], rtol=1e-6)
    expected = [[np.sqrt(3) / np.sqrt(2) * b(1, 2 * row + column) for column in range(2)] for row in range(3)]
    np.testing.assert_allclose(linear.weight.tolist(), expected, rtol=1e-6)


def test_encoding_is_the_scaled_posterior_mean(pipe, golden):
    with torch.no_grad():
        latents = encode_latents(pipe.vae, golden["masked_image"])
    torch.testing.assert_close(latents, golden["encode_image"], **TOLERANCE)


def test_decoding_of_the_encoding(pipe, golden):
    with torch.no_grad():
        decoded = decode_latents(pipe.vae, golden["encode_image"])
    assert decoded.min() < -1 and decoded.max() > 1  # not clamped
    torch.testing.assert_close(decoded, golden["decode_of_encode"], **TOLERANCE)


def test_mask_is_reduced_like_the_official_one(pipe, golden):
    reduced = reduce_mask_to_latent(golden["mask"][None, None], pipe.vae_scale_factor, "nearest")
    assert torch.equal(reduced, golden["mask_latent"] > 0.5)


def test_timesteps_of_fifty_steps(golden):
    scheduler = make_ddim()
    scheduler.set_timesteps(50)
    assert torch.equal(scheduler.timesteps, golden["timesteps_50"])


def test_three_denoising_steps_follow_the_official_ones(pipe, golden):
    """Every noise prediction and every latent on the way, and the picture at the end."""
    noise_predictions, latents, timesteps, unet_inputs = [], [], [], []

    def on_unet(module, args, output):
        unet_inputs.append(args[0])
        noise_predictions.append(output[0])

    def on_step_end(pipeline, step, timestep, tensors):
        latents.append(tensors["latents"])
        timesteps.append(int(timestep))
        return tensors

    hole = golden["mask"][None, None]
    assert not golden["masked_image"][hole.expand(-1, 3, -1, -1)].any()  # grey in holes, as `masked_fill="zero"` does
    handle = pipe.unet.register_forward_hook(on_unet)
    filled = pipe.inpaint(
        golden["masked_image"] / 2 + 0.5,
        hole,
        num_inference_steps=3,
        latents=golden["noise"],
        callback_on_step_end=on_step_end,
    )
    handle.remove()

    assert timesteps == golden["timesteps_3"].tolist() == [667, 334, 1]
    assert [tuple(value.shape) for value in unet_inputs] == [(1, 9, 8, 12)] * 3
    torch.testing.assert_close(unet_inputs[0][:, :4], golden["noise"])
    assert torch.equal(unet_inputs[0][:, 4:5], golden["mask_latent"])
    torch.testing.assert_close(unet_inputs[0][:, 5:], golden["encode_image"], **TOLERANCE)
    for step in range(3):
        torch.testing.assert_close(noise_predictions[step], golden[f"eps{step}"], **TOLERANCE)
        torch.testing.assert_close(latents[step], golden[f"x{step}"], **TOLERANCE)
    expected = torch.where(hole, golden["single_infer_3"], golden["masked_image"])
    torch.testing.assert_close(2 * filled - 1, expected, **TOLERANCE)


def test_whole_inpainting_stage(pipe, golden):
    """59x90 is padded to 64x96 and cut back; known pixels come from the warped view."""
    hole = golden["stage_hole"][None, None]
    warped = image_to_tensor(golden["stage_warped"].numpy()) / 255
    filled = pipe.inpaint(warped, hole, num_inference_steps=3, latents=golden["stage_noise"])
    assert filled.shape == (1, 3, 59, 90)
    expected = torch.where(hole, golden["stage_s1_pred"] / 2 + 0.5, warped)
    torch.testing.assert_close(filled, expected, **TOLERANCE)
    assert torch.equal(torch.where(hole, 0, filled), torch.where(hole, 0, warped))
    (picture,) = pipe.image_processor.postprocess(filled, "pil")
    difference = np.asarray(picture).astype(int) - golden["stage_s1_uint8"].numpy().astype(int)
    assert np.abs(difference).max() <= 1


def test_empty_prompt_is_two_tokens(tmp_path):
    golden = load_golden("mono_misc")
    pipe = ZeroStereoPipeline(
        unet=make_unet(),
        vae=make_kl_autoencoder(),
        scheduler=make_sample_ddim(),
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(tmp_path),
    )
    embedding = pipe.encode_empty_prompt()
    assert embedding.shape == (1, 2, 32)  # not padded to 77
    torch.testing.assert_close(embedding, torch.from_numpy(golden["text_2tokens"]), rtol=0, atol=1e-5)


class StubDepthNetwork(nn.Module):
    """The stand-in with which the official depth stage was recorded: a formula of colour and place in the input."""

    dtype = torch.float32
    device = torch.device("cpu")
    input_shape: tuple[int, ...] = ()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.input_shape = tuple(pixel_values.shape)
        height, width = pixel_values.shape[-2:]
        row, column = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
        red, green, blue = pixel_values.unbind(1)
        value = 0.6 * red + 0.3 * green - 0.1 * blue + 0.004 * column + 0.002 * row + 3
        return SimpleNamespace(predicted_depth=value.relu())


def test_depth_stage():
    golden = load_golden("mono_misc")
    pipe = ZeroStereoPipeline(
        unet=make_unet(), vae=make_kl_autoencoder(), scheduler=make_ddim(), depth_estimator=StubDepthNetwork()
    )
    normalized, flip = pipe.estimate_inverse_depth(image_to_tensor(golden["mono_image"]) / 255)
    assert pipe.depth_estimator.input_shape == (2, 3, 56, 84)  # 50x75 padded to multiples of 14, and its mirror image

    both = (golden["mono_scale1_inv"], golden["mono_scale1_flip"])
    expected, expected_of_mirror = ((value - value.min()) / (value.max() - value.min()) for value in both)
    expected_agreement = 1 - np.abs(expected - expected_of_mirror)
    torch.testing.assert_close(normalized, torch.from_numpy(expected), **TOLERANCE)
    torch.testing.assert_close(flip.agreement, torch.from_numpy(expected_agreement), **TOLERANCE)
    torch.testing.assert_close(flip.confidence, torch.from_numpy(golden["mono_scale1_conf"]), **TOLERANCE)
