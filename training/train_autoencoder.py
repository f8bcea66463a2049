# SPDX-License-Identifier: Apache-2.0
"""Train a small autoencoder on procedural scenes: the latent space of the embedded inpainting network.

    accelerate launch -m training.train_autoencoder --pool pool --output runs/autoencoder --mixed-precision bf16

CPU smoke run (a minute):
    python -m training.train_autoencoder --pool scenes/smoke --pool-scenes 64 --validation-scenes 8 --max-steps 20 \
        --validate-every-steps 20 --output runs/smoke/autoencoder

The run ends with `OUTPUT/vae/`, an AutoencoderTiny of diffusers with factor 2 and 8 latent channels; it holds the
averaged weights and is written anew at every validation. Little compression keeps a network of 0.19 M parameters
usable on photographs (factor 4 did not get there in the same minutes). What is trained is `encode` and `decode`, the
paths that the pipeline takes; AutoencoderTiny's `forward` rounds latents to 8 bit in between, which nothing here uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn

from pipeline_zerostereo import decode_latents, encode_latents, fill_from_background, forward_warp
from training.augmentation import change_colors, draw_color_change
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
)
from training.scene_sampling import PoolConfig, draw_scenes, held_out_scenes, open_pool

LATENT_CHANNELS = 8
LEVELS = 2  # one halving: factor 2
GRADIENT_WEIGHT = 0.5
LATENT_SPREAD_WEIGHT = 0.05  # pulls each latent channel towards mean 0 and this deviation:
LATENT_DEVIATION = 0.5  # AutoencoderTiny's decoder squeezes latents by 3 tanh(x / 3), so pictures need room below 3
MAX_SATURATION = 2.5  # photographs have redder reds than the scenes: with 1.4 a brick-red cup came back wine-red


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(PoolConfig):
    """Options of `train_autoencoder`."""

    width: int = option(32, help="channels of every layer", group="network", at_least=4)
    blocks: int = option(
        2, help="residual blocks at half size, in the encoder and in the decoder", group="network", at_least=1
    )
    crop: int = option(96, help="height and width of a training crop, px", group="data", at_least=16)
    latent_noise: float = option(
        0.03, help="standard deviation of noise added to training latents", group="optimisation", at_least=0
    )

    def __post_init__(self):
        """Check ranges, and that a crop fits into a scene."""
        super().__post_init__()
        require(self.crop % 2 == 0, "crop", "must be a multiple of 2 px", self.crop)
        require(self.crop <= min(self.scene_size), "crop", f"must fit into `scene_size` {self.scene_size}", self.crop)


def make_autoencoder(width: int, blocks: int) -> AutoencoderTiny:
    """Build an AutoencoderTiny of random weights: factor 2, 8 latent channels."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(width,) * LEVELS,
        decoder_block_out_channels=(width,) * LEVELS,
        num_encoder_blocks=(1, blocks),
        num_decoder_blocks=(blocks, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )
    return vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def prepare_pictures(scenes: SceneBatch, crop: int, generator: torch.Generator) -> Tensor:
    """Cut training pictures: right views, and every third a warped view filled from the background.

    The pipeline encodes both kinds: right views are what the UNet learns to produce, filled ones are its condition.

    Returns:
        [B,3,crop,crop] in [-1,1].
    """
    B, _, H, W = scenes.left_image.shape
    warp = forward_warp(scenes.left_image[::3], scenes.left_disparity[::3])
    pictures = scenes.right_image.clone()
    pictures[::3] = fill_from_background(warp.right_image, warp.right_hole_mask, warp.right_disparity)
    tops = torch.randint(H - crop + 1, (B,), generator=generator, device=generator.device).tolist()
    lefts = torch.randint(W - crop + 1, (B,), generator=generator, device=generator.device).tolist()
    crops = [p[:, y : y + crop, x : x + crop] for p, y, x in zip(pictures, tops, lefts, strict=True)]
    change = draw_color_change(B, generator=generator, max_saturation=MAX_SATURATION)
    return 2 * change_colors(torch.stack(crops), change) - 1


