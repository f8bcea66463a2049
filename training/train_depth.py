# SPDX-License-Identifier: Apache-2.0
"""Train a small Depth Anything network on procedural scenes: one photograph in, inverse depth out.

    accelerate launch -m training.train_depth --pool pool --output runs/depth --mixed-precision bf16
    python -m training.train_depth --pool pool --output runs/depth --resume          # goes on after a stop

CPU smoke run (a minute; the network is too young to be of use):
    python -m training.train_depth --pool scenes/smoke --pool-scenes 64 --validation-scenes 8 --max-steps 20 \
        --validate-every-steps 20 --output runs/smoke/depth

The run ends with `OUTPUT/depth_estimator/`, which DepthAnythingForDepthEstimation.from_pretrained loads; it holds the
averaged weights and is written anew at every validation. The network is small and has seen rendered boxes and
textures only: it gives a coarse layout, and no figure of it says anything about Depth Anything V2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from pipeline_zerostereo import IMAGENET_MEAN, IMAGENET_STD
from training.augmentation import add_noise_and_blur, change_colors, crop_resize_flip, draw_color_change
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

PATCH_SIZE = 14  # px, of the DINOv2 backbone: network inputs are multiples of it
ASPECT_RATIOS = (1.0, 4 / 3, 4 / 3, 3 / 2)  # width to height of training pictures; 4:3 twice as often
NEAR_QUANTILE = 0.99  # the target's 1: robust against a few pixels very near the camera
QUANTILE_STRIDE = 5  # every fifth pixel decides the quantile; sorting all of them took 4 % of a CPU step
GRADIENT_SCALES = (1, 2, 4, 8)  # px between the two pixels of a difference
GRADIENT_WEIGHT, CORRELATION_WEIGHT = 0.25, 0.15


@dataclass(frozen=True, kw_only=True)
class DepthConfig(PoolConfig):
    """Options of `train_depth`."""

    hidden_size: int = option(192, help="width of the transformer", group="network", at_least=8)
    layers: int = option(8, help="layers of the transformer; four of them feed the neck", group="network", at_least=4)
    heads: int = option(3, help="attention heads", group="network", at_least=1)
    shortest_side: int = option(84, help="smallest short side of a training picture, px", group="data", at_least=14)
    longest_side: int = option(182, help="largest short side of a training picture, px", group="data", at_least=14)
    validation_side: int = option(168, help="short side in validation, px", group="data", at_least=14)

    def __post_init__(self):
        """Check ranges and multiples."""
        super().__post_init__()
        for name in ("shortest_side", "longest_side", "validation_side"):
            value = getattr(self, name)
            require(value % PATCH_SIZE == 0, name, f"must be a multiple of {PATCH_SIZE} px", value)
        require(
            self.shortest_side <= self.longest_side, "shortest_side", "must be <= `longest_side`", self.shortest_side
        )
        require(self.hidden_size % self.heads == 0, "hidden_size", "must be a multiple of `heads`", self.hidden_size)


class DepthBatch(NamedTuple):
    """Training samples of `depth_loss`."""

    pixel_values: Tensor  # [B,3,h,w], normalised as Depth Anything's image processor does it
    disparity: Tensor  # [B,1,h,w], any scale per sample, larger = nearer


def make_depth_network(hidden_size: int, layers: int, heads: int, image_size: int) -> DepthAnythingForDepthEstimation:
    """Build a Depth Anything network of random weights that can start to learn.

    transformers initialises neck and head with standard deviation .02; through the head's last ReLU that gives an
    output of exactly 0 and no gradient. Hence Kaiming initialisation there, and a last layer that starts near .4.
    """
    stages = [f"stage{round(layers * part / 4)}" for part in (1, 2, 3, 4)]
    backbone = Dinov2Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_ratio=3,
        image_size=image_size,
        patch_size=PATCH_SIZE,
        layerscale_value=0.1,
        out_features=stages,  # pyright: ignore[reportCallIssue]
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=hidden_size,
            patch_size=PATCH_SIZE,
            neck_hidden_sizes=[24, 48, 96, 96],
            fusion_hidden_size=32,
            head_hidden_size=16,
        )
    )
    for module in [*network.neck.modules(), *network.head.modules()]:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        network.head.conv3.weight.mul_(0.02)
        nn.init.constant_(network.head.conv3.bias, 0.4)  # pyright: ignore[reportArgumentType]
    # convolutions of few channels run half as long again in this memory layout on a CPU, and the result is the same
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def normalize_pixels(image: Tensor) -> Tensor:
    """Turn pictures in [0,1] into what the network takes."""
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def draw_size(config: DepthConfig, generator: torch.Generator) -> tuple[int, int]:
    """Draw the height and width (px) of a batch; a small size is drawn more often, in inverse ratio to its area."""
    sides = torch.arange(config.shortest_side, config.longest_side + 1, PATCH_SIZE)
    side = int(sides[torch.multinomial(1.0 / sides.float() ** 2, 1, generator=generator)])
    ratio = ASPECT_RATIOS[int(torch.randint(len(ASPECT_RATIOS), (1,), generator=generator))]
    return side, round(side * ratio / PATCH_SIZE) * PATCH_SIZE


def prepare_depth_batch(scenes: SceneBatch, size: tuple[int, int], generator: torch.Generator) -> DepthBatch:
    """Take the left or the right view of each scene, cut it, and change its colours."""
    B = scenes.left_image.shape[0]
    right = torch.rand((B, 1, 1, 1), generator=generator, device=generator.device) < 0.5
    image = torch.where(right, scenes.right_image, scenes.left_image)
    disparity = torch.where(right, scenes.right_disparity, scenes.left_disparity)
    image, disparity = crop_resize_flip(image, disparity, size, generator=generator)
    image = change_colors(image, draw_color_change(B, generator=generator))
    return DepthBatch(normalize_pixels(add_noise_and_blur(image, generator=generator)), disparity)


def normalize_target(disparity: Tensor) -> Tensor:
    """Normalise disparity per sample: the farthest pixel 0, the 99 % quantile 1, at most 1.2; constant -> zeros."""
    flat = disparity.flatten(1)
    lowest = flat.amin(1)[:, None, None, None]
    near = torch.quantile(flat[:, ::QUANTILE_STRIDE], NEAR_QUANTILE, dim=1)[:, None, None, None]
    return ((disparity - lowest) / (near - lowest).clamp_min(1e-2)).clamp(0, 1.2)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Give the linear correlation of two maps [B,...] per sample, [B]; 0 where one of them is constant."""
    first, second = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + 1e-2)


