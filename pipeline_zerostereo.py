# SPDX-License-Identifier: Apache-2.0
"""ZeroStereo: one photograph in, a stereo pair out, as one self-contained Diffusers pipeline file.

The file holds the whole method as pure tensor functions, and `ZeroStereoPipeline`, a thin shell around them. It
imports nothing of this repository because the Hugging Face Hub loads it alone; everything else in the repository
imports from it, so training and inference share one warp, one mask rule and one way to encode.

Method: ZeroStereo, ICCV 2025 (https://arxiv.org/abs/2501.08654). Comments name the places where we differ from the
paper or from its official code, and why.

Shape letters, used at line ends:
    B       images of the batch
    C       channels
    H W     pixels of the photograph
    Hp Wp   pixels after padding for a network
    h w     latent pixels

Conventions:
    Rectified pair, origin at the top left, x grows to the right. Disparity is in pixels of the tensor it accompanies,
    positive, of the named view: the left pixel at column x with disparity d is seen at column x - d of the right
    view. Masks are bool, their names tell view and meaning, True means what the name says. Images handed to and
    returned by the public steps are float32 in [0, 1].

Contents, in the order of the data:
    1. Constants             2. Estimate and select a disparity     3. Warp and fill
    4. Latents and padding   5. Records                             6. StereoImageProcessor   7. ZeroStereoPipeline
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# diffusers 0.40.0 is the first that reads `dtype=`: older ones ignore it and load float32. It needs huggingface-hub
# 1.23, which transformers accepts from 5.0.0 on.
MIN_DIFFUSERS = "0.40.0"
MIN_TRANSFORMERS = "5.0.0"


def _check_version(package: str, needed: str) -> None:
    """Raise an ImportError that says what to install where `package` is older than `needed`."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return  # not installed, as the import below says; or a source tree on the path, which tells no version
    numbers = [*map(int, re.findall(r"\d+", found)), 0, 0, 0][:3]
    if numbers < [*map(int, needed.split("."))]:
        raise ImportError(
            f"ZeroStereo needs {package} >= {needed}; found {found}. "
            f'Run: python -m pip install --upgrade "{package}>={needed}"'
        )


_check_version("diffusers", MIN_DIFFUSERS)  # before the imports that would fail, or worse, succeed
_check_version("transformers", MIN_TRANSFORMERS)

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import BaseOutput, logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

logger = logging.get_logger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# 1. Constants, with the paper's symbols
# ---------------------------------------------------------------------------------------------------------------------

ADS_CENTER = 0.1  # c, share of the image width
ADS_RADIUS = 0.05  # r, share of the image width
ADS_SMALL_PROBABILITY = 0.1  # the paper's segment (c - 2r, c - r)
ADS_LARGE_PROBABILITY = 0.1  # the paper's segment (c + r, c + 2r); the central segment has the remaining 0.8

SHARPEN_THRESHOLD = 3.0  # Sobel magnitude in px; a step of s px between two pixels has magnitude s / sqrt(2)
NEGLIGIBLE_FRACTION = 1e-13  # fractions of a disparity below this are none: x - d would round to x in float64
WARP_CHUNK_PIXELS = 1 << 16  # pixels warped at a time: bounds the temporaries, which then stay in a core's cache
MIN_RELATIVE_DEPTH = 1e-3  # a depth below this share of the image's largest counts as this share when inverted

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PIPELINE_FILE = "pipeline_zerostereo.py"  # name that the Hub loads, beside model_index.json
SHIM_FILE = "pipeline.py"  # name that `custom_pipeline="<folder or repository>"` loads
# No line here may begin with its import: the loader would read that as this file's own and fetch it without end.
SHIM = (
    "# SPDX-License-Identifier: Apache-2.0\n"
    '"""Loaded by `custom_pipeline="<this folder or repository>"`; the pipeline is in the file beside it."""\n\n'
    "from .pipeline_zerostereo import ZeroStereoPipeline\n\n"
    '__all__ = ["ZeroStereoPipeline"]\n'
)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Estimate and select a disparity
# ---------------------------------------------------------------------------------------------------------------------


class FlipConsistency(NamedTuple):
    """How well the depth of a photograph agrees with the depth of its mirror image.

    Attributes:
        confidence: [B,1,H,W] float32 in [0,1], `agreement` stretched to [0,1] within each image: the paper's C. The
            worst pixel of every image gets 0, so values of different images do not compare.
        agreement: [B,1,H,W] float32 in [0,1], u = 1 - |difference|. Comparable between images.
    """

    confidence: Tensor
    agreement: Tensor


