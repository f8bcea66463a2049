# SPDX-License-Identifier: Apache-2.0
"""A small inpainting UNet from random weights on a pool of procedural scenes: options, networks, and its batches.

How the weights of this repository were made; nothing here is the paper's recipe. The UNet predicts the clean latents
("sample"): with so few parameters and minutes, predicting noise leaves coloured noise in the holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from training.augmentation import change_colors, draw_color_change
from training.base_model import InpaintingBase
from training.inpainting_loss import InpaintingBatch, WarpedPair, encode_pair, inpainting_loss, warp_pair
from training.inpainting_validation import HeldOutViews, hold_out
from training.procedural_scenes import SceneBatch
from training.run import option, require, step_generator
from training.scene_sampling import PoolConfig, draw_scenes, held_out_scenes, open_pool

CROP_MULTIPLE = 16  # px: latent factor 2 times the UNet's three halvings
PROMPT_CHANNELS = 32  # of the constant embedding that stands for the empty prompt
EMPTY_PROMPT = torch.zeros(1, PROMPT_CHANNELS)  # one token
BETAS = (0.9, 0.99)  # of AdamW
MAX_SATURATION = 2.0  # photographs have stronger colours than the scenes


@dataclass(frozen=True, kw_only=True)
class FromScratchConfig(PoolConfig):
    """Options of `train_inpainting` without a base: a small UNet of random weights learns from a pool of scenes."""

    vae: Path = option(help="folder of the trained autoencoder", group="network")
    channels: tuple[int, ...] = option((32, 64, 96, 96), help="channels of the UNet's levels", group="network")
    prediction_type: Literal["sample", "v_prediction", "epsilon"] = option(
        "sample", help="what the UNet predicts", group="network"
    )
    masked_fill: Literal["background", "zero"] = option(
        "background", help="how holes are covered before encoding", group="data"
    )
    latent_mask: Literal["max", "nearest"] = option("max", help="how the mask is brought to latent size", group="data")
    smallest_crop: int = option(128, help="smallest training crop, px", group="data", at_least=16)
    largest_crop: int = option(192, help="largest training crop, px", group="data", at_least=16)
    border_share: float = option(
        0.5, help="share of crops at the right border, where the view ends", group="data", at_least=0, at_most=1
    )
    last_timestep_share: float = option(
        0.3, help="share of samples at the last timestep", group="optimisation", at_least=0, at_most=1
    )

    def __post_init__(self):
        """Check ranges, multiples, and that crops fit into a scene."""
        super().__post_init__()
        for name in ("smallest_crop", "largest_crop"):
            value = getattr(self, name)
            require(value % CROP_MULTIPLE == 0, name, f"must be a multiple of {CROP_MULTIPLE} px", value)
        require(
            self.smallest_crop <= self.largest_crop, "smallest_crop", "must be <= `largest_crop`", self.smallest_crop
        )
        limit = f"must fit into `scene_size` {self.scene_size}"
        require(self.largest_crop <= min(self.scene_size), "largest_crop", limit, self.largest_crop)
        require(
            len(self.channels) >= 2 and all(c % 8 == 0 and c > 0 for c in self.channels),
            "channels",
            "must be two or more multiples of 8",
            self.channels,
        )


def make_unet(latent_channels: int, channels: tuple[int, ...]) -> UNet2DConditionModel:
    """Build an inpainting UNet of random weights; attention only at the lowest level, where pixels are few."""
    levels = len(channels)
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        layers_per_block=1,
        cross_attention_dim=PROMPT_CHANNELS,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
        use_linear_projection=True,
    )
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def make_scheduler(prediction_type: Literal["sample", "v_prediction", "epsilon"]) -> DDIMScheduler:
    """Build the noise schedule for training and for sampling in 1 to 4 steps."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type != "epsilon",  # noise says nothing about the image where SNR is zero
        timestep_spacing="trailing",
        clip_sample=False,
    )


def draw_crop_size(config: FromScratchConfig, generator: torch.Generator) -> int:
    """Draw the side of a batch's crops, px; a small one is drawn more often, in inverse ratio to its area."""
    sides = torch.arange(config.smallest_crop, config.largest_crop + 1, CROP_MULTIPLE)
    return int(sides[torch.multinomial(1.0 / sides.float() ** 2, 1, generator=generator)])


