# SPDX-License-Identifier: Apache-2.0
"""What users of diffusers try: LoRA, offloading, dtypes, schedulers, memory savers, compilation, missing parts."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
)
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import logging
from torch import nn

from pipeline_zerostereo import ZeroStereoPipeline
from tests.tiny_components import (
    embedded_pipeline,
    make_ddim,
    make_disparity,
    make_photos,
    official_pipeline,
    quiet,
    seeded,
)

B, H, W = 2, 45, 70
NETWORKS = ("depth_estimator", "text_encoder", "unet", "vae")


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return make_photos(B, H, W)


@pytest.fixture(scope="module")
def disparity() -> torch.Tensor:
    return make_disparity(B, H, W)


@pytest.fixture
def pipe(tmp_path) -> ZeroStereoPipeline:
    return official_pipeline(tmp_path / "tokenizer")


def fill(pipe: ZeroStereoPipeline, photos: torch.Tensor, disparity: torch.Tensor, **arguments) -> torch.Tensor:
    return pipe(photos, disparity=disparity, generator=seeded(1, 2), output_type="pt", **arguments).images


# --- LoRA ---


@pytest.fixture
def lora(tmp_path, require) -> tuple[Path, nn.Module]:
    """An adapter of attention and of the 9-channel input convolution, with alpha 16 at rank 4."""
    peft = require("peft")
    trained = official_pipeline(tmp_path / "tokenizer").unet
    trained.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v", "conv_in"], init_lora_weights=False)
    )
    generator = seeded(7)
    with torch.no_grad():
        for name, parameter in sorted(trained.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    StableDiffusionInpaintPipeline.save_lora_weights(
        tmp_path / "lora",
        unet_lora_layers=peft.get_peft_model_state_dict(trained),
        **_collate_lora_metadata({"unet": trained}),
    )
    return tmp_path / "lora", trained


@pytest.fixture
def library_log(caplog) -> Iterator[pytest.LogCaptureFixture]:
    """What the library logs, which it otherwise keeps from the root logger."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def without_text_encoder(pipe: ZeroStereoPipeline) -> ZeroStereoPipeline:
    embedding = pipe.encode_empty_prompt()[0].tolist()
    return quiet(
        ZeroStereoPipeline(
            unet=pipe.unet,
            vae=pipe.vae,
            scheduler=pipe.scheduler,
            default_num_inference_steps=3,
            empty_prompt_embeds=embedding,
        )
    )


