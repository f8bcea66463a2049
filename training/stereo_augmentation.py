# SPDX-License-Identifier: Apache-2.0
"""Augmentation of pairs for the training of stereo networks: the network sees other pictures than the loss.

A sample is that of pair_dataset.py. `augment_pair` gives it a second pair of pictures: `left_image` and `right_image`
are disturbed and go into the network, `clean_left_image` and `clean_right_image` have only the geometry of the result
and are compared with each other by the photometric loss. Disparity, confidence and masks belong to the clean pair; the
right picture for the network may stand up to 2 px higher or lower, as in a pair that is badly rectified.

Source: the official training of ZeroStereo (arXiv 2501.08654), after RAFT-Stereo's. It differs in three things: sizes
are whole numbers and the disparity is multiplied by their ratio, not by the factor that was drawn; disparities are
averaged over valid neighbours only; and the last row and column of a picture can be reached by a crop. The order of
the steps is the official one: right noise and blur, colours, erasing, scale, crop.

Every draw comes from the generator that is passed in, which is one of the CPU; pictures may be on any device. Nothing
that is handed in is changed. Letters: H W pixels of the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.augmentation import crop_sample, draw_color_jitter, jitter_colors

NOISE_STD = 0.02  # of the right picture, in [0,1]
BLUR_PROBABILITY, LARGEST_BLUR_PX = 0.5, 1.0  # standard deviation of the blur, uniform from 0
BLUR_TRUNCATE = 4.0  # standard deviations at which the kernel ends, as in scipy and scikit-image
ASYMMETRIC_PROBABILITY = 0.2  # of colours drawn for each view alone
ERASE_PROBABILITY, ERASE_COUNTS, ERASE_SIDES_PX = 0.5, (1, 2), (50, 99)
SCALE_EXPONENT = (-0.2, 0.4)  # both axes, of 2
STRETCH_PROBABILITY, STRETCH_EXPONENT = 0.8, (-0.2, 0.2)  # each axis, of 2
CROP_MARGIN = 1  # px that the scaled sample is larger than the crop at least
LARGEST_SHIFT_PX = 2  # vertical, of the right picture

PICTURES = ("left_image", "right_image")


class Rectangle(NamedTuple):
    """A part of a picture, px."""

    top: int
    left: int
    height: int
    width: int


class Window(NamedTuple):
    """Where a crop begins, px; the right picture for the network has a top of its own."""

    top: int
    left: int
    right_top: int


def draw_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw one number."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def draw_whole(low: int, high: int, generator: torch.Generator) -> int:
    """Draw a whole number from low ... high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def happens(probability: float, generator: torch.Generator) -> bool:
    """Throw a coin."""
    return float(torch.rand((), generator=generator)) < probability


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def blur(image: Tensor, sigma_px: float) -> Tensor:
    """Blur a picture by a Gaussian, borders repeated, as scipy's and scikit-image's filters do.

    Args:
        image: [C,H,W] float, any range.
        sigma_px: standard deviation, >= 0; below 1/8 px the kernel is one pixel wide and changes nothing.
    """
    reach = int(BLUR_TRUNCATE * sigma_px + 0.5)
    if reach == 0:
        return image
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma_px) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    H, W = image.shape[-2:]
    padded = F.pad(image[None], (reach,) * 4, mode="replicate")[0]  # [C,H+2r,W+2r]
    rows = sum(weight * padded[:, i : i + H] for i, weight in enumerate(weights))  # three times as fast as conv2d
    return sum(weight * rows[:, :, i : i + W] for i, weight in enumerate(weights))  # pyright: ignore


def disturb(image: Tensor, *, generator: torch.Generator) -> Tensor:
    """Add noise to a picture [3,H,W] in [0,1], and blur every second one."""
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    noisy = (image + NOISE_STD * noise).clamp(0, 1)
    if not happens(BLUR_PROBABILITY, generator):
        return noisy
    return blur(noisy, draw_uniform(0, LARGEST_BLUR_PX, generator))


def change_colors_of_pair(left: Tensor, right: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Jitter the colours of both views [3,H,W] in [0,1] alike; of one pair in five, each by draws of its own."""
    if happens(ASYMMETRIC_PROBABILITY, generator):
        left, right = (jitter_colors(image, draw_color_jitter(generator=generator)) for image in (left, right))
        return left, right
    left, right = jitter_colors(torch.stack([left, right]), draw_color_jitter(generator=generator))
    return left, right


def draw_rectangles(height: int, width: int, *, generator: torch.Generator) -> list[Rectangle]:
    """Draw what is erased: nothing for every second picture, else one or two rectangles, cut at the border."""
    if not happens(ERASE_PROBABILITY, generator):
        return []
    rectangles = []
    for _ in range(draw_whole(*ERASE_COUNTS, generator)):
        left, top = draw_whole(0, width - 1, generator), draw_whole(0, height - 1, generator)
        sides = [draw_whole(*ERASE_SIDES_PX, generator) for _ in range(2)]
        rectangles.append(Rectangle(top, left, min(sides[1], height - top), min(sides[0], width - left)))
    return rectangles


def erase(image: Tensor, rectangles: list[Rectangle]) -> Tensor:
    """Paint rectangles of a picture [3,H,W] in its mean colour."""
    result, mean = image.clone(), image.mean((1, 2), keepdim=True)
    for top, left, height, width in rectangles:
        result[:, top : top + height, left : left + width] = mean
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Geometry
# ---------------------------------------------------------------------------------------------------------------------


def draw_size(height: int, width: int, crop_size: tuple[int, int], *, generator: torch.Generator) -> tuple[int, int]:
    """Draw the size that a sample is scaled to: both axes alike, and four in five also each by itself.

    Returns:
        height and width, px, each at least a pixel larger than the crop.
    """
    scale = 2 ** draw_uniform(*SCALE_EXPONENT, generator)
    stretch = happens(STRETCH_PROBABILITY, generator)
    smallest = max((crop_size[0] + CROP_MARGIN) / height, (crop_size[1] + CROP_MARGIN) / width)
    sides = []
    for length in (width, height):
        factor = scale * 2 ** draw_uniform(*STRETCH_EXPONENT, generator) if stretch else scale
        sides.append(round(length * max(factor, smallest)))
    return sides[1], sides[0]


def _linear(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float [C,H,W] as OpenCV's INTER_LINEAR does: pixel areas match, two neighbours on each axis."""
    return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]


