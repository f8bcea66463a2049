# SPDX-License-Identifier: Apache-2.0
"""Augmentation of training samples: crop, flip, colour. Every draw comes from the generator that is passed in.

First what works on batches of scenes or photographs alone; then what works on one sample of a data set, a dict whose
tensors are [C,H,W] of one size and whose names and types tell what they are: bool = a mask, `...disparity` = px at
the width of the tensor, anything else = a picture or a map. Other entries (a name) are passed on. Nothing here knows
where samples come from, and no sample that is handed in is changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Fine-tuning of ZeroStereo's UNet (official configuration; torchvision's ColorJitter): factors drawn uniformly.
JITTER_BRIGHTNESS = (0.6, 1.4)
JITTER_CONTRAST = (0.6, 1.4)
JITTER_SATURATION = (0.0, 1.4)
JITTER_HUE = (-0.5 / 3.14, 0.5 / 3.14)  # turns of the colour circle
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, the grey of Pillow and of ColorJitter
CROP_MARGIN = 1  # px that a sample is larger than the crop at least


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


# ---------------------------------------------------------------------------------------------------------------------
# One sample of a data set
# ---------------------------------------------------------------------------------------------------------------------


def _size_of(sample: Mapping[str, Any]) -> tuple[int, int]:
    """Give height and width that all tensors of a sample share."""
    sizes = {name: tuple(value.shape[-2:]) for name, value in sample.items() if isinstance(value, Tensor)}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"`sample` must hold tensors [C,H,W] of one height and width; got {sizes}.")
    height, width = next(iter(sizes.values()))
    return height, width


def _interpolate(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float [C,H,W] linearly, with the area in mind where it becomes smaller."""
    smaller = size[0] < values.shape[-2] or size[1] < values.shape[-1]
    return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False, antialias=smaller)[0]


