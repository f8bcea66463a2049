# SPDX-License-Identifier: Apache-2.0
"""Real components at tiny size, made from configurations with weights from a formula: no download, no random numbers.

Two pipelines are built of them. `official_pipeline` has the layout of the published weights: AutoencoderKL with
factor 8 and 4 latent channels, UNet with 9 input channels, text encoder, DDIM that predicts the noise.
`embedded_pipeline` has that of the weights in this repository: AutoencoderTiny with factor 2 and 8 channels, UNet with
17 input channels, a configured prompt embedding, DDIM that predicts the sample.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    GLPNConfig,
    GLPNForDepthEstimation,
)

from pipeline_zerostereo import ZeroStereoPipeline
from tests.golden_files import GOLDEN_FOLDER

BOS, EOS = 998, 999  # tokens of the empty prompt
PROMPT_CHANNELS = 32


def read_golden_config(name: str) -> dict[str, Any]:
    """Return tests/goldens/<name>.json."""
    return json.loads((GOLDEN_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def values_by_rule(i: int, name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Return the float64 values that tests/goldens/README.md describes for the i-th name of a state dict."""
    count = math.prod(shape)
    n = torch.arange(count, dtype=torch.float64)
    x = torch.sin(12.9898 * n + 78.233 * i + 1.0) * 43758.5453
    b = 2 * (x - x.floor()) - 1
    if len(shape) >= 2:
        b = math.sqrt(3) / math.sqrt(count / shape[0]) * b
    else:
        b = 0.05 * b if name.endswith("bias") else 1 + 0.1 * b
    return b.view(shape)


def fill_by_rule(module: nn.Module) -> nn.Module:
    """Give a network the weights that tests/goldens/README.md describes, and put it into evaluation mode."""
    state = module.state_dict()
    for i, name in enumerate(sorted(state)):
        if state[name].is_floating_point():
            state[name].copy_(values_by_rule(i, name, state[name].shape))
    return module.eval()


def make_unet(latent_channels: int = 4) -> UNet2DConditionModel:
    """2 x latent + 1 input channels; the recorded network for 4 latent channels, a smaller one for others."""
    config = read_golden_config("stereogen_tiny")["unet_config"]
    if latent_channels != 4:
        smaller = {"in_channels": 2 * latent_channels + 1, "out_channels": latent_channels}
        config = {**config, **smaller, "block_out_channels": (16, 32)}
    return fill_by_rule(UNet2DConditionModel(**config))


def make_kl_autoencoder() -> AutoencoderKL:
    """Factor 8, 4 channels."""
    return fill_by_rule(AutoencoderKL(**read_golden_config("stereogen_tiny")["vae_config"]))


def make_tiny_autoencoder() -> AutoencoderTiny:
    """Factor 2, 8 channels."""
    return fill_by_rule(
        AutoencoderTiny(
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=8,
        )
    )


def make_ddim(**changes: Any) -> DDIMScheduler:
    """DDIM as the published weights use it, but for `changes`."""
    return DDIMScheduler(**{**read_golden_config("stereogen_tiny")["ddim_config"], **changes})


def make_sample_ddim() -> DDIMScheduler:
    """DDIM as the weights in this repository use it."""
    return make_ddim(prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def make_depth_anything() -> DepthAnythingForDepthEstimation:
    """Depth Anything with patch 14 and inverse depth around 2; by default its last ReLU would leave only zeros."""
    backbone = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    network = fill_by_rule(DepthAnythingForDepthEstimation(config))
    nn.init.constant_(network.head.conv3.bias, 2.0)
    return network


def make_recorded_depth_anything() -> DepthAnythingForDepthEstimation:
    """Depth Anything V2 `vits` with the weights behind tests/goldens/dav2_vits.npz.

    The rule counts the names of the official network; its fused query, key and value are three tensors here.
    """
    names = read_golden_config("dav2_vits_hf_key_map")
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**names["config"]["backbone"]), **names["config"]["depth_anything"]
    )
    network = DepthAnythingForDepthEstimation(config)
    official = {key["name"]: key for key in read_golden_config("dav2_vits_keys")["keys"]}
    state, filled = network.state_dict(), set()
    for official_name, name, third in names["map"]:
        if name in state:  # transformers has no mask token unless it is configured
            key = official[official_name]
            value = values_by_rule(key["i"], official_name, tuple(key["shape"]))
            state[name].copy_(value if third is None else value.chunk(3)[third])
            filled.add(name)
    assert filled == set(state)
    return network.eval()