def _rescale(value: Any, size: tuple[int, int]) -> Any:
    """Resize one entry by its type: 8-bit pictures rounded, masks to the nearest, maps linearly, texts not at all."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.bool:
        return F.interpolate(value[None].float(), size=size, mode="nearest")[0] > 0.5
    if value.dtype == torch.uint8:
        return _linear(value.float(), size).round().clamp(0, 255).to(torch.uint8)
    return _linear(value, size)


def rescale_pair(sample: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Resize a sample; its disparity is multiplied by the ratio of the widths.

    Args:
        sample: pictures, maps and masks of one height and width.
        size: new height and width, px.

    Returns:
        a new dict. Disparities are averaged over valid neighbours; where there is none the result is not valid.
    """
    result = {name: _rescale(value, size) for name, value in sample.items()}
    disparity, valid = sample["disparity"], sample["valid_disparity_mask"]
    ratio = size[1] / disparity.shape[-1]
    weight = _linear(valid.to(disparity.dtype), size)
    summed = _linear(torch.where(valid, disparity, 0.0), size)
    known = result["valid_disparity_mask"] & (weight > 0)
    result["disparity"] = torch.where(known, ratio * summed / weight.clamp_min(1e-6), 0.0)
    result["valid_disparity_mask"] = known
    return result


def draw_window(height: int, width: int, crop_size: tuple[int, int], *, generator: torch.Generator) -> Window:
    """Draw where a crop begins, with room for the vertical shift of the right picture above and below."""
    reach = min(LARGEST_SHIFT_PX, (height - crop_size[0]) // 2)
    top = draw_whole(reach, height - crop_size[0] - reach, generator)
    left = draw_whole(0, width - crop_size[1], generator)
    return Window(top, left, top + draw_whole(-reach, reach, generator))


def crop_pair(sample: Mapping[str, Any], window: Window, size: tuple[int, int]) -> dict[str, Any]:
    """Cut a window out of every tensor of a sample; `right_image` alone at the window's own top for it.

    Raises:
        ValueError: the window does not lie inside.
    """
    cropped = crop_sample(sample, window.top, window.left, size)
    right = crop_sample({"right_image": sample["right_image"]}, window.right_top, window.left, size)
    return cropped | right


# ---------------------------------------------------------------------------------------------------------------------
# Together
# ---------------------------------------------------------------------------------------------------------------------


def disturb_pair(left: Tensor, right: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Disturb what the network sees of a pair, at its own size: noise, blur, colours, erasing.

    Args:
        left: uint8 [3,H,W].
        right: the same.
        generator: of the CPU; every draw comes from it.

    Returns:
        both, uint8.
    """
    noisy = (
        disturb(right.float() / 255, generator=generator).mul(255).clamp(0, 255).to(torch.uint8)
    )  # cut, not rounded
    first, second = change_colors_of_pair(left.float() / 255, noisy.float() / 255, generator=generator)
    second = erase(second, draw_rectangles(*right.shape[-2:], generator=generator))
    left, right = (image.mul(255).round().to(torch.uint8) for image in (first, second))
    return left, right


def augment_pair(
    sample: Mapping[str, Any], crop_size: tuple[int, int], *, generator: torch.Generator
) -> dict[str, Any]:
    """Augment one sample as the official training of Zero-RAFT-Stereo and Zero-IGEV-Stereo does.

    Args:
        sample: of pair_dataset.py. Where it has `clean_left_image` and `clean_right_image` already, those are kept as
            the clean pair; else the clean pair is the pictures before any disturbance.
        crop_size: height and width of the result, px; the paper's is (384, 512). A smaller sample is enlarged.
        generator: of the CPU; every draw comes from it.

    Returns:
        a new dict with the names of the sample and `clean_left_image`, `clean_right_image`; tensors [C,*crop_size].

    Raises:
        ValueError: tensors of different sizes.
    """
    size = sample["left_image"].shape[-2:]
    others = {name: list(v.shape) for name, v in sample.items() if isinstance(v, Tensor) and v.shape[-2:] != size}
    if others:
        raise ValueError(f"`sample` must hold tensors of the size of `left_image`, {list(size)}; got {others}.")
    clean = {f"clean_{name}": sample.get(f"clean_{name}", sample[name]) for name in PICTURES}
    left, right = disturb_pair(sample["left_image"], sample["right_image"], generator=generator)
    disturbed = {**sample, **clean, "left_image": left, "right_image": right}
    height, width = draw_size(size[0], size[1], crop_size, generator=generator)
    scaled = rescale_pair(disturbed, (height, width))
    window = draw_window(height, width, crop_size, generator=generator)
    return crop_pair(scaled, window, crop_size)