class Reconstruction(nn.Module):
    """Encode, add noise, decode: one module, so that wrappers for several processes see one forward pass."""

    def __init__(self, vae: AutoencoderTiny):
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction [B,3,H,W] and the latents [B,c,h,w] before noise."""
        latents = self.vae.encode(picture).latents
        return self.vae.decode(latents + noise).sample, latents


def autoencoder_loss(network: nn.Module, picture: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare a picture with its reconstruction: absolute error, error of differences, spread of the latents.

    Args:
        network: a `Reconstruction`.
        picture: [B,3,H,W] in [-1,1].
        noise: [B,c,h,w], added to the latents: neighbouring latents come to mean similar pictures.

    Returns:
        the loss, and figures for the log: loss, psnr (dB, of pictures in [0,1]), latent_deviation.
    """
    reconstruction, latents = network(picture, noise)
    error, latents = reconstruction.float() - picture, latents.float()
    differences = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    spread = (mean.square() + (deviation - LATENT_DEVIATION).square()).mean()
    loss = error.abs().mean() + GRADIENT_WEIGHT * differences + LATENT_SPREAD_WEIGHT * spread
    psnr = -10 * torch.log10(error.square().mean() / 4 + 1e-9)
    return loss, {"loss": loss, "psnr": psnr, "latent_deviation": deviation.mean()}


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderTiny, pictures: Tensor) -> float:
    """Give the factor that brings the latents of these pictures [B,3,H,W] to unit variance."""
    latents = torch.cat([vae.encode(p.to(vae.device)).latents.float() for p in pictures.split(8)])
    return float(1 / latents.std())


@torch.no_grad()
def validate(vae: AutoencoderTiny, pictures: Tensor) -> tuple[dict[str, float], Image.Image]:
    """Reconstruct held-out right views [B,3,H,W] in [-1,1] through the pipeline's own functions.

    Returns:
        figures (mean PSNR in dB, the largest mean and the spread of deviations of scaled latent channels), and a
        picture: true, reconstructed.
    """
    latents = torch.cat([encode_latents(vae, p.to(vae.device)).float() for p in pictures.split(8)])
    decoded = torch.cat([decode_latents(vae, z).float().cpu() for z in latents.split(8)]).clamp(-1, 1)
    error = ((decoded - pictures) / 2).square().mean((1, 2, 3))
    deviations = latents.std((0, 2, 3))
    figures = {
        "validation_psnr": float((-10 * error.clamp_min(1e-9).log10()).mean()),
        "scaled_latent_largest_mean": float(latents.mean((0, 2, 3)).abs().max()),
        "scaled_latent_smallest_deviation": float(deviations.min()),
        "scaled_latent_largest_deviation": float(deviations.max()),
    }
    rows = [[picture[i] / 2 + 0.5 for i in range(min(6, len(pictures)))] for picture in (pictures, decoded)]
    return figures, picture_grid(rows)


def train(config: AutoencoderConfig) -> Path:
    """Train as `config` says; returns the folder of the trained autoencoder."""
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)  # the network's first weights
    network = Reconstruction(make_autoencoder(config.width, config.blocks))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    pool = open_pool(config)
    held_out = 2 * held_out_scenes(config).right_image - 1
    network, optimizer = accelerator.prepare(network, optimizer)
    run = TrainingRun(accelerator, config, network, optimizer)

    for step in run.steps():
        generator = step_generator(config.seed, step, accelerator.process_index)
        picture = prepare_pictures(draw_scenes(pool, config, step, generator), config.crop, generator)
        latent_shape = (config.batch_size, LATENT_CHANNELS, config.crop // 2, config.crop // 2)
        noise = config.latent_noise * torch.randn(latent_shape, generator=generator)
        loss, figures = autoencoder_loss(network, picture.to(accelerator.device), noise.to(accelerator.device))
        run.update(step, loss)
        run.log_step(step, figures, samples=config.batch_size)
        if run.is_due(step, config.validate_every_steps):
            save_network(run, held_out)
            with run.averaged_network() as averaged:
                run_figures, picture = validate(averaged.vae, held_out)
            run.log(step, run_figures)
            run.save_picture(step, picture)
    save_network(run, held_out)
    run.finish()
    return config.output / "vae"


def save_network(run: TrainingRun, held_out: Tensor) -> None:
    """Write the averaged weights to `vae/`, with the scaling factor that belongs to them."""
    with run.averaged_network() as averaged:
        averaged.vae.register_to_config(scaling_factor=measure_scaling_factor(averaged.vae, held_out))
        if run.accelerator.is_main_process:
            write_folder_atomically(run.config.output / "vae", averaged.vae.save_pretrained)


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    train(parse_config(AutoencoderConfig, arguments, description=__doc__))


if __name__ == "__main__":
    main()
