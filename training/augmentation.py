# SPDX-License-Identifier: Apache-2.0
"""Augmentation of training samples: crop, flip, colour. Every draw comes from the generator that is passed in."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ColorChange(NamedTuple):
    """One colour change per sample; applied to every picture of the sample alike. All [B,*,1,1]."""

    contrast: Tensor
    brightness: Tensor
    saturation: Tensor
    tint: Tensor


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def draw_color_change(
    batch_size: int, *, generator: torch.Generator, strength: float = 1.0, max_saturation: float = 1.4
) -> ColorChange:
    """Draw contrast, brightness, saturation and tint for each sample; `strength` 0 changes nothing."""
    one, three = (batch_size, 1, 1, 1), (batch_size, 3, 1, 1)
    return ColorChange(
        contrast=1 + strength * _uniform(one, -0.4, 0.5, generator),
        brightness=1 + strength * _uniform(one, -0.3, 0.4, generator),
        saturation=1 + strength * _uniform(one, -0.9, max_saturation - 1, generator),
        tint=1 + strength * _uniform(three, -0.15, 0.15, generator),
    )


def change_colors(image: Tensor, change: ColorChange, center: Tensor | None = None) -> Tensor:
    """Apply a colour change to pictures in [0,1].

    Args:
        image: [B,3,H,W] in [0,1].
        change: what `draw_color_change` drew for these samples.
        center: [B,1,1,1], the grey value that contrast turns around; None: the picture's own mean. Pass the first
            picture's mean for the others of a sample, so that all of them change alike.

    Returns:
        [B,3,H,W] in [0,1].
    """
    if center is None:
        center = image.mean((1, 2, 3), keepdim=True)
    image = (image - center) * change.contrast + center * change.brightness
    grey = image.mean(1, keepdim=True)
    return ((grey + (image - grey) * change.saturation) * change.tint).clamp(0, 1)


def add_noise_and_blur(image: Tensor, *, generator: torch.Generator, max_noise: float = 0.04) -> Tensor:
    """Add sensor-like noise of a random strength to each picture in [0,1], and blur three in ten of them."""
    B = image.shape[0]
    chosen = (_uniform((B,), 0, 1, generator) < 0.3).nonzero()[:, 0]
    padded = F.pad(image[chosen], (1, 1, 1, 1), mode="replicate")
    image = image.index_copy(0, chosen, F.avg_pool2d(padded, 3, 1) if len(chosen) else image[chosen])
    strength = _uniform((B, 1, 1, 1), 0, max_noise, generator)
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    return (image + noise * strength).clamp(0, 1)


def crop_resize_flip(
    image: Tensor, disparity: Tensor, size: tuple[int, int], *, generator: torch.Generator, smallest: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Cut a random box of the aspect ratio of `size` from each sample, resize it to `size`, mirror half of them.

    The disparity keeps its numbers (px at the old width): it serves as inverse depth, whose scale is free.

    Args:
        image: [B,3,H,W].
        disparity: [B,1,H,W].
        size: height and width of the result, px.
        generator: every draw comes from it.
        smallest: the smallest box, as a share of the largest box that fits.

    Returns:
        image [B,3,*size] and disparity [B,1,*size], cut alike.
    """
    B, _, H, W = image.shape
    largest = min(H / size[0], W / size[1])
    draws = torch.rand((B, 4), generator=generator, device=generator.device).tolist()
    both = torch.cat([image, disparity], dim=1)  # [B,4,H,W]
    results = []
    for sample, (scale_draw, top_draw, left_draw, flip_draw) in zip(both, draws, strict=True):
        factor = largest * (smallest + (1 - smallest) * scale_draw)
        height, width = max(1, min(H, round(size[0] * factor))), max(1, min(W, round(size[1] * factor)))
        top, left = int(top_draw * (H - height + 1)), int(left_draw * (W - width + 1))
        box = sample[None, :, top : top + height, left : left + width]
        box = F.interpolate(box, size=size, mode="bilinear", antialias=True, align_corners=False)
        results.append(box.flip(-1) if flip_draw < 0.5 else box)
    result = torch.cat(results)
    return result[:, :3], result[:, 3:]