def crop_pair(pair: WarpedPair, side: int, border_share: float, generator: torch.Generator) -> WarpedPair:
    """Cut a square from each warped pair; a share of the squares ends at the right border.

    Cutting comes after warping: the hole along the right border exists only where the left view really ends.
    """
    B, _, H, W = pair.right_image.shape
    draws = torch.rand((B, 3), generator=generator, device=generator.device).tolist()
    boxes = []
    for top_draw, left_draw, border_draw in draws:
        left = W - side if border_draw < border_share else int(left_draw * (W - side + 1))
        boxes.append((int(top_draw * (H - side + 1)), left))
    return WarpedPair(
        *(
            torch.stack([x[:, y : y + side, x0 : x0 + side] for x, (y, x0) in zip(images, boxes, strict=True)])
            for images in pair
        )
    )


def prepare_pair(scenes: SceneBatch, config: FromScratchConfig, generator: torch.Generator) -> WarpedPair:
    """Change the colours of both views alike, warp, and cut."""
    change = draw_color_change(len(scenes.left_image), generator=generator, max_saturation=MAX_SATURATION)
    center = scenes.left_image.mean((1, 2, 3), keepdim=True)
    left, right = (change_colors(image, change, center) for image in (scenes.left_image, scenes.right_image))
    pair = warp_pair(left, scenes.left_disparity, right, config.masked_fill)
    return crop_pair(pair, draw_crop_size(config, generator), config.border_share, generator)


def make_base(config: FromScratchConfig) -> InpaintingBase:
    """Build the networks; the UNet's weights are random and depend on the global seed."""
    loaded: Any = AutoencoderTiny.from_pretrained(config.vae)
    vae = loaded.to(memory_format=torch.channels_last)
    unet = make_unet(vae.config.latent_channels, config.channels)
    unet.set_attn_processor(AttnProcessor())  # at so few pixels faster than the fused one (13 against 11 samples/s)
    settings = {
        "latent_mask_reduction": config.latent_mask,
        "masked_fill": config.masked_fill,
        "empty_prompt_embeds": EMPTY_PROMPT.tolist(),
    }
    return InpaintingBase(
        unet=unet,
        vae=vae.requires_grad_(False),
        scheduler=make_scheduler(config.prediction_type),
        prompt_embeds=EMPTY_PROMPT[None],
        settings=settings,
    )


def make_optimizer_and_loss(config: FromScratchConfig, base: InpaintingBase) -> tuple[torch.optim.Optimizer, Any]:
    """Make the optimiser, and the loss of a forward pass from (network, batch, generator)."""
    optimizer = torch.optim.AdamW(
        base.unet.parameters(), lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay
    )

    def loss_of(network: Any, batch: InpaintingBatch, generator: torch.Generator) -> Tensor:
        share = config.last_timestep_share
        return inpainting_loss(network, base.scheduler, batch, generator, last_timestep_share=share)

    return optimizer, loss_of


class PoolBatches:
    """Batches of a pool; each a function of seed, step and process.

    Args:
        config: options.
        base: its autoencoder encodes.
        accelerator: of the run.
    """

    def __init__(self, config: FromScratchConfig, base: InpaintingBase, accelerator: Accelerator):
        self.config, self.base, self.accelerator = config, base, accelerator
        self.pool = open_pool(config)

    def samples(self, first: int, micro_steps: int) -> Iterator[tuple[torch.Generator, SceneBatch]]:
        """Yield, from forward pass `first` on, the generator of the pass and its scenes."""
        config, index = self.config, first
        while True:
            generator = step_generator(config.seed, index, self.accelerator.process_index)
            yield generator, draw_scenes(self.pool, config, index // micro_steps, generator)
            index += 1

    def encode(self, sample: tuple[torch.Generator, SceneBatch]) -> tuple[torch.Generator, InpaintingBatch]:
        """Change colours, warp, cut and encode; the generator goes on to noise and timesteps."""
        generator, scenes = sample
        pair = prepare_pair(scenes, self.config, generator)
        pair = WarpedPair(*(tensor.to(self.accelerator.device) for tensor in pair))
        with self.accelerator.autocast():
            return generator, encode_pair(self.base.vae, pair, self.config.latent_mask, self.base.prompt_embeds)

    def report(self) -> str:
        """Say nothing: no scene can be bad."""
        return ""

    def held_out(self) -> HeldOutViews:
        """Render the scenes that validation fills."""
        scenes = held_out_scenes(self.config)
        return hold_out(scenes.left_image, scenes.left_disparity, scenes.right_image)
