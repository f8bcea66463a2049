# SPDX-License-Identifier: Apache-2.0
"""The base of a fine-tuning: every layout is read, nothing is assumed, what cannot be trained is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, VQModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from pipeline_zerostereo import decode_compact_prompt
from tests.tiny_components import (
    configured_prompt,
    embedded_pipeline,
    make_text_encoder,
    make_unet,
    write_base,
    write_sdxl_base,
)
from training.base_model import load_base
from training.inpainting_loss import InpaintingBatch, inpainting_loss
from training.public_parts import PartError
from training.run import step_generator


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    return write_sdxl_base(tmp_path_factory.mktemp("sdxl"))


def copy_of(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            copied = target / path.relative_to(folder)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
    return target


def make_batch(prompt_embeds: Tensor, h: int = 8, w: int = 12) -> InpaintingBatch:
    generator = torch.Generator().manual_seed(3)
    target, masked = torch.randn((2, 2, 4, h, w), generator=generator)
    return InpaintingBatch(target, masked, torch.ones(2, 1, h, w), prompt_embeds.expand(2, -1, -1))


def test_stereogen_layout_is_read(official):
    base = load_base(str(official))
    assert base.unet.config.in_channels == 9 and base.vae_factor == 8 and base.crop_multiple == 16
    assert base.scheduler.config.prediction_type == "epsilon"
    expected = make_text_encoder()(torch.tensor([[998, 999]]))[0]
    torch.testing.assert_close(base.prompt_embeds, expected)
    compact = base.settings.pop("empty_prompt_embeds")
    assert torch.equal(decode_compact_prompt(compact), base.prompt_embeds[0])
    assert base.settings == {} and base.is_pipeline and base.load_depth_estimator() is None


def test_pipeline_folder_gives_its_settings_prompt_and_depth_network(tmp_path):
    embedded_pipeline().save_pretrained(tmp_path / "folder")
    base = load_base(str(tmp_path / "folder"))
    assert base.unet.config.in_channels == 17 and base.vae_factor == 2
    assert base.scheduler.config.prediction_type == "sample" and base.scheduler.alphas_cumprod[-1] == 0
    torch.testing.assert_close(base.prompt_embeds, torch.tensor(configured_prompt())[None])
    found = {
        name: base.settings[name] for name in ("latent_mask_reduction", "masked_fill", "default_depth_resolution")
    }
    assert found == {"latent_mask_reduction": "max", "masked_fill": "background", "default_depth_resolution": 42}
    assert type(base.load_depth_estimator()).__name__ == "DepthAnythingForDepthEstimation"


def test_only_the_unet_learns(official):
    base = load_base(str(official))
    assert all(p.requires_grad for p in base.unet.parameters())
    assert not any(p.requires_grad for p in base.vae.parameters()) and not base.vae.training


def test_half_precision_weights_are_trained_in_full(official, tmp_path):
    folder = copy_of(official, tmp_path / "half")
    make_unet().half().save_pretrained(folder / "StereoGen/unet")
    assert load_base(str(folder)).unet.dtype == torch.float32


# --- SDXL ---


def test_sdxl_unet_gets_its_constant_conditions_in_every_call(sdxl):
    base = load_base(str(sdxl))
    assert not base.is_pipeline and base.prompt_embeds.shape == (1, 2, 64)
    plain = UNet2DConditionModel.from_pretrained(sdxl / "unet")
    sample, prompt = torch.randn(2, 9, 8, 12, generator=step_generator(0, 0, 0)), base.prompt_embeds.expand(2, -1, -1)
    encoder = CLIPTextModelWithProjection.from_pretrained(sdxl / "text_encoder_2").eval()
    pooled = encoder(torch.tensor([[998, 999]])).text_embeds
    added = {
        "text_embeds": pooled.expand(2, -1),
        "time_ids": torch.tensor([[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]]).expand(2, -1),
    }
    with torch.no_grad():
        expected = plain(sample, 7, encoder_hidden_states=prompt, added_cond_kwargs=added).sample
        torch.testing.assert_close(base.unet(sample, 7, encoder_hidden_states=prompt).sample, expected)
        added["time_ids"] = added["time_ids"] + 100
        given = base.unet(sample, 7, encoder_hidden_states=prompt, added_cond_kwargs=added).sample
    assert (given - expected).abs().max() > 1e-4  # a caller's own conditions are not replaced


def test_sdxl_unet_is_trained(sdxl):
    base = load_base(str(sdxl))
    batch, optimizer = make_batch(base.prompt_embeds), torch.optim.AdamW(base.unet.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = inpainting_loss(base.unet, base.scheduler, batch, step_generator(0, 0, 0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_sdxl_without_a_second_text_encoder_is_refused(sdxl, tmp_path):
    folder = copy_of(sdxl, tmp_path / "base")
    (folder / "text_encoder_2").rename(folder / "elsewhere")
    config = json.loads((folder / "unet/config.json").read_text())
    UNet2DConditionModel.from_config({**config, "cross_attention_dim": 32}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="`--base` must have a second text encoder .* the 72 values .*; got 0"):
        load_base(str(folder))


def test_other_number_of_sizes_is_refused(sdxl, tmp_path):
    folder = copy_of(sdxl, tmp_path / "base")
    config = json.loads((folder / "unet/config.json").read_text())
    config["projection_class_embeddings_input_dim"] = 24 + 5 * 8
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="`--base` must have a second text encoder .* the 64 values .*; got 72"):
        load_base(str(folder))


# --- what is refused ---


def test_text_to_image_model_is_refused(official, tmp_path):
    folder = copy_of(official, tmp_path / "base")
    config = json.loads((folder / "StereoGen/unet/config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 4}).save_pretrained(folder / "StereoGen/unet")
    with pytest.raises(
        ValueError, match="`--base` must be an inpainting model: 9 channels in and 4 out.*; got 4 and 4"
    ):
        load_base(str(folder))


def test_unknown_added_conditions_are_refused(official, tmp_path):
    folder = copy_of(official, tmp_path / "base")
    config = json.loads((folder / "StereoGen/unet/config.json").read_text())
    config |= {"class_embed_type": "timestep"}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "StereoGen/unet")
    with pytest.raises(
        ValueError, match="`--base` must have a UNet without added conditions.* got None and .*'timestep'"
    ):
        load_base(str(folder))


def test_text_encoder_of_another_width_is_refused(official, tmp_path):
    folder = copy_of(official, tmp_path / "base")
    config = json.loads((folder / "StereoGen/unet/config.json").read_text())
    UNet2DConditionModel.from_config({**config, "cross_attention_dim": 48}).save_pretrained(folder / "StereoGen/unet")
    with pytest.raises(ValueError, match="`--base` must have text encoders of 48 channels .*; got 32"):
        load_base(str(folder))


def test_no_text_encoder_and_no_embedding_is_refused(official, tmp_path):
    folder = copy_of(official, tmp_path / "base")
    (folder / "StereoGen/text_encoder").rename(folder / "elsewhere")
    with pytest.raises(
        ValueError, match=r"`--base` must hold `empty_prompt_embeds` or a text encoder; .*'text_encoder'"
    ):
        load_base(str(folder))


def test_missing_parts_are_named(tmp_path):
    make_unet().save_pretrained(tmp_path / "base/unet")
    with pytest.raises(PartError, match=r"`--base` must have the folders \['unet', 'vae', 'scheduler'\]; .*'vae'"):
        load_base(str(tmp_path / "base"))


def test_other_autoencoder_is_refused(official, tmp_path):
    folder = copy_of(official, tmp_path / "base")
    VQModel(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder / "StereoGen/vae")
    with pytest.raises(ValueError, match="`--base` must be of class AutoencoderKL or AutoencoderTiny; got VQModel"):
        load_base(str(folder))