def _check_map(name: str, value: Tensor) -> None:
    """Raise unless `value` is a float tensor of shape [B,1,H,W] with at least one pixel."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be a float tensor; got dtype {value.dtype}.")
    if value.ndim != 4 or value.shape[1] != 1 or value.numel() == 0:
        raise ValueError(f"`{name}` must have shape [B,1,H,W] with no empty axis; got {list(value.shape)}.")


def _check_finite(name: str, value: Tensor) -> None:
    """Raise unless every element is finite."""
    lowest, highest = torch.aminmax(value)  # both are NaN where one element is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        wrong = int((~torch.isfinite(value)).sum())
        raise ValueError(f"`{name}` must be finite; got {wrong} infinite or NaN values of {value.numel()}.")


def _stretch(value: Tensor, constant: float) -> Tensor:
    """Map each image of a [B,1,H,W] tensor linearly onto [0,1]; an image without contrast becomes `constant`."""
    lowest, highest = value.amin((1, 2, 3), keepdim=True), value.amax((1, 2, 3), keepdim=True)
    stretched = (value - lowest) / (highest - lowest)
    return torch.where(highest > lowest, stretched, torch.full_like(stretched, constant))


def normalize_inverse_depth(inverse_depth: Tensor) -> Tensor:
    """Map the inverse depth of each image onto [0, 1].

    Args:
        inverse_depth: [B,1,H,W] float, any scale and offset, larger = nearer, finite.

    Returns:
        [B,1,H,W] float32 in [0,1]: 0 at the farthest pixel of each image, 1 at the nearest.

    Raises:
        TypeError: not a float tensor.
        ValueError: not of shape [B,1,H,W], or not finite.

    Degenerate cases: a constant image becomes zeros (nothing moves), where the official code divides by zero.

    Source: ZeroStereo, disparity generation.
    """
    _check_map("inverse_depth", inverse_depth)
    _check_finite("inverse_depth", inverse_depth)
    return _stretch(inverse_depth.float(), constant=0.0)


def flip_consistency(normalized: Tensor, normalized_of_mirror: Tensor) -> FlipConsistency:
    """Compare the normalised inverse depth of a photograph with that of its mirror image.

    Args:
        normalized: [B,1,H,W] float in [0,1], from `normalize_inverse_depth`.
        normalized_of_mirror: the same for the mirrored photograph, already mirrored back, so that both agree pixel
            by pixel.

    Returns:
        FlipConsistency(confidence, agreement), both [B,1,H,W] float32.

    Raises:
        TypeError: not float tensors.
        ValueError: not of shape [B,1,H,W], not finite, or of different shapes.

    Degenerate cases: where the agreement is the same everywhere (a symmetric photograph, a constant map), the
    confidence is 1; the official code divides by zero there.

    Source: ZeroStereo, training-free confidence generation (TCG).
    """
    for name, value in (("normalized", normalized), ("normalized_of_mirror", normalized_of_mirror)):
        _check_map(name, value)
        _check_finite(name, value)
    if normalized.shape != normalized_of_mirror.shape:
        raise ValueError(
            "`normalized_of_mirror` must have the shape of `normalized`, "
            f"{list(normalized.shape)}; got {list(normalized_of_mirror.shape)}."
        )
    agreement = 1.0 - (normalized.float() - normalized_of_mirror.float()).abs()
    return FlipConsistency(confidence=_stretch(agreement, constant=1.0), agreement=agreement)


def _check_scale_distribution(center: float, radius: float) -> None:
    if not radius > 0:
        raise ValueError(f"`radius` must be positive; got {radius}.")
    if not (center - 2 * radius >= 0 and center + 2 * radius <= 1):
        raise ValueError(
            "`center` must keep center - 2 * radius >= 0 and center + 2 * radius <= 1; "
            f"got center={center}, radius={radius}."
        )


def scale_from_uniforms(
    segment_draw: Tensor, position_draw: Tensor, center: float = ADS_CENTER, radius: float = ADS_RADIUS
) -> Tensor:
    """Turn two uniform draws per image into a disparity scale: the mapping of adaptive disparity selection (ADS).

    The first draw chooses a segment: below 0.1 the small one [c - 2r, c - r], above 0.9 the large one
    [c + r, c + 2r], else the central one [c - r, c + r]. The second is the position inside it.

    Args:
        segment_draw: [B] float in [0,1].
        position_draw: [B] float in [0,1].
        center: c, as a share of the image width.
        radius: r, as a share of the image width.

    Returns:
        [B], dtype of the draws: s, the largest disparity as a share of the image width.

    Raises:
        ValueError: draws outside [0,1] or of different shapes; a radius that is not positive; a scale that could
            leave [0,1].

    Source: ZeroStereo, ADS. The official code starts the small segment at min(c - 2r, .01); with the published
    c = .1, r = .05 both are 0, and we follow the paper for other values.
    """
    _check_scale_distribution(center, radius)
    for name, draw in (("segment_draw", segment_draw), ("position_draw", position_draw)):
        if not isinstance(draw, Tensor) or not draw.is_floating_point():
            found = draw.dtype if isinstance(draw, Tensor) else type(draw).__name__
            raise TypeError(f"`{name}` must be a float tensor; got {found}.")
    if segment_draw.shape != position_draw.shape:
        raise ValueError(
            f"`position_draw` must have the shape of `segment_draw`, {list(segment_draw.shape)}; "
            f"got {list(position_draw.shape)}."
        )
    for name, draw in (("segment_draw", segment_draw), ("position_draw", position_draw)):
        if not ((draw >= 0) & (draw <= 1)).all():
            raise ValueError(f"`{name}` must lie in [0, 1]; got {draw.tolist()}.")
    small, large = segment_draw < ADS_SMALL_PROBABILITY, segment_draw > 1 - ADS_LARGE_PROBABILITY
    lowest = torch.full_like(position_draw, center - radius)
    lowest = lowest.masked_fill(small, center - 2 * radius).masked_fill(large, center + radius)
    length = torch.full_like(position_draw, 2 * radius).masked_fill(small | large, radius)
    return lowest + position_draw * length


def sample_disparity_scale(
    batch_size: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    center: float = ADS_CENTER,
    radius: float = ADS_RADIUS,
) -> Tensor:
    """Draw the disparity scale s of each image: adaptive disparity selection (ADS).

    Args:
        batch_size: number of images B.
        generator: one generator, or one per image. Image by image, two uniform numbers are taken from it: segment,
            then position. None uses torch's global generator.
        center: c, as a share of the image width.
        radius: r, as a share of the image width.

    Returns:
        [B] float32 on the CPU: the largest disparity of each image as a share of its width.

    Raises:
        ValueError: `batch_size` below 1, a list of generators of another length, or a scale that could leave [0,1].

    Source: ZeroStereo, ADS. The official code draws from numpy's global state, so its scales depend on the order of
    the files and the number of processes; here a photograph's scale depends on its generator alone.
    """
    if not _is_int(batch_size) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer of at least 1; got {batch_size!r}.")
    generators = generator if isinstance(generator, list) else [generator] * batch_size
    if len(generators) != batch_size:
        raise ValueError(f"`generator` must hold one generator per image, {batch_size}; got {len(generators)}.")
    draws = [
        torch.rand(2, generator=one, device="cpu" if one is None else one.device).cpu() for one in generators
    ]  # B x [2]
    segment_draw, position_draw = torch.stack(draws, dim=1)  # [B], [B]
    return scale_from_uniforms(segment_draw, position_draw, center, radius)


def sharpen_disparity(disparity: Tensor, threshold: float = SHARPEN_THRESHOLD) -> Tensor:
    """Replace the blurred slopes at object borders of a predicted disparity map by hard steps.

    The map is dilated by one pixel (3x3 cross); pixels whose Sobel magnitude exceeds `threshold` are edges; every
    edge pixel takes the dilated value of the nearest pixel (Euclidean distance) that is no edge. Of several sources
    at the same distance the first in the search is taken: same column before others, above before below, left
    before right.

    Use it for predicted maps. On a true disparity map the dilation fattens every foreground by a pixel.

    Args:
        disparity: [B,1,H,W] float, px, >= 0, finite.
        threshold: px, > 0. Absolute, as in the official code, so the same relative slope counts as an edge in a
            larger photograph only.

    Returns:
        [B,1,H,W] float32, px.

    Raises:
        TypeError: not a float tensor.
        ValueError: not of shape [B,1,H,W], negative, not finite, or `threshold` not positive.

    Degenerate cases: an image that is edges only comes back dilated (the official code raises there).

    Cost: proportional to the pixels plus, for each edge pixel, its distance to the nearest other pixel.

    Source: ZeroStereo's official code, after Watson et al. 2020 (https://arxiv.org/abs/2008.01484), which interpolates
    with a KD-tree on the CPU. Values agree wherever the nearest source is unambiguous.
    """
    _check_map("disparity", disparity)
    _check_finite("disparity", disparity)
    if not threshold > 0:
        raise ValueError(f"`threshold` must be positive; got {threshold}.")
    if (disparity < 0).any():
        raise ValueError(f"`disparity` must not be negative; got a minimum of {disparity.min().item()}.")
    disparity = disparity.float()
    dilated = disparity.clone(memory_format=torch.contiguous_format)  # [B,1,H,W]
    for to, of in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        dilated[..., to, :] = torch.maximum(dilated[..., to, :], disparity[..., of, :])
        dilated[..., to] = torch.maximum(dilated[..., to], disparity[..., of])
    edge = _sobel_exceeds(dilated, threshold)[:, 0]  # [B,H,W]
    edge &= ~edge.all(-1, keepdim=True).all(-2, keepdim=True)  # nothing to take from in an image of edges only
    pixel, source = _nearest_unmasked(edge)
    sharp = dilated.view(-1)
    sharp[pixel] = sharp[source]  # sources are never edges, so none of them is overwritten
    return sharp.view_as(dilated)


def _sobel_exceeds(value: Tensor, threshold: float) -> Tensor:
    """Tell where the Sobel magnitude of [B,1,H,W] exceeds `threshold`; a step of s px has magnitude s / sqrt(2)."""
    padded = functional.pad(value, (1, 1, 1, 1), mode="replicate")
    step_x = padded[..., 2:] - padded[..., :-2]
    step_y = padded[..., 2:, :] - padded[..., :-2, :]
    gradient_x = torch.add(step_x[..., :-2, :], step_x[..., 1:-1, :], alpha=2).add_(step_x[..., 2:, :])
    gradient_y = torch.add(step_y[..., :-2], step_y[..., 1:-1], alpha=2).add_(step_y[..., 2:])
    return gradient_x.square_().add_(gradient_y.square_()) > 32 * threshold**2


def _nearest_unmasked(mask: Tensor) -> tuple[Tensor, Tensor]:
    """For every True pixel of a [B,H,W] mask, find the nearest False pixel of the same image.

    Exact Euclidean distance in two passes: the nearest False pixel within each column first, from the lengths of the
    runs of True; then, over growing horizontal distance, the best column. Every image must hold a False pixel.

    Returns:
        (pixel, source): [N] int64 each, flat indices into [B,H,W].
    """
    B, H, W = mask.shape
    image, x, y = mask.transpose(1, 2).nonzero().unbind(1)  # [N] each, sorted column by column
    place = (image * W + x) * H + y  # [N] flat index into [B,W,H]: neighbours in a column are neighbours in memory
    above, below = _distances_to_run_ends(place, y, H, unreachable=H + W)
    offset_y = torch.zeros(B * W * H, dtype=torch.int32, device=mask.device)  # to the column's nearest False pixel
    offset_y[place] = torch.where(above <= below, -above, below).int()

    best, best_x = torch.minimum(above, below).square_(), x.clone()  # [N] squared distance, column of the source
    number = torch.arange(place.numel(), device=mask.device)  # the pixels that a farther column could still improve
    reach = 1
    while reach < W:
        number = number[best.index_select(0, number) > reach * reach]
        if number.numel() == 0:
            break
        own_x, base = x.index_select(0, number), place.index_select(0, number)
        lowest, lowest_x = best.index_select(0, number), best_x.index_select(0, number)
        for side in (-reach, reach):
            # At the frame the shift is cut short: that column was tried before, at its true and smaller distance.
            candidate_x = (own_x + side).clamp_(0, W - 1)
            candidate = offset_y.index_select(0, base + (candidate_x - own_x) * H).long().square_().add_(reach * reach)
            better = candidate < lowest
            lowest, lowest_x = torch.where(better, candidate, lowest), torch.where(better, candidate_x, lowest_x)
        best[number], best_x[number] = lowest, lowest_x
        reach += 1
    source_y = y + offset_y.index_select(0, place + (best_x - x) * H)
    return (image * H + y) * W + x, (image * H + source_y) * W + best_x


def _distances_to_run_ends(place: Tensor, y: Tensor, height: int, unreachable: int) -> tuple[Tensor, Tensor]:
    """Distance of each pixel to the pixels over and under its run of column neighbours.

    `place` are sorted flat indices into columns of `height` pixels, `y` their rows. A run that touches the frame has
    no pixel there: `unreachable`.
    """
    starts = torch.ones_like(place, dtype=torch.bool)
    starts[1:] = (place[1:] != place[:-1] + 1) | (y[1:] == 0)
    ends = starts.roll(-1)  # the member before each start; the roll closes the last run
    run = starts.cumsum(0) - 1  # [N] number of the run
    above = place - (place[starts] - 1).index_select(0, run)
    below = (place[ends] + 1).index_select(0, run) - place
    at_top, at_bottom = (y[starts] == 0)[run], (y[ends] == height - 1)[run]
    return above.masked_fill_(at_top, unreachable), below.masked_fill_(at_bottom, unreachable)


# ---------------------------------------------------------------------------------------------------------------------
# 3. Warp and fill
# ---------------------------------------------------------------------------------------------------------------------


class WarpResult(NamedTuple):
    """The right view of a left image, as far as the left image shows it.

    Attributes:
        right_image: [B,C,H,W], dtype and range of the left image; 0 in holes.
        right_hole_mask: [B,1,H,W] bool, right view, True where nothing landed (disocclusion or beyond the frame).
        left_visible_mask: [B,1,H,W] bool, left view, True where the pixel is seen in the right view.
        right_disparity: [B,1,H,W] float32, px, right view; 0 in holes.
    """

    right_image: Tensor
    right_hole_mask: Tensor
    left_visible_mask: Tensor
    right_disparity: Tensor


def forward_warp(left_image: Tensor, disparity: Tensor) -> WarpResult:
    """Move every left pixel to its place in the right view.

    Convention: rectified pair, origin top-left, x grows to the right. A left pixel at column x with disparity d
    (px, positive) belongs at column x - d of the same row; it covers the two whole columns around that place, or the
    one column if the place is whole. Where several pixels compete for a column, the largest disparity (the nearest
    surface) wins, and the column's colour is sampled linearly from the left image at column + disparity. Columns
    outside the frame are dropped one by one. A left pixel is hidden if every column it covers inside the frame is
    also covered by a pixel at least two columns to its right.

    Args:
        left_image: [B,C,H,W] float, finite, any value range; the range is kept.
        disparity: [B,1,H,W] float, px at width W, >= 0. Infinite or NaN: the pixel is dropped.

    Returns:
        WarpResult(right_image, right_hole_mask, left_visible_mask, right_disparity).

    Raises:
        TypeError: not float tensors.
        ValueError: shapes or devices disagree, or disparity is negative.

    Degenerate cases: zero disparity returns the left image bit for bit with no hole. A disparity wider than the image
    drops the pixel.

    Cost: O(H W), rows in chunks of `WARP_CHUNK_PIXELS`. No float64; target columns come from floor(d), which keeps
    float32 exact on every device (x - d in float32 does not).

    Source: ZeroStereo, after the definition of the masks published with MfS-Stereo (Watson et al. 2020). Differs from
    the official code: (1) column 0, where that code paints occluded pixels and marks them as known: here a pixel whose
    place is between -1 and 0 keeps its target column 0, and zero disparity leaves no hole; elsewhere the masks are the
    same. (2) Colours: that code blends up to two forward-splatted pixels, here the left image is sampled backwards
    through the z-buffered right-view disparity, which is closer to the true right image (benchmarks/warp.py).
    """
    _check_map("disparity", disparity)
    if not isinstance(left_image, Tensor) or not left_image.is_floating_point():
        found = left_image.dtype if isinstance(left_image, Tensor) else type(left_image).__name__
        raise TypeError(f"`left_image` must be a float tensor; got {found}.")
    B, _, H, W = expected = disparity.shape
    if left_image.ndim != 4 or (left_image.shape[0], *left_image.shape[2:]) != (B, H, W):
        raise ValueError(
            f"`left_image` must have shape [B,C,H,W] with the B, H and W of `disparity`, {list(expected)}; "
            f"got {list(left_image.shape)}."
        )
    if left_image.device != disparity.device:
        raise ValueError(
            f"`disparity` must be on the device of `left_image`, {left_image.device}; got {disparity.device}."
        )
    if (disparity < 0).any():
        raise ValueError(f"`disparity` must not be negative; got {disparity[disparity < 0].min().item()}.")

    result = WarpResult(
        right_image=torch.empty_like(left_image, memory_format=torch.contiguous_format),
        right_hole_mask=torch.empty((B, 1, H, W), dtype=torch.bool, device=left_image.device),
        left_visible_mask=torch.empty((B, 1, H, W), dtype=torch.bool, device=left_image.device),
        right_disparity=torch.empty((B, 1, H, W), dtype=torch.float32, device=left_image.device),
    )
    rows = max(1, WARP_CHUNK_PIXELS // (B * W))
    for top in range(0, H, rows):
        chunk = slice(top, top + rows)
        warped = _warp_rows(left_image[:, :, chunk], disparity[:, 0, chunk].float())
        for whole, part in zip(result, warped, strict=True):
            whole[:, :, chunk] = part
    return result


def _warp_rows(left_image: Tensor, disparity: Tensor) -> WarpResult:
    """Warp rows: left_image [B,C,R,W], disparity [B,R,W] float32. Targets count from 1; 0 collects the outsiders."""
    B, C, R, W = left_image.shape
    x = torch.arange(W, device=left_image.device)
    beyond = float(W + 1)  # moves a pixel out of the frame: for unknown (infinite, NaN) and over-wide disparities
    disparity = torch.fmin(disparity, disparity.new_tensor(beyond))  # [B,R,W]; fmin takes the number where one is NaN
    target = (x + 1) - disparity.long()  # ceil(x - d), from 1
    ceil_target = target.clamp(min=0)
    floor_target = target.sub_((disparity.frac() >= NEGLIGIBLE_FRACTION).long()).clamp_(min=0)

    nearest = disparity.new_full((B, R, W + 1), -1.0)
    nearest.scatter_reduce_(2, floor_target, disparity, "amax").scatter_reduce_(2, ceil_target, disparity, "amax")
    source = x.int().expand(B, R, W)
    last_source = torch.full((B, R, W + 1), -1, dtype=torch.int32, device=left_image.device)
    last_source.scatter_reduce_(2, floor_target, source, "amax").scatter_reduce_(2, ceil_target, source, "amax")
    last_source[..., 0] = W + 2  # outside the frame nothing is visible
    uncovered = torch.minimum(last_source.gather(2, floor_target), last_source.gather(2, ceil_target)) < source + 2

    right_disparity = nearest[..., 1:]  # [B,R,W]
    hole = right_disparity < 0
    right_disparity = right_disparity.clamp(min=0.0)
    start = (x + right_disparity.long()).clamp_(max=W - 1)
    end = (start + 1).clamp_(max=W - 1)
    weight = right_disparity.frac().to(left_image.dtype)[:, None].expand(B, C, R, W)
    right_image = torch.lerp(
        left_image.gather(3, start[:, None].expand(B, C, R, W)),
        left_image.gather(3, end[:, None].expand(B, C, R, W)),
        weight,
    )
    return WarpResult(
        right_image=right_image.mul_(~hole[:, None]),
        right_hole_mask=hole[:, None],
        left_visible_mask=uncovered[:, None],
        right_disparity=right_disparity[:, None],
    )


def fill_from_background(right_image: Tensor, right_hole_mask: Tensor, right_disparity: Tensor) -> Tensor:
    """Fill every hole along its row from the farther of its two neighbours.

    A disocclusion shows what the nearer surface hid, so it belongs to the farther one. The classical baseline, the
    instant preview, and the picture that `masked_fill="background"` shows the inpainting network.

    Args:
        right_image: [B,C,H,W] float, right view, from `forward_warp`.
        right_hole_mask: [B,1,H,W] bool, right view.
        right_disparity: [B,1,H,W] float, px, right view; larger = nearer. Values in holes are not looked at.

    Returns:
        [B,C,H,W], dtype of `right_image`. Known pixels are copied bit for bit. A hole takes the colour of the nearest
        known pixel to its left or right in its row, whichever has the smaller disparity; on a tie the right one.

    Raises:
        TypeError: images or maps that are not float, or a mask that is not bool.
        ValueError: shapes disagree.

    Degenerate cases: a hole that reaches the frame takes its only neighbour; a row without any known pixel stays as
    it is.
    """
    _check_map("right_disparity", right_disparity)
    _check_warped("right_image", right_image, "right_hole_mask", right_hole_mask)
    if right_disparity.shape != right_hole_mask.shape:
        raise ValueError(
            f"`right_disparity` must have the shape of `right_hole_mask`, {list(right_hole_mask.shape)}; "
            f"got {list(right_disparity.shape)}."
        )
    W = right_image.shape[-1]
    column = torch.arange(W, device=right_image.device).expand(right_hole_mask.shape)  # [B,1,H,W]
    left = column.masked_fill(right_hole_mask, -1).cummax(-1).values  # nearest known column to the left, or -1
    right = column.masked_fill(right_hole_mask, W).flip(-1).cummin(-1).values.flip(-1)  # to the right, or W
    left_disparity = right_disparity.gather(3, left.clamp(min=0))
    right_side_disparity = right_disparity.gather(3, right.clamp(max=W - 1))
    take_right = (right < W) & ((left < 0) | (right_side_disparity <= left_disparity))
    source = torch.where(take_right, right, left)
    source = torch.where((left < 0) & (right >= W), column, source)  # nothing known in the row: unchanged
    return right_image.gather(3, source.expand_as(right_image))


def _check_warped(image_name: str, image: Tensor, mask_name: str, mask: Tensor) -> None:
    """Raise unless image is float [B,C,H,W] and mask is bool [B,1,H,W] of the same B, H, W."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        found = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"`{image_name}` must be a float tensor; got {found}.")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`{mask_name}` must be a bool tensor; got {found}.")
    if image.ndim != 4 or mask.shape != (image.shape[0], 1, *image.shape[2:]):
        raise ValueError(
            f"`{mask_name}` must have shape [B,1,H,W] for the `{image_name}` of shape {list(image.shape)}; "
            f"got {list(mask.shape)}."
        )