def _resize_tensor(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one mask (nearest), 8-bit picture (linear, rounded) or float map (linear)."""
    if values.dtype == torch.bool:
        return F.interpolate(values[None].float(), size=size, mode="nearest")[0] > 0.5
    resized = _interpolate(values if values.is_floating_point() else values.float(), size)
    return resized.round().clamp(0, 255).to(torch.uint8) if values.dtype == torch.uint8 else resized


def resize_sample(sample: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Resize every tensor of a sample; a disparity is also multiplied by the ratio of the widths.

    Convention: pixel areas match (align_corners False). Pictures and maps linear, masks nearest. Where the sample has
    `valid_disparity_mask`, disparities are averaged over valid neighbours only; the official code averages what
    invalid pixels hold into their neighbours. It agrees wherever no invalid pixel takes part.

    Args:
        sample: see the top of this file.
        size: height and width of the result, px.

    Returns:
        a new dict with the same names.

    Raises:
        ValueError: tensors of different sizes.
    """
    ratio = size[1] / _size_of(sample)[1]
    result = {
        name: _resize_tensor(value, size) if isinstance(value, Tensor) else value for name, value in sample.items()
    }
    valid = sample.get("valid_disparity_mask")
    for name in (name for name in sample if name.endswith("disparity")):
        if valid is None:
            result[name] = ratio * result[name]
            continue
        weight = _interpolate(valid.to(sample[name].dtype), size)
        summed = _interpolate(torch.where(valid, sample[name], 0.0), size)
        known = result["valid_disparity_mask"] & (weight > 0)
        result[name] = torch.where(known, ratio * summed / weight.clamp_min(1e-6), 0.0)
        result["valid_disparity_mask"] = known
    return result


def enlarge_to_fit(sample: Mapping[str, Any], crop_size: tuple[int, int]) -> dict[str, Any]:
    """Scale a sample up, both axes alike, until it is a pixel larger than a crop; a larger one is passed on.

    The rule of the official fine-tuning: below 513 px for crops of 512, by max(513 / height, 513 / width).
    """
    height, width = _size_of(sample)
    factor = max((crop_size[0] + CROP_MARGIN) / height, (crop_size[1] + CROP_MARGIN) / width)
    return dict(sample) if factor <= 1 else resize_sample(sample, (round(height * factor), round(width * factor)))


def crop_sample(sample: Mapping[str, Any], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Cut one window from every tensor of a sample.

    Raises:
        ValueError: tensors of different sizes, or the window does not lie inside.
    """
    height, width = _size_of(sample)
    if not (0 <= top <= height - size[0] and 0 <= left <= width - size[1]):
        raise ValueError(
            f"`top`, `left` and `size` must give a window inside {height}x{width}; got {top}, {left} and {size}."
        )
    window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    return {name: value[window].clone() if isinstance(value, Tensor) else value for name, value in sample.items()}


def crop_randomly(sample: Mapping[str, Any], size: tuple[int, int], *, generator: torch.Generator) -> dict[str, Any]:
    """Cut a window at a random place, enlarging the sample first where it is too small."""
    fitting = enlarge_to_fit(sample, size)
    places = [length - crop + 1 for length, crop in zip(_size_of(fitting), size, strict=True)]
    top, left = (int(torch.randint(count, (), generator=generator)) for count in places)
    return crop_sample(fitting, top, left, size)


class ColorJitter(NamedTuple):
    """One colour jitter: factors (1 = unchanged), a turn of the hue (0 = unchanged), and the order of the four."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...] = (0, 1, 2, 3)


def draw_color_jitter(*, generator: torch.Generator) -> ColorJitter:
    """Draw the paper's fine-tuning jitter: four uniform numbers and a random order."""
    bounds = (JITTER_BRIGHTNESS, JITTER_CONTRAST, JITTER_SATURATION, JITTER_HUE)
    numbers = [float(_uniform((), low, high, generator)) for low, high in bounds]
    order = torch.randperm(4, generator=generator, device=generator.device)
    return ColorJitter(*numbers, order=tuple(order.tolist()))


def _luma(image: Tensor) -> Tensor:
    red, green, blue = image.unbind(-3)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(-3)  # [...,1,H,W]


def turn_hue(image: Tensor, turn: float) -> Tensor:
    """Turn the hue of pictures by a share of the colour circle; value and saturation (of HSV) stay.

    Args:
        image: [...,3,H,W] in [0,1].
        turn: 1/3 makes red green, green blue and blue red; whole numbers change nothing.

    Returns:
        [...,3,H,W] in [0,1]; grey stays grey.
    """
    red, green, blue = image.unbind(-3)
    value, lowest = image.amax(-3), image.amin(-3)
    chroma = value - lowest
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    channels = []
    for offset in (5.0, 3.0, 1.0):  # of red, green, blue in the closed formula HSV -> RGB
        k = torch.remainder(offset + sextant + 6 * turn, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-3)


def jitter_colors(image: Tensor, jitter: ColorJitter) -> Tensor:
    """Apply one colour jitter to pictures that shall change alike.

    Brightness multiplies; contrast blends with the mean grey of ALL pictures handed in; saturation blends with each
    pixel's grey; hue turns. Values are clamped after each of them, as torchvision's ColorJitter does.

    Args:
        image: [...,3,H,W] float in [0,1]; the views of a pair stacked, for a symmetric jitter.
        jitter: what `draw_color_jitter` drew.

    Returns:
        the same shape, in [0,1].
    """
    for kind in jitter.order:
        if kind == 0:
            image = (image * jitter.brightness).clamp_(0, 1)
        elif kind == 1:
            image = torch.lerp(_luma(image).mean(), image, jitter.contrast).clamp_(0, 1)
        elif kind == 2:
            image = torch.lerp(_luma(image), image, jitter.saturation).clamp_(0, 1)
        else:
            image = turn_hue(image, jitter.hue)
    return image


def jitter_sample(sample: Mapping[str, Any], *, generator: torch.Generator) -> dict[str, Any]:
    """Jitter the colours of all 8-bit pictures [3,H,W] of a sample alike."""
    names = [name for name, value in sample.items() if isinstance(value, Tensor) and value.dtype == torch.uint8]
    pictures = torch.stack([sample[name] for name in names]).float() / 255  # [pictures,3,H,W]
    changed = jitter_colors(pictures, draw_color_jitter(generator=generator)).mul(255).round().to(torch.uint8)
    return dict(sample) | dict(zip(names, changed, strict=True))


def augment_for_fine_tuning(
    sample: Mapping[str, Any], crop_size: tuple[int, int], *, generator: torch.Generator
) -> dict[str, Any]:
    """Augment one sample as the paper's fine-tuning of the UNet does: a random crop, and one jitter for both views.

    No random scale, no flip, no vertical shift, nothing erased. Differs from the official code: the crop comes before
    the jitter (a third of the work), so contrast turns around the mean of the crop; and the last row and column can
    be reached.

    Args:
        sample: of stereo_datasets.py: 8-bit pictures, a disparity, masks.
        crop_size: height and width of the crop, px; the paper's is (512, 512).
        generator: every draw comes from it.

    Returns:
        a new dict with the same names, tensors [C,*crop_size].
    """
    return jitter_sample(crop_randomly(sample, crop_size, generator=generator), generator=generator)


def rescale_sparse_disparity(
    disparity: Tensor, valid: Tensor, factor_x: float, factor_y: float
) -> tuple[Tensor, Tensor]:
    """Rescale a sparse map by moving each valid pixel to its new place, without averaging.

    Convention: the pixel (x, y) goes to (round(x factor_x), round(y factor_y)), halves to even; its disparity is
    multiplied by factor_x; of several at one place the last in reading order stays. As in the official code, what
    lands in row 0 or column 0 is dropped.

    Args:
        disparity: [1,H,W] float, px.
        valid: [1,H,W] bool.
        factor_x: new width over old.
        factor_y: new height over old.

    Returns:
        disparity [1,H',W'], 0 where not valid, and valid [1,H',W'], bool; H' = round(H factor_y), W' likewise.

    Raises:
        ValueError: a factor is not positive and finite, or gives a map without pixels.
    """
    H, W = disparity.shape[-2:]
    for name, factor, length in (("factor_x", factor_x, W), ("factor_y", factor_y, H)):
        if not (0 < factor < math.inf and round(length * factor) >= 1):
            raise ValueError(f"`{name}` must be > 0 and leave at least one of {length} px; got {factor}.")
    height, width = round(H * factor_y), round(W * factor_x)
    rows, columns = valid[0].nonzero(as_tuple=True)  # in reading order
    values = disparity[0, rows, columns] * factor_x
    new_rows, new_columns = (rows.double() * factor_y).round().long(), (columns.double() * factor_x).round().long()
    inside = (new_rows > 0) & (new_rows < height) & (new_columns > 0) & (new_columns < width)
    values, places = values[inside], (new_rows * width + new_columns)[inside]
    last = torch.full((height * width,), -1, device=places.device).scatter_reduce(
        0, places, torch.arange(len(places), device=places.device), "amax"
    )
    known = last >= 0
    sparse = torch.zeros(height * width, dtype=disparity.dtype, device=disparity.device)
    sparse[known] = values[last[known]]
    return sparse.view(1, height, width), known.view(1, height, width)