@pytest.mark.parametrize("text_encoder", [True, False])
def test_lora_is_loaded_scaled_fused_and_unloaded(lora, library_log, pipe, photos, disparity, recwarn, text_encoder):
    file, unet = lora
    if not text_encoder:
        pipe = without_text_encoder(pipe)
    plain = fill(pipe, photos, disparity)
    pipe.load_lora_weights(file, adapter_name="ours")
    adapted = fill(pipe, photos, disparity)
    expected = quiet(
        ZeroStereoPipeline(
            **{**pipe.components, "unet": unet},
            default_num_inference_steps=3,
            empty_prompt_embeds=pipe.config.empty_prompt_embeds,
        )
    )
    assert torch.equal(adapted, fill(expected, photos, disparity)), "the very adapter, its alpha and conv_in included"
    assert (adapted - plain).abs().max() > 0.01

    pipe.set_adapters(["ours"], [0.0])
    torch.testing.assert_close(fill(pipe, photos, disparity), plain, rtol=0, atol=1e-5)
    pipe.set_adapters(["ours"], [1.0])

    pipe.fuse_lora()
    torch.testing.assert_close(fill(pipe, photos, disparity), adapted, rtol=0, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(fill(pipe, photos, disparity), plain, rtol=0, atol=1e-5)
    assert not [name for name, _ in pipe.unet.named_parameters() if "lora" in name]
    assert not library_log.records and not [one for one in recwarn if "lora" in str(one.message).lower()]


def test_lora_concerns_the_unet_alone():
    assert ZeroStereoPipeline._lora_loadable_modules == ["unet"]


# --- where networks run ---


def test_networks_run_in_the_order_of_offloading(pipe, photos):
    """Hooks of accelerate stand in for an accelerator: each network is entered through a call that they see."""
    assert ZeroStereoPipeline.model_cpu_offload_seq.split("->") == list(NETWORKS)
    entered = []

    class Recorder(ModelHook):
        def __init__(self, name: str):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            if not entered or entered[-1] != self.name:
                entered.append(self.name)
            return args, kwargs

    for name in NETWORKS:
        add_hook_to_module(getattr(pipe, name), Recorder(name))
    pipe(photos, generator=seeded(1, 2))
    # The autoencoder is needed before and after the UNet, as in Stable Diffusion's inpainting.
    assert entered == ["depth_estimator", "vae", "text_encoder", "unet", "vae"]
    for name in NETWORKS:
        remove_hook_from_module(getattr(pipe, name))


def test_moving_returns_the_pipeline_itself(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu")
    assert torch.equal(fill(pipe, photos, disparity), before)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["to", "model", "sequential", "group"])
def test_an_accelerator_gives_the_same_pair(pipe, photos, way):
    expected = pipe(photos, generator=seeded(1, 2), output_type="pt")
    if way == "to":
        pipe.to("cuda")
    elif way == "model":
        pipe.enable_model_cpu_offload()
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.enable_group_offload(onload_device=torch.device("cuda"), offload_type="leaf_level")
    found = pipe(photos, generator=seeded(1, 2), output_type="pt")
    assert found.images.device.type == "cuda"
    assert (found.hole_mask.cpu() != expected.hole_mask).float().mean() < 0.01
    both = (~found.hole_mask.cpu() & ~expected.hole_mask).expand(-1, 3, -1, -1)
    assert (found.images.cpu() - expected.images)[both].abs().mean() < 0.01


# --- dtypes ---


def test_a_dtype_for_each_component(pipe, photos, disparity, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    loaded = quiet(
        ZeroStereoPipeline.from_pretrained(
            tmp_path / "saved",
            dtype={"default": torch.bfloat16, "depth_estimator": torch.float32, "vae": torch.float32},
        )
    )
    assert (loaded.unet.dtype, loaded.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (loaded.vae.dtype, loaded.depth_estimator.dtype) == (torch.float32, torch.float32)
    exact, rounded = (one(photos, generator=seeded(1, 2), output_type="pt") for one in (pipe, loaded))
    assert torch.equal(exact.disparity, rounded.disparity) and rounded.images.dtype == torch.float32


def test_layerwise_casting_of_the_unet(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    after = fill(pipe, photos, disparity)
    assert after.isfinite().all() and (after - before).abs().mean() < 0.05


# --- schedulers ---

SCHEDULERS = [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_any_scheduler_and_kind_of_prediction(photos, disparity, scheduler, prediction):
    pipe = embedded_pipeline()
    pipe.scheduler = scheduler.from_config(make_ddim(prediction_type=prediction).config)
    images = fill(pipe, photos, disparity, num_inference_steps=3)
    assert images.isfinite().all() and pipe.num_timesteps == 3
    assert torch.equal(fill(pipe, photos, disparity, num_inference_steps=3), images)


def test_a_scheduler_can_be_exchanged(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    config = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
    assert not torch.equal(fill(pipe, photos, disparity), before)
    pipe.scheduler = DDIMScheduler.from_config(config)
    assert torch.equal(fill(pipe, photos, disparity), before)


def test_steps_may_be_given_one_by_one(pipe, photos, disparity):
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    seen = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(int(args[1])))
    images = fill(pipe, photos, disparity, timesteps=[901, 500, 77])
    handle.remove()
    assert seen == [901, 500, 77] and pipe.num_timesteps == 3 and images.isfinite().all()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    fill(pipe, photos, disparity, sigmas=[9.0, 3.0, 1.0, 0.2])
    assert pipe.scheduler.sigmas[:4].tolist() == pytest.approx([9.0, 3.0, 1.0, 0.2])


def test_eta_makes_ddim_draw_noise_from_each_photographs_generator(pipe, photos, disparity):
    plain, noisy = fill(pipe, photos, disparity), fill(pipe, photos, disparity, eta=1.0)
    assert not torch.equal(plain, noisy)
    single = pipe(photos[1:], disparity=disparity[1:], generator=seeded(2), eta=1.0, output_type="pt").images
    torch.testing.assert_close(noisy[1:], single, rtol=0, atol=1e-5)


# --- memory and speed ---


def test_attention_slicing(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    for size in ("auto", "max", 1):
        pipe.enable_attention_slicing(size)
        torch.testing.assert_close(fill(pipe, photos, disparity), before, rtol=0, atol=1e-4)
    pipe.disable_attention_slicing()
    torch.testing.assert_close(fill(pipe, photos, disparity), before, rtol=0, atol=1e-4)


def test_slicing_of_the_autoencoder(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(fill(pipe, photos, disparity), before, rtol=0, atol=1e-5)


def test_tiling_of_the_autoencoder(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 4  # smaller than 48x72, so that it tiles
    calls = []
    pipe.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    images = fill(pipe, photos, disparity)
    assert len(calls) > 1 and images.shape == before.shape and images.isfinite().all()
    pipe.vae.disable_tiling()
    torch.testing.assert_close(fill(pipe, photos, disparity), before, rtol=0, atol=1e-5)


def test_channels_last(pipe, photos, disparity):
    before = fill(pipe, photos, disparity)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fill(pipe, photos, disparity), before, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_compiled_unet(photos, disparity, tmp_path):
    pipe = embedded_pipeline()
    before = fill(pipe, photos, disparity)
    pipe.unet.compile(fullgraph=True)
    torch.testing.assert_close(fill(pipe, photos, disparity), before, rtol=0, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(ZeroStereoPipeline.from_pretrained(tmp_path).unet.conv_in.weight, pipe.unet.conv_in.weight)


# --- components ---


def test_every_optional_component_may_be_none(photos, disparity, tmp_path):
    """As in the library's own suites: set each to None, save, load, call."""
    pipe = embedded_pipeline()
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    images = fill(pipe, photos, disparity)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(ZeroStereoPipeline.from_pretrained(tmp_path))
    for name in pipe._optional_components:
        assert getattr(loaded, name) is None, name
    assert torch.equal(fill(loaded, photos, disparity), images)


def test_components_are_all_that_a_pipeline_needs(pipe, photos, disparity):
    other = quiet(ZeroStereoPipeline(**pipe.components, default_num_inference_steps=3))
    assert torch.equal(fill(other, photos, disparity), fill(pipe, photos, disparity))


def test_nothing_that_was_given_is_changed(pipe, photos, disparity):
    """Also by the ways to fill, the views and the steps that the plain call does not touch."""
    weights = {
        name: [value.clone() for value in getattr(pipe, name).state_dict().values()]
        for name in NETWORKS
        if isinstance(getattr(pipe, name), nn.Module)
    }
    scheduler = dict(pipe.scheduler.config)
    generators, scales = seeded(1, 2), [0.1, 0.2]
    before = [value.clone() for value in (photos, disparity)]
    config = copy.deepcopy(dict(pipe.config))
    for arguments in ({"fill": "tiled"}, {"fill": "background"}, {"inpaint_resolution": 24}, {"eta": 0.5}):
        for target_view in ("left", "both"):
            pipe(
                photos,
                inverse_depth=disparity,
                disparity_scale=scales,
                target_view=target_view,
                generator=generators,
                **arguments,
            )
    assert torch.equal(photos, before[0]) and torch.equal(disparity, before[1]) and scales == [0.1, 0.2]
    assert dict(pipe.scheduler.config) == scheduler and dict(pipe.config) == config
    for name, kept in weights.items():
        for value, other in zip(getattr(pipe, name).state_dict().values(), kept, strict=True):
            assert torch.equal(value, other), name


def test_output_can_be_indexed_like_any_of_the_library(pipe, photos):
    output = pipe(photos, generator=seeded(1, 2), output_type="np")
    assert output[0] is output.images and output["hole_mask"] is output.hole_mask
    assert math.isclose(float(np.mean(output.to_tuple()[0])), float(output.images.mean()))
