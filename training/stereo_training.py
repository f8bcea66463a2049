# SPDX-License-Identifier: Apache-2.0
"""One step of the training of a stereo network, and its validation on held-out scenes: pure functions of a network.

    loss, figures = stereo_training_step(network, batch, StepOptions())
    loss.backward()

It knows the networks of training/stereo_networks/ by their common outside only, and nothing of data, files and runs.
Letters: B batch, H W pixels. Disparities in px, left view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline_zerostereo import StereoImageProcessor
from training.procedural_scenes import SceneBatch, render_scenes, scene_generator
from training.run import picture_grid
from training.stereo_loss import PHOTOMETRIC_WEIGHT, zerostereo_loss
from training.stereo_metrics import average_images, join_errors, measure_errors
from training.stereo_networks.recurrent_stereo import RecurrentStereo, StereoOutput

TRAINING_ITERATIONS, VALIDATION_ITERATIONS = 22, 32  # of the official training
VALIDATION_SEED = 900_001  # of held-out scenes; those of the training have seeds made of a hash
SCENES_AT_ONCE = 4
PICTURED_SCENES = 4
ERROR_SHOWN_PX = 3.0  # white in a picture of errors
THRESHOLDS_PX = (1.0, 3.0, 5.0)


class StereoBatch(NamedTuple):
    """What a step needs, by the names of pair_dataset.py and stereo_augmentation.py."""

    left_image: Tensor  # [B,3,H,W], 0..255, any number type; for the network
    right_image: Tensor
    clean_left_image: Tensor  # [B,3,H,W], 0..255; for the photometric loss
    clean_right_image: Tensor
    disparity: Tensor  # [B,1,H,W] float, px
    confidence: Tensor  # [B,1,H,W] float in [0,1]
    valid_disparity_mask: Tensor  # [B,1,H,W] bool, left view
    left_visible_mask: Tensor  # [B,1,H,W] bool, left view, True where the pixel is seen in the right view
    right_hole_mask: Tensor  # [B,1,H,W] bool, right view, True where the picture was invented


class StepOptions(NamedTuple):
    """How a step is made; the defaults are the official training of Zero-RAFT-Stereo.

    Attributes:
        iterations: refinements of the network.
        max_disparity_px: larger disparities are not learnt; 700 for RAFT-Stereo, 192 for IGEV-Stereo as published.
        variant: "zerostereo", "supervised" or "unsupervised", see `zerostereo_loss`.
        photometric_range: 255 or 1, see `zerostereo_loss`.
        photometric_weight: mu.
    """

    iterations: int = TRAINING_ITERATIONS
    max_disparity_px: float = 700.0
    variant: str = "zerostereo"
    photometric_range: int = 255
    photometric_weight: float = PHOTOMETRIC_WEIGHT


def take_batch(tensors: Mapping[str, Any]) -> StereoBatch:
    """Take what a step needs out of a finished batch of `PairMixture`."""
    return StereoBatch(**{name: tensors[name] for name in StereoBatch._fields})


def put_into_training(network: nn.Module) -> None:
    """Put a network into training mode, its `BatchNorm2d` frozen, wrapped or not; see `freeze_batch_norm`."""
    network.train()
    for module in network.modules():
        if isinstance(module, RecurrentStereo):
            module.freeze_batch_norm()


def stereo_training_step(
    network: nn.Module, batch: StereoBatch, options: StepOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """Refine the disparities of a batch and compare them with what they should be.

    The loss is calculated in float32 outside the network's autocast. The network is left in training mode.

    Args:
        network: RAFT-Stereo, IGEV-Stereo, or one of them as accelerate has wrapped it.
        batch: on the network's device.
        options: see `StepOptions`.

    Returns:
        the loss, a scalar with gradients, and figures for a log, scalars without: `loss`, its parts `disparity_loss`
        and `photometric_loss`, and of the last refinement over the valid pixels below `max_disparity_px` the error
        `epe_px` and the shares of pixels that are wrong by more than 1, 3 and 5 px, `bad1_percent` and so on. Those
        of a batch without valid pixels are 0.

    Raises:
        ValueError, TypeError: of `zerostereo_loss` or of the network.
    """
    put_into_training(network)
    output: StereoOutput = network(batch.left_image.float(), batch.right_image.float(), options.iterations)
    loss = zerostereo_loss(
        output.refinements,
        left_image=batch.clean_left_image,
        right_image=batch.clean_right_image,
        disparity=batch.disparity,
        confidence=batch.confidence,
        valid_disparity_mask=batch.valid_disparity_mask,
        left_visible_mask=batch.left_visible_mask,
        right_hole_mask=batch.right_hole_mask,
        max_disparity_px=options.max_disparity_px,
        initial_disparity=output.initial_disparity,
        variant=options.variant,
        photometric_range=options.photometric_range,
        photometric_weight=options.photometric_weight,
    )
    figures = {"loss": loss.total, "disparity_loss": loss.disparity, "photometric_loss": loss.photometric}
    figures |= measure_batch(output.disparity, batch, options.max_disparity_px)
    return loss.total, {name: value.detach() for name, value in figures.items()}


@torch.no_grad()
def measure_batch(disparity: Tensor, batch: StereoBatch, max_disparity_px: float) -> dict[str, Tensor]:
    """Measure a disparity over the valid pixels of a batch, all pixels alike; stays on the device."""
    learnt = batch.valid_disparity_mask & (batch.disparity < max_disparity_px)
    error = torch.where(learnt, (disparity.float() - batch.disparity).abs(), 0.0)
    pixels = learnt.sum().clamp(min=1)
    figures = {"epe_px": error.sum() / pixels}
    return figures | {f"bad{t:g}_percent": 100 * (error > t).sum() / pixels for t in THRESHOLDS_PX}


# ---------------------------------------------------------------------------------------------------------------------
# Validation
# ---------------------------------------------------------------------------------------------------------------------


def hold_out_scenes(count: int, size: tuple[int, int]) -> SceneBatch:
    """Render the scenes of the validation, always the same, on the CPU; more of them do not change the first ones."""
    parts = [
        render_scenes(SCENES_AT_ONCE, *size, generator=scene_generator(VALIDATION_SEED, number))
        for number in range(-(-count // SCENES_AT_ONCE))
    ]
    return SceneBatch(*(torch.cat(planes)[:count] for planes in zip(*parts, strict=True)))


@torch.no_grad()
def estimate_disparity(network: Any, scenes: SceneBatch, iterations: int, device: str | torch.device) -> Tensor:
    """Estimate the left disparity of scenes, one after the other: [N,1,H,W] float32 on the CPU.

    Args:
        network: in evaluation mode.
        scenes: pictures in [0,1].
        iterations: refinements.
        device: of the network.
    """
    found = []
    for left, right in zip(scenes.left_image, scenes.right_image, strict=True):
        pair = (255 * image[None].to(device) for image in (left, right))
        found.append(network(*pair, iterations).disparity.float().cpu())
    return torch.cat(found)


def validate(
    network: Any, scenes: SceneBatch, iterations: int, device: str | torch.device
) -> tuple[dict[str, float], Image.Image]:
    """Measure a network on held-out scenes whose disparity is known exactly.

    Args:
        network: in evaluation mode; where it gives no number, the pixel counts as 0 px.
        scenes: pictures in [0,1].
        iterations: refinements.
        device: of the network.

    Returns:
        figures over all pixels, averaged over the images: `validation_epe_px`, `validation_bad1_percent` and so on,
        and `validation_constant_epe_px`, the error of each image's best constant disparity, its median: a network
        that has learnt anything is below it. And a picture: left, right, true, estimated, error; a column a scene.
    """
    disparity = estimate_disparity(network, scenes, iterations, device).nan_to_num(0.0, 0.0, 0.0)
    truth = scenes.left_disparity
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    measured = [
        measure_errors(*parts, thresholds_px=THRESHOLDS_PX)
        for parts in zip(disparity.split(1), truth.split(1), everywhere.split(1), strict=True)
    ]
    found = average_images(join_errors(measured))
    median = truth.flatten(1).median(1).values[:, None, None, None]
    figures = {"validation_epe_px": found.end_point_error_px}
    figures |= {f"validation_bad{t:g}_percent": share for t, share in found.bad_percent.items()}
    figures["validation_constant_epe_px"] = float((truth - median).abs().flatten(1).mean(1).mean())
    return figures, draw_scenes(scenes, disparity)


def draw_scenes(scenes: SceneBatch, disparity: Tensor) -> Image.Image:
    """Draw left and right views, true and estimated disparity in one scale of colours, and the error up to 3 px."""
    shown = range(min(PICTURED_SCENES, len(disparity)))
    truth = scenes.left_disparity
    rows = [[image[i] for i in shown] for image in (scenes.left_image, scenes.right_image)]
    rows += [[paint(disparities[i], float(truth[i].max())) for i in shown] for disparities in (truth, disparity)]
    rows.append([(disparity[i] - truth[i]).abs() / ERROR_SHOWN_PX for i in shown])
    return picture_grid(rows)


def paint(disparity: Tensor, highest: float) -> Tensor:
    """Paint a disparity [1,H,W] in colours from 0 to `highest` px: [3,H,W] in [0,1]."""
    (picture,) = StereoImageProcessor.visualize_map(disparity[0], lowest=0.0, highest=highest)
    return (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*disparity.shape[1:], 3).movedim(-1, 0)
        / 255.0
    )