# ---------------------------------------------------------------------------------------------------------------------
# 4. Latents and padding
# ---------------------------------------------------------------------------------------------------------------------


class Padding(NamedTuple):
    """Pixels added on each side."""

    left: int
    right: int
    top: int
    bottom: int


def pad_to_multiple(tensor: Tensor, multiple: int) -> tuple[Tensor, Padding]:
    """Replicate the borders of [B,C,H,W] until H and W are multiples of `multiple`; the odd one goes right, below.

    Bool and integer tensors are padded too. `unpad` undoes it.
    """
    H, W = tensor.shape[-2:]
    extra_h, extra_w = -H % multiple, -W % multiple
    padding = Padding(extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2)
    if not any(padding):
        return tensor, padding
    if tensor.is_floating_point():
        return functional.pad(tensor, padding, mode="replicate"), padding
    return functional.pad(tensor.float(), padding, mode="replicate").to(tensor.dtype), padding


def unpad(tensor: Tensor, padding: Padding) -> Tensor:
    """Cut off what `pad_to_multiple` added."""
    H, W = tensor.shape[-2:]
    return tensor[..., padding.top : H - padding.bottom, padding.left : W - padding.right]


def reduce_mask_to_latent(mask: Tensor, factor: int, reduction: str) -> Tensor:
    """Bring a pixel mask to latent size.

    Args:
        mask: [B,1,H,W] bool; H and W are multiples of `factor`.
        factor: pixels per latent pixel along each axis.
        reduction: "nearest" takes the top-left pixel of each cell, as the official code does and its weights expect
            (on the Motorcycle pair 66 % of the cells with holes are not flagged that way); "max" flags every cell
            that holds a True.

    Returns:
        [B,1,H/factor,W/factor] bool.

    Raises:
        ValueError: unknown `reduction`, or a height or width that is no multiple of `factor`.
    """
    if mask.shape[-2] % factor or mask.shape[-1] % factor:
        raise ValueError(f"`mask` must have H and W that are multiples of {factor}; got {list(mask.shape)}.")
    if reduction == "nearest":
        return mask[..., ::factor, ::factor]
    if reduction == "max":
        return functional.max_pool2d(mask.float(), factor) > 0
    raise ValueError(f'`reduction` must be "nearest" or "max"; got {reduction!r}.')