def make_dpt() -> DPTForDepthEstimation:
    """DPT on BEiT, as MiDaS 3.1 has it: patch 16, inverse depth around 2, pictures of any aspect ratio."""
    backbone = BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        use_mask_token=False,
        use_absolute_position_embeddings=False,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = DPTConfig(
        backbone_config=backbone, hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False
    )
    network = fill_by_rule(DPTForDepthEstimation(config))
    nn.init.constant_(network.head.head[4].bias, 2.0)
    return network


def make_glpn() -> GLPNForDepthEstimation:
    """GLPN, which predicts depth, not inverse depth, and wants sizes that are multiples of 32."""
    config = GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return fill_by_rule(GLPNForDepthEstimation(config))


def make_text_encoder() -> CLIPTextModel:
    return fill_by_rule(CLIPTextModel(CLIPTextConfig(**read_golden_config("text_encoder_tiny")["text_config"])))


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write tokenizer files into a folder and load them; the empty prompt is [BOS, EOS]."""
    vocabulary = {f"word{token}</w>": token for token in range(BOS)}
    vocabulary.update({"<|startoftext|>": BOS, "<|endoftext|>": EOS})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def configured_prompt() -> list[list[float]]:
    """Two tokens that resemble nothing the text encoder makes."""
    return torch.sin(0.7 * torch.arange(2.0 * PROMPT_CHANNELS) + 0.3).view(2, PROMPT_CHANNELS).tolist()


def official_pipeline(tokenizer_folder: Path, **changes: Any) -> ZeroStereoPipeline:
    """Return a pipeline laid out like the published weights, with `changes` to its arguments."""
    arguments = {
        "unet": make_unet(),
        "vae": make_kl_autoencoder(),
        "scheduler": make_ddim(),
        "depth_estimator": make_depth_anything(),
        "text_encoder": make_text_encoder(),
        "tokenizer": make_tokenizer(tokenizer_folder),
        "default_num_inference_steps": 3,
    }
    return quiet(ZeroStereoPipeline(**{**arguments, **changes}))


def embedded_pipeline(**changes: Any) -> ZeroStereoPipeline:
    """Return a pipeline laid out like the weights in this repository, with `changes` to its arguments."""
    arguments = {
        "unet": make_unet(latent_channels=8),
        "vae": make_tiny_autoencoder(),
        "scheduler": make_sample_ddim(),
        "depth_estimator": make_depth_anything(),
        "latent_mask_reduction": "max",
        "masked_fill": "background",
        "default_num_inference_steps": 2,
        "default_depth_resolution": 42,
        "empty_prompt_embeds": configured_prompt(),
    }
    return quiet(ZeroStereoPipeline(**{**arguments, **changes}))


DEPTH_ANYTHING_PROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "ensure_multiple_of": 14,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "keep_aspect_ratio": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 518, "width": 518},
}
DPT_PROCESSOR = {
    **DEPTH_ANYTHING_PROCESSOR,
    "ensure_multiple_of": 1,
    "image_mean": [0.5, 0.25, 0.75],
    "image_std": [0.5, 0.625, 0.125],
    "size": {"height": 512, "width": 384},
}
GLPN_PROCESSOR = {
    "image_processor_type": "GLPNImageProcessor",
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,
    "size_divisor": 32,
}


def write_depth_model(folder: Path, network: nn.Module, processor: dict[str, Any] | None) -> Path:
    """Save a depth model as its repository holds it: config, weights, and preprocessor_config.json."""
    network.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def write_base(folder: Path, layout: str = "StereoGen") -> Path:
    """Save the five parts as the published weights hold them: in StereoGen/, or in the folder itself."""
    for name, part in {
        "unet": make_unet(),
        "vae": make_kl_autoencoder(),
        "scheduler": make_ddim(),
        "text_encoder": make_text_encoder(),
    }.items():
        part.save_pretrained(folder / layout / name)
    make_tokenizer(folder / layout / "tokenizer").save_pretrained(folder / layout / "tokenizer")
    return folder


def make_sdxl_unet() -> UNet2DConditionModel:
    """A 9-channel inpainting UNet with the added conditions of SDXL: a pooled embedding and six sizes."""
    return fill_by_rule(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=9,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=2 * PROMPT_CHANNELS,
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )
    )


def write_sdxl_base(folder: Path) -> Path:
    """Save the parts of an SDXL inpainting model: two text encoders, the second with a pooled projection."""
    text_config = {**read_golden_config("text_encoder_tiny")["text_config"], "projection_dim": 24}
    second = fill_by_rule(CLIPTextModelWithProjection(CLIPTextConfig(**text_config)))
    for name, part in {
        "unet": make_sdxl_unet(),
        "vae": make_kl_autoencoder(),
        "scheduler": make_ddim(),
        "text_encoder": make_text_encoder(),
        "text_encoder_2": second,
    }.items():
        part.save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        make_tokenizer(folder / name).save_pretrained(folder / name)
    return folder


def quiet(pipeline: ZeroStereoPipeline) -> ZeroStereoPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_photos(batch_size: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return photographs [B,3,H,W] that hold only whole steps of 1/255: a ramp, a bright block and some noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    photos = torch.stack([0.2 + 0.5 * y, 0.1 + 0.6 * x, 0.7 - 0.3 * y * x]).repeat(batch_size, 1, 1, 1)
    for b in range(batch_size):
        photos[b, :, height // 3 : height // 2, width // (3 + b) : width // 2] = 0.9
    photos = (photos + 0.1 * torch.rand(photos.shape, generator=generator)).clamp(0, 1)
    return (photos * 255).round() / 255


def make_disparity(batch_size: int, height: int, width: int) -> Tensor:
    """Return disparity [B,1,H,W] in px: a slope of 0 to 3 and a near block of 7.25."""
    disparity = torch.linspace(0, 3, height).view(1, 1, height, 1).repeat(batch_size, 1, 1, width)
    disparity[:, :, height // 3 : height // 2, width // 3 : width // 2] = 7.25
    return disparity


def seeded(*seeds: int) -> torch.Generator | list[torch.Generator]:
    """Return one generator, or a list of one per seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators[0] if len(generators) == 1 else generators


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the first argument of every run of a network."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    yield seen
    handle.remove()


