# SPDX-License-Identifier: Apache-2.0
"""Train a small inpainting UNet on procedural stereo scenes: it fills what the left view could not see.

    accelerate launch -m training.train_inpainting --pool pool --vae runs/autoencoder/vae --output runs/inpainting \
        --mixed-precision bf16

CPU smoke run (minutes; needs an autoencoder, see train_autoencoder.py):
    python -m training.train_inpainting --pool scenes/smoke --pool-scenes 64 --validation-scenes 4 --max-steps 10 \
        --vae runs/smoke/autoencoder/vae --validate-every-steps 10 --output runs/smoke/inpainting

The run ends with `OUTPUT/unet/` (averaged weights), `OUTPUT/scheduler/` (DDIM, zero terminal SNR, trailing spacing)
and `OUTPUT/pipeline.json` (what the pipeline must do as training did), all written anew at every validation. The UNet
predicts the clean latents ("sample"): with so few parameters and minutes, predicting noise leaves coloured noise in
the holes. Nothing here is the paper's recipe, which fine-tunes Stable Diffusion 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from pipeline_zerostereo import ZeroStereoPipeline, cover_holes, forward_warp
from training.augmentation import change_colors, draw_color_change
from training.inpainting_loss import WarpedPair, encode_pair, inpainting_loss, warp_pair
from training.pipeline_folder import PIPELINE_SETTINGS
from training.procedural_scenes import SceneBatch
from training.run import (
    TrainingRun,
    make_accelerator,
    option,
    parse_config,
    picture_grid,
    require,
    step_generator,
    write_folder_atomically,
    write_text_atomically,
)
from training.scene_sampling import PoolConfig, draw_scenes, held_out_scenes, open_pool

CROP_MULTIPLE = 16  # px: latent factor 2 times the UNet's three halvings
PROMPT_CHANNELS = 32  # of the constant embedding that stands for the empty prompt
EMPTY_PROMPT = torch.zeros(1, PROMPT_CHANNELS)  # one token
MAX_SATURATION = 2.0  # photographs have stronger colours than the scenes
VALIDATION_STEPS = (1, 4)  # denoising steps


@dataclass(frozen=True, kw_only=True)
class InpaintingConfig(PoolConfig):
    """Options of `train_inpainting`."""

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


def draw_crop_size(config: InpaintingConfig, generator: torch.Generator) -> int:
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


def prepare_pair(scenes: SceneBatch, config: InpaintingConfig, generator: torch.Generator) -> WarpedPair:
    """Change the colours of both views alike, warp, and cut."""
    change = draw_color_change(len(scenes.left_image), generator=generator, max_saturation=MAX_SATURATION)
    center = scenes.left_image.mean((1, 2, 3), keepdim=True)
    left, right = (change_colors(image, change, center) for image in (scenes.left_image, scenes.right_image))
    pair = warp_pair(left, scenes.left_disparity, right, config.masked_fill)
    return crop_pair(pair, draw_crop_size(config, generator), config.border_share, generator)


def hole_psnr(image: Tensor, truth: Tensor, hole_mask: Tensor) -> float:
    """Give the PSNR in dB over all hole pixels of a set of pictures [B,3,H,W] in [0,1]."""
    error = (image - truth).square().mean(1, keepdim=True)[hole_mask].mean()
    return float(-10 * error.clamp_min(1e-9).log10())


@torch.no_grad()
def validate(pipe: ZeroStereoPipeline, scenes: SceneBatch) -> tuple[dict[str, float], Image.Image]:
    """Fill held-out right views by the pipeline's `inpaint`, with 1 and 4 steps, beside the fill from the background.

    Returns:
        figures (hole PSNR in dB), and a picture: warped, filled from the background, filled with the most steps, true.
    """
    device = pipe.unet.device
    warp = forward_warp(scenes.left_image, scenes.left_disparity)
    warped, holes = warp.right_image, warp.right_hole_mask
    background = cover_holes(warped, holes, warp.right_disparity, "background") / 2 + 0.5
    figures = {"validation_background_psnr": hole_psnr(background, scenes.right_image, holes)}
    filled = background
    for steps in VALIDATION_STEPS:
        parts = []
        for i in range(len(warped)):
            one = slice(i, i + 1)
            generator = torch.Generator().manual_seed(i)
            inputs = (x[one].to(device) for x in (warped, holes, warp.right_disparity))
            parts.append(pipe.inpaint(*inputs, num_inference_steps=steps, generator=generator).float().cpu())
        filled = torch.cat(parts)
        figures[f"validation_psnr_{steps}_steps"] = hole_psnr(filled, scenes.right_image, holes)
    columns = (warped, background, filled, scenes.right_image)
    return figures, picture_grid([[x[i] for x in columns] for i in range(min(6, len(warped)))])


def train(config: InpaintingConfig) -> Path:
    """Train as `config` says; returns the folder of the trained UNet."""
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)  # the network's first weights
    vae = AutoencoderTiny.from_pretrained(config.vae).to(accelerator.device, memory_format=torch.channels_last)
    vae.requires_grad_(False)
    unet = make_unet(vae.config.latent_channels, config.channels)
    unet.set_attn_processor(AttnProcessor())  # at so few pixels faster than the fused one (13 against 11 samples/s)
    scheduler = make_scheduler(config.prediction_type)
    prompt_embeds = EMPTY_PROMPT[None]  # [1,1,PROMPT_CHANNELS]
    pipe = ZeroStereoPipeline(
        unet,
        vae,
        scheduler,
        masked_fill=config.masked_fill,
        latent_mask_reduction=config.latent_mask,
        empty_prompt_embeds=EMPTY_PROMPT.tolist(),
    )
    pipe.set_progress_bar_config(disable=True)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    pool = open_pool(config)
    held_out = held_out_scenes(config)
    network, optimizer = accelerator.prepare(unet, optimizer)
    run = TrainingRun(accelerator, config, network, optimizer)

    for step in run.steps():
        generator = step_generator(config.seed, step, accelerator.process_index)
        pair = prepare_pair(draw_scenes(pool, config, step, generator), config, generator)
        pair = WarpedPair(*(tensor.to(accelerator.device) for tensor in pair))
        with accelerator.autocast():
            batch = encode_pair(vae, pair, config.latent_mask, prompt_embeds)
        loss = inpainting_loss(
            network, scheduler, batch, generator, last_timestep_share=config.last_timestep_share
        )  # the prepared network runs under autocast
        run.update(step, loss)
        run.log_step(step, {"loss": loss}, samples=config.batch_size)
        if run.is_due(step, config.validate_every_steps):
            with run.averaged_network(), accelerator.autocast():
                run_figures, picture = validate(pipe, held_out)
            run.log(step, run_figures)
            run.save_picture(step, picture)
            save_network(run, scheduler)
    save_network(run, scheduler)
    run.finish()
    return config.output / "unet"


def save_network(run: TrainingRun, scheduler: DDIMScheduler) -> None:
    """Write the averaged weights to `unet/`, the noise schedule to `scheduler/`."""
    if run.accelerator.is_main_process:
        with run.averaged_network() as averaged:
            write_folder_atomically(run.config.output / "unet", averaged.save_pretrained)
        write_folder_atomically(run.config.output / "scheduler", scheduler.save_pretrained)
        # what the pipeline must do as training did; export_pipeline reads it
        settings = {
            "latent_mask_reduction": run.config.latent_mask,
            "masked_fill": run.config.masked_fill,
            "empty_prompt_embeds": EMPTY_PROMPT.tolist(),
        }
        write_text_atomically(run.config.output / PIPELINE_SETTINGS, json.dumps(settings) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    train(parse_config(InpaintingConfig, arguments, description=__doc__))


if __name__ == "__main__":
    main()