def cover_holes(
    right_image: Tensor, right_hole_mask: Tensor, right_disparity: Tensor | None, masked_fill: str
) -> Tensor:
    """Return the warped view as the UNet is shown it, holes covered.

    Args:
        right_image: [B,3,H,W] float in [0,1], from `forward_warp`.
        right_hole_mask: [B,1,H,W] bool.
        right_disparity: [B,1,H,W] float, px; only "background" needs it.
        masked_fill: "zero" covers holes with mid grey, as the official code does; "background" with
            `fill_from_background`.

    Returns:
        [B,3,H,W] in [-1,1].

    Raises:
        ValueError: unknown `masked_fill`, or "background" without `right_disparity`.
    """
    if masked_fill == "zero":
        return (2 * right_image - 1).masked_fill(right_hole_mask, 0.0)
    if masked_fill != "background":
        raise ValueError(f'`masked_fill` must be "zero" or "background"; got {masked_fill!r}.')
    if right_disparity is None:
        raise ValueError('`right_disparity` must be given where `masked_fill` is "background"; got None.')
    return 2 * fill_from_background(right_image, right_hole_mask, right_disparity) - 1


def encode_latents(vae: AutoencoderKL | AutoencoderTiny, image: Tensor) -> Tensor:
    """Encode [B,3,H,W] in [-1,1] into scaled latents [B,c,h,w]; the posterior mean where the autoencoder has one.

    Takes an AutoencoderKL or an AutoencoderTiny. Differs from diffusers' inpainting pipelines, which draw a sample:
    the official ZeroStereo code trains and infers on the mean.
    """
    encoded = vae.encode(image.to(vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return latents * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Decode scaled latents [B,c,h,w] into an image [B,3,H,W], about [-1,1], not clamped, dtype of the autoencoder."""
    return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample


# ---------------------------------------------------------------------------------------------------------------------
# 5. Records
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class ZeroStereoPipelineOutput(BaseOutput):
    """A stereo pair for each photograph: the photograph is the left view, `images` the right view.

    Shapes by `output_type`: "pt" tensors [B,C,H,W] (C = 1 for maps and masks), "np" arrays [B,H,W,C], "pil" a list of
    B PIL images, and arrays [B,H,W] for maps and masks. Maps are float32, masks bool, image values lie in [0,1].

    Attributes:
        images: the new view. Known pixels equal those of `warped_images` bit for bit, holes are invented.
        disparity: px, input view, >= 0: the input pixel at column x is seen at column x - d of the new view. As given
            where `disparity=` was passed (infinite = unknown).
        confidence: [0,1], input view: flip consistency stretched within each image (not comparable between images).
            None where the depth network did not run.
        hole_mask: new view, True where the pixel is invented.
        visible_mask: input view, True where the pixel is seen in the new view.
        warped_images: the new view before inpainting, 0 in holes.
        new_view_disparity: px, new view, 0 in holes.
        disparity_scale: [B] float32, s: the largest possible disparity as a share of the width. None where
            `disparity=` was passed.
        flip_agreement: [B] float32 in [0,1], mean of u = 1 - |difference| of the flip consistency: comparable between
            images. None where the depth network did not run.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor
    disparity: np.ndarray | Tensor
    confidence: np.ndarray | Tensor | None
    hole_mask: np.ndarray | Tensor
    visible_mask: np.ndarray | Tensor
    warped_images: list[PIL.Image.Image] | np.ndarray | Tensor
    new_view_disparity: np.ndarray | Tensor
    disparity_scale: np.ndarray | Tensor | None
    flip_agreement: np.ndarray | Tensor | None


# ---------------------------------------------------------------------------------------------------------------------
# 6. StereoImageProcessor: files and arrays in, arrays and pictures out
# ---------------------------------------------------------------------------------------------------------------------

PILImageInput = PIL.Image.Image | np.ndarray | Tensor | list[PIL.Image.Image] | list[np.ndarray] | list[Tensor]

# Dubois' least-squares projection for red-cyan glasses (E. Dubois, "A projection method to generate anaglyph stereo
# images", ICASSP 2001): rows are R, G, B of the anaglyph, columns R, G, B of the left and the right view. Each row
# sums to 1 over both views, so grey stays grey.
DUBOIS_LEFT = (
    (0.456100, 0.500484, 0.176381),
    (-0.0400822, -0.0378246, -0.0157589),
    (-0.0152161, -0.0205971, -0.00546856),
)
DUBOIS_RIGHT = (
    (-0.0434706, -0.0879388, -0.00155529),
    (0.378476, 0.733640, -0.0184503),
    (-0.0721527, -0.112961, 1.226400),
)

# Control points of the colour map, from far to near; brightness grows steadily, so the map survives grey printing.
COLOR_MAP = (
    (10, 10, 40),
    (59, 17, 107),
    (122, 27, 122),
    (182, 48, 102),
    (230, 84, 62),
    (250, 150, 40),
    (252, 240, 150),
)

PNG16_SCALE = 256.0  # codes per px of a 16-bit disparity PNG, halved until the largest disparity fits


class StereoImageProcessor:
    """Converts what users hand in and take away; `pipe.image_processor`.

    Holds no state; every method is static, so it also serves without a pipeline.
    """

    # --- in ---

    @staticmethod
    def preprocess(image: PILImageInput, name: str = "image") -> Tensor:
        """Load one photograph or a batch of equal size.

        Args:
            image: PIL image; array [H,W,3] or [B,H,W,3]; tensor [3,H,W] or [B,3,H,W]; or a list of one of these kinds
                without the batch axis. Arrays and tensors are uint8 in 0..255 or float in [0,1]. The EXIF orientation
                of PIL images is applied; grey, palette and CMYK images become RGB.
            name: the argument, for messages.

        Returns:
            [B,3,H,W] float32 in [0,1], on the device of the tensors handed in, else on the CPU. A float32 tensor
            [B,3,H,W] is returned as it is, not copied.

        Raises:
            TypeError: another kind of object.
            ValueError: an empty list, images of different sizes, another number of channels, an alpha channel, more
                than 8 bits in a PIL image, or values outside [0,1].
        """
        items = image if isinstance(image, list) else [image]
        if not items:
            raise ValueError(f"`{name}` must hold at least one image; got an empty list.")
        tensors = [StereoImageProcessor._to_tensor(item, name, listed=isinstance(image, list)) for item in items]
        sizes = [tuple(tensor.shape[-2:]) for tensor in tensors]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"`{name}` must hold images of one size per call; got heights and widths "
                f"{[list(size) for size in sizes]}. Call the pipeline once per size."
            )
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)  # [B,3,H,W]

    @staticmethod
    def _to_tensor(image: Any, name: str, listed: bool) -> Tensor:
        """Load one item of `image=` as [1,3,H,W], or [B,3,H,W] for a batched array that is not part of a list."""
        if isinstance(image, PIL.Image.Image):
            image = np.array(StereoImageProcessor._to_rgb(image, name))  # [H,W,3] uint8
        elif not isinstance(image, (np.ndarray, Tensor)):
            raise TypeError(
                f"`{name}` must be a PIL image, a numpy array, a torch tensor or a list of one of these; "
                f"got {type(image).__name__}."
            )
        layout = "[B,H,W,3] or [H,W,3]" if isinstance(image, np.ndarray) else "[B,3,H,W] or [3,H,W]"
        channel_axis = -1 if isinstance(image, np.ndarray) else -3
        wrong_rank = image.ndim not in ((3,) if listed else (3, 4))
        if wrong_rank or image.shape[channel_axis] != 3 or 0 in image.shape:
            wanted = layout.split(" or ")[1] if listed else layout
            raise ValueError(f"`{name}` must have shape {wanted}; got {list(image.shape)}.")
        if isinstance(image, np.ndarray):
            writable = image if image.flags.writeable else image.copy()  # torch warns of arrays that it must not write
            image = torch.from_numpy(np.ascontiguousarray(writable)).movedim(-1, -3)
        image = image if image.ndim == 4 else image[None]
        if image.dtype == torch.uint8:
            return image.float() / 255.0
        if not image.is_floating_point():
            raise ValueError(f"`{name}` must be uint8 in 0..255 or float in [0, 1]; got dtype {image.dtype}.")
        lowest, highest = (bound.item() for bound in torch.aminmax(image))
        if not (lowest >= 0.0 and highest <= 1.0):
            raise ValueError(f"`{name}` must lie in [0, 1] where it is float; got {lowest:g} to {highest:g}.")
        return image.float()

    @staticmethod
    def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
        """Apply the EXIF orientation and return 8-bit RGB, refusing what cannot become RGB without a choice."""
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            raise ValueError(
                f"`{name}` must have no alpha channel; got a PIL image of mode {image.mode!r}. "
                "Composite it on a background first."
            )
        if image.mode not in ("RGB", "L", "1", "P", "CMYK", "YCbCr"):
            raise ValueError(
                f"`{name}` must be a PIL image of 8 bits a channel; got mode {image.mode!r}. "
                "Scale it to 8 bits, or pass a float array in [0, 1]."
            )
        return PIL.ImageOps.exif_transpose(image).convert("RGB")

    @staticmethod
    def load_map(name: str, value: Any, batch_size: int, height: int, width: int) -> Tensor:
        """Load a map that a user hands in as [B,1,H,W] float32.

        Args:
            name: the argument, for messages.
            value: tensor or array [H,W], [B,H,W], [B,1,H,W] or [B,H,W,1], or a list of B maps [H,W].
            batch_size: B of the photographs.
            height: H of the photographs.
            width: W of the photographs.

        Raises:
            TypeError: another kind of object.
            ValueError: another shape than the photographs'.
        """
        if isinstance(value, list) and value and all(isinstance(item, (np.ndarray, Tensor)) for item in value):
            maps = [StereoImageProcessor._map_to_tensor(item) for item in value]
            wrong = [one for one in maps if tuple(one.shape) != (height, width)]
            value = wrong[0] if wrong else torch.stack(maps)
        if not isinstance(value, (np.ndarray, Tensor)):
            found = type(value).__name__
            raise TypeError(f"`{name}` must be a numpy array, a torch tensor or a list of one of these; got {found}.")
        loaded = StereoImageProcessor._map_to_tensor(value)
        accepted = [(batch_size, height, width), (batch_size, 1, height, width), (batch_size, height, width, 1)]
        if batch_size == 1:
            accepted.append((height, width))
        if tuple(loaded.shape) not in accepted:
            raise ValueError(
                f"`{name}` must have one map of the size of each photograph, shape [B,1,H,W] = "
                f"{[batch_size, 1, height, width]}; got {list(loaded.shape)}."
            )
        return loaded.reshape(batch_size, 1, height, width).to(torch.float32, copy=True)

    @staticmethod
    def _map_to_tensor(value: np.ndarray | Tensor) -> Tensor:
        """Take arrays of any strides, byte order and numeric dtype."""
        return torch.from_numpy(np.array(value, dtype=np.float32)) if isinstance(value, np.ndarray) else value

    # --- out ---

    @staticmethod
    def postprocess(images: Tensor, output_type: str) -> Any:
        """Convert images [B,3,H,W] in [0,1] to `output_type`: "pt" as they are, "np" [B,H,W,3], "pil" a list."""
        if output_type == "pt":
            return images
        array = images.float().movedim(1, -1).cpu().numpy()  # [B,H,W,3]
        if output_type == "np":
            return array
        return [PIL.Image.fromarray(one) for one in np.rint(array * 255.0).astype(np.uint8)]

    @staticmethod
    def postprocess_map(value: Tensor | None, output_type: str) -> Any:
        """Convert a map or mask [B,1,H,W] to `output_type`: "pt" as it is, "np" [B,H,W,1], "pil" an array [B,H,W]."""
        if value is None or output_type == "pt":
            return value
        array = value.movedim(1, -1).cpu().numpy()  # [B,H,W,1]
        return array if output_type == "np" else array[..., 0]

    @staticmethod
    def postprocess_vector(value: Tensor | None, output_type: str) -> Any:
        """Convert one number per image [B] to `output_type`: "pt" as they are, else an array [B]."""
        return value if value is None or output_type == "pt" else value.cpu().numpy()

    # --- pictures ---

    @staticmethod
    def _to_maps(value: np.ndarray | Tensor) -> np.ndarray:
        """Bring any of the shapes of an output map to [B,H,W]."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):
            return array[:, 0] if array.shape[1] == 1 else array[..., 0]
        if array.ndim not in (2, 3):
            raise ValueError(
                f"`value` must be maps of shape [H,W], [B,H,W], [B,1,H,W] or [B,H,W,1]; got {list(array.shape)}."
            )
        return array if array.ndim == 3 else array[None]

    @staticmethod
    def visualize_map(
        value: np.ndarray | Tensor, lowest: float | None = None, highest: float | None = None
    ) -> list[PIL.Image.Image]:
        """Paint maps in colour: dark and blue = low, bright and yellow = high, black = not finite.

        Args:
            value: map output of any `output_type`, or one map [H,W].
            lowest: value of the darkest colour; None = the lowest finite value of each map.
            highest: value of the brightest colour; None = the highest finite value of each map.

        Returns:
            One RGB image per map.
        """
        pictures = []
        for one in StereoImageProcessor._to_maps(value):
            known = np.isfinite(one)
            low = lowest if lowest is not None else (float(one[known].min()) if known.any() else 0.0)
            high = highest if highest is not None else (float(one[known].max()) if known.any() else 1.0)
            level = np.clip((np.where(known, one, low) - low) / max(high - low, 1e-12), 0.0, 1.0)  # [H,W]
            stops = np.linspace(0.0, 1.0, len(COLOR_MAP))
            channels = [np.interp(level, stops, [color[c] for color in COLOR_MAP]) for c in range(3)]
            picture = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
            pictures.append(PIL.Image.fromarray(np.where(known[..., None], picture, 0).astype(np.uint8)))
        return pictures

    @staticmethod
    def visualize_mask(mask: np.ndarray | Tensor) -> list[PIL.Image.Image]:
        """Paint masks: white where True, black elsewhere; mode "L"."""
        return StereoImageProcessor.visualize_confidence(mask)

    @staticmethod
    def visualize_confidence(confidence: np.ndarray | Tensor) -> list[PIL.Image.Image]:
        """Paint maps in [0,1] as 8-bit grey: black = 0, white = 1; mode "L"."""
        maps = StereoImageProcessor._to_maps(confidence)
        return [PIL.Image.fromarray(np.rint(one * 255.0).astype(np.uint8)) for one in maps]

    @staticmethod
    def export_disparity_to_16bit_png(disparity: np.ndarray | Tensor) -> list[tuple[PIL.Image.Image, float]]:
        """Encode disparity maps for 16-bit PNG files.

        Code 0 = unknown (not finite), else round(disparity * scale) + 1, so that a true 0 px survives. The scale is
        256 codes per px (readers of KITTI files are 1/256 px off) and is halved until the largest disparity fits.

        Args:
            disparity: px, >= 0, map output of any `output_type`, or one map [H,W].

        Returns:
            (image of mode "I;16", scale) per map. disparity = (code - 1) / scale, at most 1/512 px off at scale 256.

        Raises:
            ValueError: a negative disparity.
        """
        encoded = []
        for one in StereoImageProcessor._to_maps(disparity):
            known = np.isfinite(one)
            values = np.where(known, one, 0.0).astype(np.float64)
            if values.min() < 0:
                raise ValueError(f"`disparity` must not be negative; got a minimum of {values.min():g}.")
            scale = PNG16_SCALE
            while np.rint(values.max() * scale) + 1 > np.iinfo(np.uint16).max:
                scale /= 2
            codes = np.where(known, np.rint(values * scale) + 1, 0).astype(np.uint16)
            encoded.append((PIL.Image.fromarray(codes), scale))
        return encoded

    @staticmethod
    def _load_views(
        left_view: PIL.Image.Image, right_view: PIL.Image.Image
    ) -> tuple[PIL.Image.Image, PIL.Image.Image]:
        """Apply the EXIF orientation, which the pipeline applied too, and make both RGB."""
        left, right = (PIL.ImageOps.exif_transpose(view).convert("RGB") for view in (left_view, right_view))
        if left.size != right.size:
            raise ValueError(f"`right_view` must have the size of `left_view`, {left.size}; got {right.size}.")
        return left, right

    @staticmethod
    def side_by_side(left_view: PIL.Image.Image, right_view: PIL.Image.Image) -> PIL.Image.Image:
        """Put the left view left and the right view right of it, at full size (for parallel viewing and players).

        Raises:
            ValueError: views of different sizes.
        """
        left, right = StereoImageProcessor._load_views(left_view, right_view)
        picture = PIL.Image.new("RGB", (2 * left.width, left.height))
        picture.paste(left, (0, 0))
        picture.paste(right, (left.width, 0))
        return picture

    @staticmethod
    def anaglyph(left_view: PIL.Image.Image, right_view: PIL.Image.Image) -> PIL.Image.Image:
        """Mix both views for red-cyan glasses, red before the left eye, with Dubois' least-squares matrices.

        Raises:
            ValueError: views of different sizes.
        """
        views = StereoImageProcessor._load_views(left_view, right_view)
        left, right = (np.asarray(view, dtype=np.float32) for view in views)
        mixed = left @ np.array(DUBOIS_LEFT, np.float32).T + right @ np.array(DUBOIS_RIGHT, np.float32).T  # [H,W,3]
        return PIL.Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------------
# 7. ZeroStereoPipeline
# ---------------------------------------------------------------------------------------------------------------------

LATENT_MASK_REDUCTIONS = ("nearest", "max")
MASKED_FILLS = ("zero", "background")
DEPTH_PREDICTIONS = ("inverse_depth", "depth")
OUTPUT_TYPES = ("pil", "np", "pt")

EXAMPLE_DOC_STRING = """
Examples:
```py
>>> import PIL.Image
>>> import torch
>>> from diffusers import DiffusionPipeline

>>> pipe = DiffusionPipeline.from_pretrained("weights/zerostereo-tiny", trust_remote_code=True)
>>> photo = PIL.Image.open("examples/coffee.png")

>>> pair = pipe(photo, generator=torch.Generator().manual_seed(0))
>>> pair.images[0].save("right.png")
>>> pipe.image_processor.anaglyph(photo, pair.images[0]).save("anaglyph.png")
>>> pipe.image_processor.visualize_map(pair.disparity)[0].save("disparity.png")
```
"""


class ZeroStereoPipeline(DiffusionPipeline):
    r"""Turns photographs into stereo pairs, after ZeroStereo (https://arxiv.org/abs/2501.08654).

    Depth network -> disparity range fitted to the image width -> forward warp with masks -> diffusion inpainting of
    the holes. The photograph is the left view, the new view the right one.

    Model inherits from [`DiffusionPipeline`]; see there for loading, saving and moving to devices.

    Args:
        unet ([`UNet2DConditionModel`]):
            Predicts from [noisy latents, hole mask, latents of the masked view]: 2 x latent + 1 input channels.
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`]):
            Encodes the masked view and decodes the filled one.
        scheduler ([`SchedulerMixin`]):
            Any scheduler; prediction type and timestep spacing are read from its configuration.
        depth_estimator ([`PreTrainedModel`], *optional*):
            Any transformers depth estimator (`AutoModelForDepthEstimation`). Not needed where a map is passed.
        text_encoder ([`CLIPTextModel`], *optional*), tokenizer ([`CLIPTokenizer`], *optional*):
            Only used to encode the empty prompt, once; not needed where `empty_prompt_embeds` is configured.
        latent_mask_reduction (`str`): how the hole mask comes to latent size: "nearest" (official) or "max".
        masked_fill (`str`): what the UNet is shown in holes: "zero" (official, mid grey) or "background" (the row
            filled from the farther side).
        default_num_inference_steps (`int`): steps that suit the weights.
        default_depth_resolution (`int`): upper bound of the depth network's short side in px; 0 = none.
        depth_prediction (`str`): "inverse_depth" (Depth Anything) or "depth".
        depth_mean (`list`), depth_std (`list`): normalisation of the depth network's input, RGB in [0,1].
        depth_size_multiple (`int`): the depth network's input is padded to multiples of this.
        empty_prompt_embeds (`list`, *optional*): embedding of the empty prompt, tokens x channels.
    """

    model_cpu_offload_seq = "depth_estimator->text_encoder->unet->vae"
    _optional_components = ["depth_estimator", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "latent_mask", "masked_image_latents", "prompt_embeds"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        scheduler: SchedulerMixin,
        depth_estimator: PreTrainedModel | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        latent_mask_reduction: str = "nearest",
        masked_fill: str = "zero",
        default_num_inference_steps: int = 50,
        default_depth_resolution: int = 0,
        depth_prediction: str = "inverse_depth",
        depth_mean: list = IMAGENET_MEAN,  # type: ignore[assignment]
        depth_std: list = IMAGENET_STD,  # type: ignore[assignment]
        depth_size_multiple: int = 14,
        empty_prompt_embeds: list | None = None,
    ):
        """Check the configuration and keep the components."""
        super().__init__()
        for name, value, choices in (
            ("latent_mask_reduction", latent_mask_reduction, LATENT_MASK_REDUCTIONS),
            ("masked_fill", masked_fill, MASKED_FILLS),
            ("depth_prediction", depth_prediction, DEPTH_PREDICTIONS),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {choices}; got {value!r}.")
        for name, value, least in (
            ("default_num_inference_steps", default_num_inference_steps, 1),
            ("default_depth_resolution", default_depth_resolution, 0),
            ("depth_size_multiple", depth_size_multiple, 1),
        ):
            if not _is_int(value) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least}; got {value!r}.")
        if unet is not None and vae is not None:
            channels = 2 * vae.config.latent_channels + 1
            if unet.config.in_channels != channels:
                raise ValueError(
                    f"`unet` must take 2 x latent + 1 = {channels} channels for this `vae`; "
                    f"got {unet.config.in_channels}."
                )
        self.register_modules(
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            depth_estimator=depth_estimator,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            latent_mask_reduction=latent_mask_reduction,
            masked_fill=masked_fill,
            default_num_inference_steps=default_num_inference_steps,
            default_depth_resolution=default_depth_resolution,
            depth_prediction=depth_prediction,
            depth_mean=list(depth_mean),
            depth_std=list(depth_std),
            depth_size_multiple=depth_size_multiple,
            empty_prompt_embeds=empty_prompt_embeds,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.image_processor = StereoImageProcessor()
        self._prompt_embeds: Tensor | None = None  # of the text encoder and dtype in _prompt_source
        self._prompt_source: tuple[Any, Any] | None = None
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the running or last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set to True from a callback to end the denoising early."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    # --- saving and loading: a saved folder carries this file; the class loads it without running the folder's ---

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json in the form that the Hub loads, and this file and its shim beside it.

        `save_pretrained` calls this last, before an upload. A link that leads to the
        same text is kept; what it leads to is never written.
        """
        super().save_config(save_directory, push_to_hub=False, **kwargs)
        source = Path(inspect.getfile(ZeroStereoPipeline)).read_text(encoding="utf-8")
        for name, text in ((PIPELINE_FILE, source), (SHIM_FILE, SHIM)):
            target = Path(save_directory) / name
            if not (target.exists() and target.read_text(encoding="utf-8") == text):
                _write_file(target, text)
        index = Path(save_directory) / self.config_name
        config = json.loads(index.read_text(encoding="utf-8"))
        config["_class_name"] = [Path(PIPELINE_FILE).stem, "ZeroStereoPipeline"]
        _write_file(index, json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict:
        """Read model_index.json; the class that is asked to load runs itself, not the file in the folder."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), (list, tuple)):
            config["_class_name"] = config["_class_name"][-1]
        return config

    # --- the public steps, each usable alone ---

    @torch.no_grad()
    def estimate_inverse_depth(
        self, image: PILImageInput, depth_resolution: int | None = None
    ) -> tuple[Tensor, FlipConsistency]:
        """Run the depth network on the photographs and their mirror images, in one batch.

        Args:
            image: photographs of one size, as in `__call__`.
            depth_resolution: upper bound of the network's short side in px; 0 = none; None = as configured.

        Returns:
            (normalised inverse depth [B,1,H,W] float32 in [0,1], FlipConsistency).

        Raises:
            ValueError: no depth estimator; or its output is not finite.
        """
        self._check_depth_arguments(depth_resolution)
        bound = self.config.default_depth_resolution if depth_resolution is None else depth_resolution
        image = self.image_processor.preprocess(image).to(self._execution_device)  # [B,3,H,W]
        B, _, H, W = image.shape
        h, w = self._depth_input_size(H, W, bound)
        if (h, w) != (H, W):
            image = functional.interpolate(image, (h, w), mode="bicubic", antialias=True).clamp(0.0, 1.0)  # [B,3,h,w]
        mean, std = (
            image.new_tensor(list(value)).view(1, 3, 1, 1) for value in (self.config.depth_mean, self.config.depth_std)
        )
        padded, padding = pad_to_multiple((image - mean) / std, self.config.depth_size_multiple)  # [B,3,Hp,Wp]
        both = torch.cat([padded, padded.flip(-1)]).to(self.depth_estimator.dtype)  # [2B,3,Hp,Wp]
        predicted = self.depth_estimator(both).predicted_depth.float()
        predicted = predicted.reshape(2 * B, 1, *predicted.shape[-2:])
        if predicted.shape[-2:] != padded.shape[-2:]:
            predicted = functional.interpolate(predicted, padded.shape[-2:], mode="bilinear")  # [2B,1,Hp,Wp]
        if self.config.depth_prediction == "depth":
            farthest = predicted.amax((1, 2, 3), keepdim=True)
            predicted = 1.0 / torch.maximum(predicted, MIN_RELATIVE_DEPTH * farthest)
        predicted = unpad(torch.cat([predicted[:B], predicted[B:].flip(-1)]), padding)  # [2B,1,h,w]
        if (h, w) != (H, W):
            predicted = functional.interpolate(predicted, (H, W), mode="bilinear")  # [2B,1,H,W]
        if not torch.isfinite(predicted).all():
            raise ValueError(
                "`depth_estimator` must predict finite values; got "
                f"{int((~torch.isfinite(predicted)).sum())} infinite or NaN values of {predicted.numel()}."
            )
        normalized = normalize_inverse_depth(predicted)
        return normalized[:B], flip_consistency(normalized[:B], normalized[B:])

    @staticmethod
    def _depth_input_size(height: int, width: int, resolution: int) -> tuple[int, int]:
        """Height and width of the depth network's picture when its short side is bounded by `resolution` (0 = not)."""
        short = min(height, width)
        if resolution == 0 or short <= resolution:
            return height, width
        return max(1, round(height * resolution / short)), max(1, round(width * resolution / short))

    def select_disparity(
        self, normalized_inverse_depth: Tensor, disparity_scale: float | list[float] | Tensor
    ) -> Tensor:
        """Fit a normalised inverse depth to the image width and sharpen it.

        Args:
            normalized_inverse_depth: [B,1,H,W] float in [0,1].
            disparity_scale: s, a number or one per image: largest disparity as a share of the width.

        Returns:
            [B,1,H,W] float32, px, input view.

        Raises:
            TypeError: no float tensor, or no numbers.
            ValueError: another shape, values outside [0,1], another count of scales, or a scale outside (0,1].
        """
        _check_map("normalized_inverse_depth", normalized_inverse_depth)
        B, _, _, W = normalized_inverse_depth.shape
        lowest, highest = (bound.item() for bound in torch.aminmax(normalized_inverse_depth))
        if not (lowest >= 0 and highest <= 1):
            raise ValueError(f"`normalized_inverse_depth` must lie in [0, 1]; got {lowest:g} to {highest:g}.")
        scale = _load_scale(disparity_scale, B).to(normalized_inverse_depth.device)  # [B]
        return sharpen_disparity(normalized_inverse_depth.float() * (scale * W).view(B, 1, 1, 1))

    def warp(self, image: PILImageInput, disparity: np.ndarray | Tensor) -> WarpResult:
        """Warp photographs by their disparity on the pipeline's device.

        Args:
            image: photographs of one size, as in `__call__`.
            disparity: px, >= 0, one map per photograph in any form that `__call__` takes.

        Returns:
            WarpResult of `forward_warp`, float32.

        Raises:
            TypeError, ValueError: as `preprocess`, `load_map` and `forward_warp`.
        """
        image = self.image_processor.preprocess(image).to(self._execution_device)
        disparity = self.image_processor.load_map("disparity", disparity, image.shape[0], *image.shape[2:])
        return forward_warp(image, disparity.to(image.device))

    @torch.no_grad()
    def encode_empty_prompt(self) -> Tensor:
        """Embed the empty prompt: [1,tokens,channels], from the configuration, else by the text encoder, once.

        The prompt is not padded: two tokens, as in the official code. Padded to 77 it would be another conditioning.

        Raises:
            ValueError: neither `empty_prompt_embeds` nor text encoder and tokenizer.
        """
        if self.config.empty_prompt_embeds is not None:
            return torch.tensor(self.config.empty_prompt_embeds, dtype=torch.float32)[None]
        self._check_prompt()
        if self._prompt_embeds is not None and self._prompt_source == (self.text_encoder, self.text_encoder.dtype):
            return self._prompt_embeds
        tokens = self.tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids  # [1,2]
        prompt_embeds: Tensor = self.text_encoder(tokens.to(self._execution_device))[0]  # [1,2,channels]
        self._prompt_embeds, self._prompt_source = prompt_embeds, (self.text_encoder, self.text_encoder.dtype)
        return prompt_embeds

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Draw the initial noise, in float32 whatever the networks use, or take `latents`; scale for the scheduler."""
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, self.unet.dtype) * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def inpaint(
        self,
        warped_image: PILImageInput,
        hole_mask: Tensor,
        new_view_disparity: Tensor | None = None,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Tensor:
        """Fill the holes of warped views by diffusion; no text guidance.

        Args:
            warped_image: [B,3,H,W] in [0,1], or any form that `__call__` takes.
            hole_mask: [B,1,H,W] bool, True where to fill.
            new_view_disparity: [B,1,H,W] px; needed where the weights want holes filled from the background.
            num_inference_steps: denoising steps; None = as configured.
            generator: one, or one per image.
            latents: initial noise [B,c,h,w] instead of drawn noise.
            callback_on_step_end: as in `__call__`.
            callback_on_step_end_tensor_inputs: as in `__call__`.

        Returns:
            [B,3,H,W] float32 in [0,1]; known pixels bit for bit those of `warped_image`.

        Raises:
            ValueError: shapes disagree, or `new_view_disparity` is needed and missing.
        """
        warped = self.image_processor.preprocess(warped_image, "warped_image").to(self._execution_device)  # [B,3,H,W]
        self._check_inpaint_inputs(warped, hole_mask, new_view_disparity)
        self._check_loop_inputs(
            len(warped),
            warped.shape[-2:],
            num_inference_steps,
            generator,
            latents,
            callback_on_step_end_tensor_inputs,
        )
        hole_mask = hole_mask.to(warped.device)
        if new_view_disparity is not None:
            new_view_disparity = new_view_disparity.to(warped.device)
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        self._interrupt = False

        # 1. What the UNet is told: the view with its holes covered, and where they are.
        # Model invocation: self.vae, self.text_encoder.
        masked = cover_holes(warped, hole_mask, new_view_disparity, self.config.masked_fill)  # [B,3,H,W] in [-1,1]
        padded, padding = pad_to_multiple(masked, self.vae_scale_factor)  # [B,3,Hp,Wp]
        padded_mask, _ = pad_to_multiple(hole_mask, self.vae_scale_factor)  # [B,1,Hp,Wp]
        dtype = self.unet.dtype
        masked_image_latents = encode_latents(self.vae, padded).to(dtype)  # [B,c,h,w]
        latent_mask = reduce_mask_to_latent(padded_mask, self.vae_scale_factor, self.config.latent_mask_reduction)
        latent_mask = latent_mask.to(dtype)  # [B,1,h,w]
        prompt_embeds = self.encode_empty_prompt().to(warped.device, dtype).expand(len(warped), -1, -1)

        # 2. Denoise from noise of each image's own generator.
        # Model invocation: self.unet.
        self.scheduler.set_timesteps(num_inference_steps, device=warped.device)  # first: it sets init_noise_sigma
        denoised = self.prepare_latents(tuple(masked_image_latents.shape), generator, latents)  # [B,c,h,w]
        timesteps, step_kwargs = self.scheduler.timesteps, self._scheduler_step_kwargs(generator)
        self._num_timesteps = len(timesteps)
        callback_inputs = (
            ["latents"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        )
        with self.progress_bar(total=len(timesteps)) as progress_bar:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    break
                noisy = self.scheduler.scale_model_input(denoised, t)
                stacked = torch.cat([noisy, latent_mask, masked_image_latents], dim=1)  # [B,2c+1,h,w]
                prediction = self.unet(stacked, t, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
                denoised = self.scheduler.step(prediction, t, denoised, **step_kwargs, return_dict=False)[0].to(dtype)
                if callback_on_step_end is not None:
                    state: dict[str, Tensor] = {
                        "latents": denoised,
                        "latent_mask": latent_mask,
                        "masked_image_latents": masked_image_latents,
                        "prompt_embeds": prompt_embeds,
                    }
                    wanted = {name: state[name] for name in callback_inputs}
                    state.update(callback_on_step_end(self, i, t, wanted))
                    denoised, latent_mask = state["latents"], state["latent_mask"]
                    masked_image_latents, prompt_embeds = state["masked_image_latents"], state["prompt_embeds"]
                progress_bar.update()

        # 3. Decode, and take nothing but the holes from it.
        # Model invocation: self.vae.
        decoded = unpad(decode_latents(self.vae, denoised).float(), padding)  # [B,3,H,W] about [-1,1]
        return torch.where(hole_mask, (decoded / 2 + 0.5).clamp(0.0, 1.0), warped)

    def _scheduler_step_kwargs(self, generator: torch.Generator | list[torch.Generator] | None) -> dict:
        """Keyword arguments of `scheduler.step` that only some schedulers know."""
        accepted = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in accepted else {}

    # --- checks ---

    def _check_depth_arguments(self, depth_resolution: int | None) -> None:
        if self.depth_estimator is None:
            raise ValueError(
                "`depth_estimator` is needed unless `inverse_depth` or `disparity` is passed; this pipeline has none."
            )
        if depth_resolution is not None and (not _is_int(depth_resolution) or depth_resolution < 0):
            raise ValueError(
                "`depth_resolution` must be an integer >= 0, 0 for the photograph's own resolution; "
                f"got {depth_resolution!r}."
            )

    def _check_prompt(self) -> None:
        missing = self.text_encoder is None or self.tokenizer is None
        if missing and self.config.empty_prompt_embeds is None:
            raise ValueError(
                "`text_encoder` and `tokenizer` are needed because `empty_prompt_embeds` is not configured; "
                f"got {type(self.text_encoder).__name__} and {type(self.tokenizer).__name__}."
            )

    def _check_inpaint_inputs(self, warped: Tensor, hole_mask: Any, new_view_disparity: Any) -> None:
        _check_warped("warped_image", warped, "hole_mask", hole_mask)
        if new_view_disparity is None and self.config.masked_fill == "background":
            raise ValueError(
                '`new_view_disparity` must be given because these weights have `masked_fill="background"`; got None.'
            )
        if new_view_disparity is not None:
            _check_map("new_view_disparity", new_view_disparity)
            if new_view_disparity.shape != hole_mask.shape:
                raise ValueError(
                    f"`new_view_disparity` must have the shape of `hole_mask`, {list(hole_mask.shape)}; "
                    f"got {list(new_view_disparity.shape)}."
                )

    def _check_loop_inputs(
        self,
        batch_size: int,
        size: tuple[int, ...],
        num_inference_steps: Any,
        generator: Any,
        latents: Any,
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        self._check_prompt()
        if num_inference_steps is not None and (not _is_int(num_inference_steps) or num_inference_steps < 1):
            raise ValueError(f"`num_inference_steps` must be an integer >= 1; got {num_inference_steps!r}.")
        trained = self.scheduler.config.num_train_timesteps
        if num_inference_steps is not None and num_inference_steps > trained:
            raise ValueError(
                f"`num_inference_steps` must not exceed the {trained} steps of the scheduler; "
                f"got {num_inference_steps}."
            )
        generators = generator if isinstance(generator, list) else [generator]
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` must be one generator or a list of one per image, {batch_size}; got {len(generator)}."
            )
        for one in generators:
            if not isinstance(one, torch.Generator) and generator is not None:
                raise TypeError(f"`generator` must be a torch.Generator or a list of them; got {type(one).__name__}.")
        if latents is not None:
            factor, channels = self.vae_scale_factor, self.vae.config.latent_channels
            expected = [batch_size, channels, -(-size[0] // factor), -(-size[1] // factor)]
            if not isinstance(latents, Tensor) or list(latents.shape) != expected:
                found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
                raise ValueError(f"`latents` must be a tensor of shape [B,c,h,w] = {expected}; got {found}.")
        unknown = set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}; "
                f"got {sorted(unknown)}."
            )

    def check_inputs(
        self,
        image: Tensor,
        inverse_depth: Tensor | None,
        disparity: Tensor | None,
        disparity_scale: Any,
        depth_resolution: int | None,
        num_inference_steps: int | None,
        generator: Any,
        latents: Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        """Raise on anything that `__call__` could not use, before any network runs. Takes loaded tensors."""
        B, _, H, W = image.shape
        self._check_loop_inputs(B, (H, W), num_inference_steps, generator, latents, callback_on_step_end_tensor_inputs)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}; got {output_type!r}.")
        if inverse_depth is None and disparity is None:
            self._check_depth_arguments(depth_resolution)
        elif depth_resolution is not None:
            raise ValueError(
                "`depth_resolution` has no meaning beside `inverse_depth` or `disparity`, for the depth network does "
                f"not run; got {depth_resolution!r}."
            )
        self._check_maps(inverse_depth, disparity, disparity_scale)
        if disparity_scale is not None:
            _load_scale(disparity_scale, B)

    @staticmethod
    def _check_maps(inverse_depth: Tensor | None, disparity: Tensor | None, disparity_scale: Any) -> None:
        if inverse_depth is not None and disparity is not None:
            raise ValueError("`inverse_depth` and `disparity` must not both be given; got both.")
        if inverse_depth is not None:
            _check_finite("inverse_depth", inverse_depth)
        if disparity is None:
            return
        if disparity_scale is not None:
            raise ValueError(
                "`disparity_scale` must not be given beside `disparity`, which is used as it is; "
                f"got {disparity_scale!r}."
            )
        if torch.isnan(disparity).any():
            raise ValueError(f"`disparity` must not be NaN; got {int(torch.isnan(disparity).sum())} NaN values.")
        if (disparity < 0).any():
            raise ValueError(f"`disparity` must not be negative; got a minimum of {disparity.min().item():g}.")

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: PILImageInput,
        *,
        inverse_depth: np.ndarray | Tensor | None = None,
        disparity: np.ndarray | Tensor | None = None,
        disparity_scale: float | list[float] | Tensor | None = None,
        depth_resolution: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = ["latents"],  # noqa: B006
    ) -> ZeroStereoPipelineOutput | tuple:
        r"""Make the right view of each photograph.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of one of these):
                Photographs of one size: the left views. Arrays [H,W,3] or [B,H,W,3], tensors [3,H,W] or [B,3,H,W];
                uint8 in 0..255 or float in [0,1].
            inverse_depth (`np.ndarray` or `torch.Tensor`, *optional*):
                [H,W] or one map per photograph, of its size, any scale, larger = nearer, finite: used instead of the
                depth network; normalised, scaled and sharpened.
            disparity (`np.ndarray` or `torch.Tensor`, *optional*):
                [H,W] or one map per photograph, px, >= 0; infinite = unknown. Used as it is, not sharpened.
            disparity_scale (`float` or one per image, *optional*):
                s in (0,1]: the largest disparity as a share of the width. None draws it from the image's generator
                by adaptive disparity selection (0 to 0.2, mostly 0.05 to 0.15).
            depth_resolution (`int`, *optional*):
                Upper bound of the depth network's short side in px; 0 = none; None = as the weights are configured.
            num_inference_steps (`int`, *optional*):
                Denoising steps; None = as the weights are configured.
            generator (`torch.Generator` or one per image, *optional*):
                Source of the scale, if it is drawn, and then of the noise. With one per image a batch equals the same
                images one by one.
            latents (`torch.Tensor`, *optional*): initial noise [B,c,h,w] instead of drawn noise.
            output_type (`str`): "pil", "np" or "pt"; see [`ZeroStereoPipelineOutput`].
            return_dict (`bool`): False returns the fields as a tuple in their order, new view first.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, tensors)` after each step; returns the tensors, or new ones.
            callback_on_step_end_tensor_inputs (`list[str]`): which tensors it gets, of `_callback_tensor_inputs`.

        Examples:

        Returns:
            [`ZeroStereoPipelineOutput`] or `tuple`.
        """
        # 1. Load the photographs and maps, and check every argument before any network runs.
        image = self.image_processor.preprocess(image)  # [B,3,H,W] float32 in [0,1]
        B, _, H, W = image.shape
        if inverse_depth is not None:
            inverse_depth = self.image_processor.load_map("inverse_depth", inverse_depth, B, H, W)  # [B,1,H,W]
        if disparity is not None:
            disparity = self.image_processor.load_map("disparity", disparity, B, H, W)  # [B,1,H,W]
        self.check_inputs(
            image,
            inverse_depth,
            disparity,
            disparity_scale,
            depth_resolution,
            num_inference_steps,
            generator,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        device = self._execution_device
        image = image.to(device)

        # 2. Estimate the inverse depth and how far it agrees with that of the mirror image.
        # Model invocation: self.depth_estimator.
        confidence, flip_agreement, normalized = None, None, None
        if inverse_depth is not None:
            normalized = normalize_inverse_depth(inverse_depth.to(device))  # [B,1,H,W]
        elif disparity is None:
            normalized, flip = self.estimate_inverse_depth(image, depth_resolution)  # [B,1,H,W], 2 x [B,1,H,W]
            confidence, flip_agreement = flip.confidence, flip.agreement.mean((1, 2, 3))  # [B,1,H,W], [B]

        # 3. Select the disparity: as given, or scaled to the image width and sharpened.
        scale = None
        if disparity is None:
            drawn = disparity_scale is None
            scale = sample_disparity_scale(B, generator) if drawn else _load_scale(disparity_scale, B)  # [B]
            assert normalized is not None  # by step 2
            disparity = self.select_disparity(normalized, scale)  # [B,1,H,W]
        disparity = disparity.to(device)

        # 4. Warp every pixel to its place in the new view.
        warp = forward_warp(image, disparity)  # right_image [B,3,H,W], masks and right_disparity [B,1,H,W]

        # 5. Inpaint the holes.
        # Model invocation: self.vae, self.text_encoder, self.unet, self.vae.
        new_view = self.inpaint(
            warp.right_image,
            warp.right_hole_mask,
            warp.right_disparity,
            num_inference_steps=num_inference_steps,
            generator=generator,
            latents=latents,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # [B,3,H,W]

        # 6. Convert to the output type and offload all models.
        self.maybe_free_model_hooks()
        to_images, to_map = self.image_processor.postprocess, self.image_processor.postprocess_map
        to_vector = self.image_processor.postprocess_vector
        output = ZeroStereoPipelineOutput(
            images=to_images(new_view, output_type),
            disparity=to_map(disparity, output_type),
            confidence=to_map(confidence, output_type),
            hole_mask=to_map(warp.right_hole_mask, output_type),
            visible_mask=to_map(warp.left_visible_mask, output_type),
            warped_images=to_images(warp.right_image, output_type),
            new_view_disparity=to_map(warp.right_disparity, output_type),
            disparity_scale=to_vector(None if scale is None else scale.to(device), output_type),
            flip_agreement=to_vector(flip_agreement, output_type),
        )
        return output if return_dict else tuple(getattr(output, name) for name in output.__dataclass_fields__)


def _load_scale(disparity_scale: Any, batch_size: int) -> Tensor:
    """Load a disparity scale, a number or one per image, as [B] float32 on the CPU.

    Raises:
        TypeError: no numbers.
        ValueError: another count, or a number outside (0, 1].
    """
    numbers = disparity_scale if isinstance(disparity_scale, (list, tuple)) else [disparity_scale]
    accepted = (int, float, np.number, np.ndarray, Tensor)
    kinds = {type(one).__name__ for one in numbers if isinstance(one, bool) or not isinstance(one, accepted)}
    if kinds:
        raise TypeError(f"`disparity_scale` must be a number or one number per image; got {', '.join(sorted(kinds))}.")
    scale = torch.as_tensor(disparity_scale, dtype=torch.float32).cpu()
    if scale.ndim > 1 or (scale.ndim == 1 and scale.numel() != batch_size):
        raise ValueError(
            f"`disparity_scale` must be a number or one number per image, {batch_size}; got {disparity_scale!r}."
        )
    if not ((scale > 0) & (scale <= 1)).all():
        raise ValueError(f"`disparity_scale` must lie in (0, 1], a share of the image width; got {disparity_scale!r}.")
    return scale.expand(batch_size).clone()


def _is_int(value: Any) -> bool:
    """Tell whether value is an integer number; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _write_file(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it; a link is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