@contextmanager
def must_not_run(module: nn.Module) -> Iterator[None]:
    def refuse(_, args):
        raise AssertionError(f"{type(module).__name__} ran")

    handle = module.register_forward_pre_hook(refuse)
    yield
    handle.remove()


class FormulaDepth(nn.Module):
    """A depth network whose output is known: a formula of its input, with the interface that the pipeline uses."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, formula: Any):
        super().__init__()
        self.formula = formula

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(predicted_depth=self.formula(pixel_values))


def formula_pipeline(formula: Any, **changes: Any) -> ZeroStereoPipeline:
    """Return a pipeline whose depth network gets the plain photograph, not normalised and hardly padded."""
    plain = {
        "depth_mean": [0.0, 0.0, 0.0],
        "depth_std": [1.0, 1.0, 1.0],
        "depth_size_multiple": 2,
        "default_depth_resolution": 0,
    }
    return embedded_pipeline(depth_estimator=FormulaDepth(formula), **{**plain, **changes})


def assert_fields_agree(
    found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float, name: str = ""
) -> None:
    """Two outputs, as "np" or read from .npz files, agree in every field, numbers within a tolerance."""
    assert set(found) == set(expected), name
    for field in expected:
        if field == "target_view":  # a word
            assert str(found[field]) == str(expected[field]), name
        else:
            np.testing.assert_allclose(
                found[field], expected[field], rtol=0, atol=tolerance, err_msg=f"{name}: {field}"
            )