def depth_loss(network: nn.Module, batch: DepthBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare predicted inverse depth with the normalised target: values, multi-scale differences, correlation.

    The target is normalised, not the prediction: a loss that is free of scale and shift lets the output's scale run
    away (seen: to 9000 within minutes) and learning stalls.

    Returns:
        the loss, and figures for the log: loss, absolute_error, correlation.
    """
    prediction = network(pixel_values=batch.pixel_values).predicted_depth.float()[:, None]  # [B,1,h,w]
    target = normalize_target(batch.disparity)
    error = prediction - target
    absolute_error = error.abs().mean()
    differences = error.new_zeros(())
    for distance in GRADIENT_SCALES:
        coarse = error[:, :, ::distance, ::distance]
        differences = differences + coarse.diff(dim=3).abs().mean() + coarse.diff(dim=2).abs().mean()
    agreement = correlation(prediction, target).mean()
    loss = absolute_error + GRADIENT_WEIGHT * differences + CORRELATION_WEIGHT * (1 - agreement)
    return loss, {"loss": loss, "absolute_error": absolute_error, "correlation": agreement}


@torch.no_grad()
def validate(
    network: nn.Module, scenes: SceneBatch, side: int, device: torch.device
) -> tuple[dict[str, float], Image.Image]:
    """Correlate predictions with true disparity on held-out left views, beside a vertical ramp.

    Returns:
        figures (mean and median correlation, the ramp's mean), and a picture: image, true, predicted.
    """
    H, W = scenes.left_image.shape[-2:]
    size = (side, max(1, round(side * W / H / PATCH_SIZE)) * PATCH_SIZE)
    predictions = []
    for image in scenes.left_image.split(8):
        pixels = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
        predicted = network(pixel_values=normalize_pixels(pixels).to(device)).predicted_depth.float()[:, None]
        predictions.append(F.interpolate(predicted, size=(H, W), mode="bilinear", align_corners=False).cpu())
    prediction = torch.cat(predictions)
    ours = correlation(prediction, scenes.left_disparity)
    ramp = correlation(torch.linspace(0, 1, H)[None, None, :, None].expand_as(prediction), scenes.left_disparity)
    figures = {
        "validation_correlation": float(ours.mean()),
        "validation_correlation_median": float(ours.median()),
        "validation_ramp_correlation": float(ramp.mean()),
    }
    maps = [normalize_target(m) for m in (scenes.left_disparity, prediction)]
    shown = range(min(8, len(prediction)))
    return figures, picture_grid([[pictures[i] for i in shown] for pictures in (scenes.left_image, *maps)])


def train(config: DepthConfig) -> Path:
    """Train as `config` says; returns the folder of the trained network."""
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)  # the network's first weights
    network = make_depth_network(config.hidden_size, config.layers, config.heads, config.validation_side)
    # at some hundred tokens plain attention is faster than the fused one (26 against 20 samples/s on a CPU core)
    network.backbone.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    pool = open_pool(config)
    held_out = held_out_scenes(config)
    network, optimizer = accelerator.prepare(network, optimizer)
    run = TrainingRun(accelerator, config, network, optimizer)

    for step in run.steps():
        generator = step_generator(config.seed, step, accelerator.process_index)
        scenes = draw_scenes(pool, config, step, generator)
        batch = prepare_depth_batch(scenes, draw_size(config, generator), generator)
        batch = DepthBatch(*(tensor.to(accelerator.device) for tensor in batch))
        loss, figures = depth_loss(network, batch)  # the prepared network runs under autocast
        run.update(step, loss)
        run.log_step(step, figures, samples=config.batch_size)
        if run.is_due(step, config.validate_every_steps):
            with run.averaged_network() as averaged, accelerator.autocast():
                run_figures, picture = validate(averaged, held_out, config.validation_side, accelerator.device)
            run.log(step, run_figures)
            run.save_picture(step, picture)
            save_network(run)
    save_network(run)
    run.finish()
    return config.output / "depth_estimator"


def save_network(run: TrainingRun) -> None:
    """Write the averaged weights to `depth_estimator/`."""
    if run.accelerator.is_main_process:
        with run.averaged_network() as averaged:
            write_folder_atomically(run.config.output / "depth_estimator", averaged.save_pretrained)


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    train(parse_config(DepthConfig, arguments, description=__doc__))


if __name__ == "__main__":
    main()
