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

import base64
import binascii
import functools
import importlib
import importlib.metadata
import inspect
import io
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# diffusers 0.40.0 is the first that reads `dtype=`: older ones ignore it and load float32. transformers 5.6.0 is the
# first that names a text encoder's weights as today's does: older ones take none of them and go on with random ones.
MIN_DIFFUSERS = "0.40.0"
MIN_TRANSFORMERS = "5.6.0"


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
import PIL.ImageCms
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput, export_to_video, logging, replace_example_docstring
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

TILE_OVERLAP_SHARE = 4  # neighbouring tiles overlap by at least one part in this many

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

POSITION_OFFSET = 0.1  # patches added to each side of the picture where DINOv2 resizes its position table
COMPACT_PROMPT_KEYS = ("base64", "dtype", "revision", "shape", "text_encoder")

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


def disparity_from_metric_depth(
    inverse_depth: Tensor, baseline_m: float | list[float] | Tensor, fov_deg: float | list[float] | Tensor
) -> Tensor:
    """Turn metric inverse depth into the disparity between two eyes of a known distance.

    disparity = baseline x focal length / depth, with the focal length in px, (W / 2) / tan(fov / 2): a pinhole camera
    with square pixels and its centre in the middle.

    Args:
        inverse_depth: [B,1,H,W] float, 1/m, >= 0, finite.
        baseline_m: distance of the eyes in metres, > 0; a number or [B].
        fov_deg: horizontal field of view in degrees, in (0, 180); a number or [B].

    Returns:
        [B,1,H,W] float32, px at width W.

    Raises:
        TypeError: no float tensor.
        ValueError: another shape, negative or not finite values, or numbers out of range.
    """
    _check_map("inverse_depth", inverse_depth)
    _check_finite("inverse_depth", inverse_depth)
    if (inverse_depth < 0).any():
        raise ValueError(f"`inverse_depth` must not be negative; got a minimum of {inverse_depth.min().item():g}.")
    B, _, _, W = inverse_depth.shape
    baseline, fov = _load_baseline(baseline_m, fov_deg, B)  # [B], [B]
    focal_px = W / 2 / torch.tan(torch.deg2rad(fov.double() / 2))
    return inverse_depth.float() * (baseline * focal_px).float().to(inverse_depth.device).view(B, 1, 1, 1)


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


def official_position_embedding(position_table: Tensor, patches_high: int, patches_wide: int) -> Tensor:
    """Resize the position table of a DINOv2 backbone as its authors do.

    They tell the interpolation how much larger the picture is, with a tenth of a patch added, where transformers
    tells it the wanted size; the sampling points differ a little. At the table's own size it is returned unchanged.

    Args:
        position_table: [1,1+n*n,C], float: one row for the class token, then n x n patches in row-major order.
        patches_high: rows of patches in the picture, >= 1.
        patches_wide: columns of patches in the picture, >= 1.

    Returns:
        [1,1+patches_high*patches_wide,C], dtype of the table; resized in float32.

    Source: Depth Anything V2 and DINOv2, which ZeroStereo runs at the photograph's own resolution.
    """
    side = math.isqrt(position_table.shape[1] - 1)
    if (patches_high, patches_wide) == (side, side):
        return position_table
    class_row, patch_rows = position_table[:, :1], position_table[:, 1:].float()
    grid = patch_rows.view(1, side, side, -1).permute(0, 3, 1, 2)  # [1,C,n,n]
    growth = ((patches_high + POSITION_OFFSET) / side, (patches_wide + POSITION_OFFSET) / side)
    resized = functional.interpolate(grid, scale_factor=growth, mode="bicubic")  # [1,C,patches_high,patches_wide]
    return torch.cat([class_row, resized.flatten(2).transpose(1, 2).to(position_table.dtype)], dim=1)


def _interpolate_as_official(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Stand in for `interpolate_pos_encoding` of one DINOv2 embeddings module; sizes in px, tokens are not read."""
    patch_height, patch_width = embeddings.patch_embeddings.patch_size
    return official_position_embedding(embeddings.position_embeddings, height // patch_height, width // patch_width)


def _find_position_embeddings(depth_estimator: Any) -> Any:
    """Return the module of a DINOv2 depth estimator that holds the position table, or None."""
    backbone = getattr(depth_estimator, "backbone", None)
    embeddings = getattr(backbone, "embeddings", None)
    is_dinov2 = getattr(getattr(backbone, "config", None), "model_type", None) == "dinov2"
    return embeddings if is_dinov2 and hasattr(embeddings, "interpolate_pos_encoding") else None


def has_official_position_embedding(depth_estimator: Any) -> bool:
    """Tell whether `bind_official_position_embedding` was applied to this depth estimator."""
    bound = vars(_find_position_embeddings(depth_estimator) or object).get("interpolate_pos_encoding")
    # compared by name, because a module that is loaded twice has two functions of that name
    return getattr(getattr(bound, "func", None), "__name__", None) == _interpolate_as_official.__name__


def bind_official_position_embedding(depth_estimator: PreTrainedModel) -> None:
    """Let this depth estimator, and no other of its class, resize its position table as the official code does.

    Weights, configuration and saved files stay as they are; copies made with `copy.deepcopy` are bound too. Binding
    twice is binding once. `restore_position_embedding` undoes it.

    Args:
        depth_estimator: a transformers depth estimator with a DINOv2 backbone, such as Depth Anything.

    Raises:
        ValueError: another backbone.
    """
    embeddings = _find_position_embeddings(depth_estimator)
    if embeddings is None:
        raise ValueError(
            "`depth_estimator` must have `backbone.embeddings.interpolate_pos_encoding` of a DINOv2 backbone for the "
            f"official position embedding; got {type(depth_estimator).__name__}."
        )
    embeddings.interpolate_pos_encoding = functools.partial(_interpolate_as_official, embeddings)


def restore_position_embedding(depth_estimator: PreTrainedModel) -> None:
    """Undo `bind_official_position_embedding`; a depth estimator that is not bound stays as it is."""
    if has_official_position_embedding(depth_estimator):
        del _find_position_embeddings(depth_estimator).interpolate_pos_encoding


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


class NewViews(NamedTuple):
    """New views of photographs: N = B of them, or 2B with the target "both" (left and right of each photograph).

    Attributes:
        images: [N,C,H,W], dtype and range of the photographs; 0 in holes.
        hole_mask: [N,1,H,W] bool, new view, True where nothing landed.
        visible_mask: [N,1,H,W] bool, input view, True where the pixel is seen in the new view.
        new_view_disparity: [N,1,H,W] float32, px, new view, to the other eye's view; 0 in holes.
    """

    images: Tensor
    hole_mask: Tensor
    visible_mask: Tensor
    new_view_disparity: Tensor


def warp_to_views(image: Tensor, disparity: Tensor, target_view: str = "right") -> NewViews:
    """Warp photographs to the right eye, to the left eye, or to two eyes around each photograph.

    Convention: "right" is `forward_warp`: the photograph is the left eye. "left": the photograph is the right eye, and
    its pixel at column x belongs at x + d of the left one: the mirror image of "right" on the mirror image. "both":
    the photograph stands in the middle, a new left and a new right eye are half a disparity away on either side.

    Args:
        image: [B,C,H,W] float, finite.
        disparity: [B,1,H,W] float, px, >= 0, of the photograph: between the two eyes of the pair. Infinite or NaN: the
            pixel is dropped.
        target_view: "right", "left" or "both".

    Returns:
        NewViews; with "both" in the order left, right of photograph 0, left, right of photograph 1.

    Raises:
        TypeError, ValueError: as `forward_warp`, or an unknown `target_view`.
    """
    mirrored = _mirrored_entries(target_view, len(image))
    copies = len(mirrored) // len(image)
    image, disparity = (value.repeat_interleave(copies, dim=0) for value in (image, disparity))
    warp = forward_warp(_mirror(image, mirrored), _mirror(disparity / copies, mirrored))
    return NewViews(
        images=_mirror(warp.right_image, mirrored),
        hole_mask=_mirror(warp.right_hole_mask, mirrored),
        visible_mask=_mirror(warp.left_visible_mask, mirrored),
        new_view_disparity=_mirror(warp.right_disparity * copies, mirrored),
    )


def _mirrored_entries(target_view: str, batch_size: int) -> list[bool]:
    """Tell for each new view whether it is a left one, which is made and filled as the mirror image of a right one."""
    _check_choice("target_view", target_view, TARGET_VIEWS)
    return {"right": [False], "left": [True], "both": [True, False]}[target_view] * batch_size


def _mirror(value: Tensor, mirrored: list[bool]) -> Tensor:
    """Flip the columns of those entries of [N,...,W] that are to be mirrored; a batch without any is passed on."""
    if not any(mirrored):
        return value
    if all(mirrored):
        return value.flip(-1)
    return torch.stack([one.flip(-1) if flip else one for one, flip in zip(value, mirrored, strict=True)])


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


class WorkingPicture(NamedTuple):
    """A warped view at the size that the networks work at.

    Attributes:
        image: [B,3,h,w] float in [0,1]: the mean colour of the known pixels of each cell; 0 in holes.
        hole_mask: [B,1,h,w] bool, True where more than half of the cell is hole.
        disparity: [B,1,h,w] float32, px of the full size: the mean over the known pixels of each cell; None if none
            was given.
    """

    image: Tensor
    hole_mask: Tensor
    disparity: Tensor | None


def shrink_warped_view(
    right_image: Tensor, right_hole_mask: Tensor, right_disparity: Tensor | None, height: int, width: int
) -> WorkingPicture:
    """Scale a warped view down for the networks without mixing the black of holes into known colours.

    Args:
        right_image: [B,3,H,W] float in [0,1]; values in holes are not looked at.
        right_hole_mask: [B,1,H,W] bool.
        right_disparity: [B,1,H,W] float, px, or None.
        height: rows of the result, 1 to H.
        width: columns of the result, 1 to W.

    Returns:
        WorkingPicture. At the size of the input it is the input itself.

    Raises:
        ValueError: a size outside 1 to H or 1 to W.
    """
    H, W = right_image.shape[-2:]
    if not (1 <= height <= H and 1 <= width <= W):
        raise ValueError(f"`height` and `width` must lie in 1 to {[H, W]}; got {[height, width]}.")
    if (height, width) == (H, W):
        return WorkingPicture(right_image, right_hole_mask, right_disparity)
    size = (height, width)
    known = (~right_hole_mask).float()  # [B,1,H,W]
    share = functional.adaptive_avg_pool2d(known, size)  # [B,1,h,w]
    hole_mask = share < 0.5
    share = share.masked_fill(hole_mask, 1.0)

    def mean_of_known(value: Tensor) -> Tensor:
        return (functional.adaptive_avg_pool2d(value * known, size) / share).masked_fill(hole_mask, 0.0)

    disparity = None if right_disparity is None else mean_of_known(right_disparity)
    return WorkingPicture(mean_of_known(right_image).clamp(0.0, 1.0), hole_mask, disparity)


class Tile(NamedTuple):
    """A rectangle of a latent picture: first and last row (excluded), first and last column (excluded)."""

    top: int
    bottom: int
    left: int
    right: int

    def scaled(self, factor: int) -> Tile:
        """Return the same rectangle in pixels of `factor` per latent pixel."""
        return Tile(*(factor * value for value in self))

    def of(self, value: Tensor) -> Tensor:
        """Cut the rectangle out of [...,H,W]; a view."""
        return value[..., self.top : self.bottom, self.left : self.right]


def place_tiles(height: int, width: int, tile_size: int) -> list[Tile]:
    """Cover a picture with overlapping tiles of one size, evenly spaced, row by row.

    Neighbours overlap by at least a quarter of a tile. A picture no larger than a tile along an axis has one tile
    there.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        tile_size: side of a tile, >= 1.

    Returns:
        Tiles inside the picture that cover it.
    """

    def starts(length: int) -> list[int]:
        if length <= tile_size:
            return [0]
        overlap = -(-tile_size // TILE_OVERLAP_SHARE)
        count = 1 + -(-(length - tile_size) // max(1, tile_size - overlap))
        return [round(i * (length - tile_size) / (count - 1)) for i in range(count)]

    return [
        Tile(top, min(top + tile_size, height), left, min(left + tile_size, width))
        for top in starts(height)
        for left in starts(width)
    ]


def blend_tiles(
    tiles: list[Tile], shape: tuple[int, ...], used: Tensor, compute: Callable[[Tile], Tensor], factor: int = 1
) -> Tensor:
    """Compute a picture tile by tile and blend overlaps with weights that fall linearly towards each tile's border.

    Args:
        tiles: from `place_tiles`. A single tile is computed and passed on as it is.
        shape: [B,C,H,W] of the result.
        used: [B,len(tiles)] bool: which images need which tile. A tile that no image needs is not computed, and an
            image takes nothing from tiles that it does not need, so that a batch equals its images one by one.
        compute: gives [B,C,tile height,tile width] of a tile, both times `factor`.
        factor: pixels of the result per pixel of the tiles.

    Returns:
        [B,C,H,W] float32; 0 where no tile is needed.
    """
    if len(tiles) == 1:
        return compute(tiles[0])
    total, weights = None, None
    for number, tile in enumerate(tiles):
        if not used[:, number].any():
            continue
        value = compute(tile).float()
        if total is None or weights is None:
            total = value.new_zeros(shape)
            weights = value.new_zeros((shape[0], 1, *shape[-2:]))
        rows, columns = (
            torch.arange(1.0, length + 1, device=value.device).minimum(
                torch.arange(length, 0.0, -1, device=value.device)
            )
            for length in value.shape[-2:]
        )
        weight = rows[:, None] * columns * used[:, number].to(value.device).view(-1, 1, 1, 1)  # [B,1,h,w]
        place = tile.scaled(factor)
        place.of(total).add_(value * weight)
        place.of(weights).add_(weight)
    if total is None or weights is None:
        return torch.zeros(shape, device=used.device)
    return total / weights.clamp(min=1.0)


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


def encode_prompt_compactly(prompt_embeds: Tensor, text_encoder: str, revision: str) -> dict[str, Any]:
    """Turn a prompt embedding into a small dictionary for a JSON file, exact to the bit.

    Args:
        prompt_embeds: [tokens,channels] float32, finite.
        text_encoder: id of the text encoder that made it, such as "org/repo/text_encoder".
        revision: commit of that repository.

    Returns:
        {"base64": little-endian float32 bytes, "dtype": "float32", "shape": [tokens, channels], "text_encoder",
        "revision"}, what `decode_compact_prompt` reads.

    Raises:
        ValueError: another shape or dtype, or a value that is not finite.
    """
    if prompt_embeds.ndim != 2 or prompt_embeds.dtype != torch.float32 or prompt_embeds.numel() == 0:
        raise ValueError(
            "`prompt_embeds` must be a float32 tensor of shape [tokens,channels]; "
            f"got {prompt_embeds.dtype} of shape {list(prompt_embeds.shape)}."
        )
    _check_finite("prompt_embeds", prompt_embeds)
    data = np.ascontiguousarray(prompt_embeds.detach().cpu().numpy(), dtype="<f4").tobytes()
    return {
        "base64": base64.b64encode(data).decode("ascii"),
        "dtype": "float32",
        "shape": list(prompt_embeds.shape),
        "text_encoder": text_encoder,
        "revision": revision,
    }


def decode_compact_prompt(compact: dict[str, Any], name: str = "empty_prompt_embeds") -> Tensor:
    """Read what `encode_prompt_compactly` wrote: [tokens,channels] float32, exact to the bit.

    Args:
        compact: the dictionary.
        name: how error messages call it.

    Raises:
        ValueError: other keys, another dtype, a shape that is not two positive integers, bytes that are no base64 or
            of another count, or a value that is not finite.
    """
    if sorted(compact) != list(COMPACT_PROMPT_KEYS):
        raise ValueError(f"`{name}` must have the keys {list(COMPACT_PROMPT_KEYS)}; got {sorted(compact)}.")
    if compact["dtype"] != "float32":
        raise ValueError(f'`{name}` must have "dtype" "float32"; got {compact["dtype"]!r}.')
    shape = compact["shape"]
    if not isinstance(shape, (list, tuple)) or len(shape) != 2 or not all(_is_int(n) and n > 0 for n in shape):
        raise ValueError(f'`{name}` must have a "shape" of two positive integers; got {shape!r}.')
    try:
        data = base64.b64decode(compact["base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold base64 text; got {str(compact['base64'])[:40]!r}.") from error
    if len(data) != 4 * shape[0] * shape[1]:
        raise ValueError(
            f"`{name}` must hold {4 * shape[0] * shape[1]} bytes for float32 of shape {list(shape)}; got {len(data)}."
        )
    prompt_embeds = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32)).view(*shape)
    _check_finite(name, prompt_embeds)
    return prompt_embeds


def _load_prompt(value: list | dict) -> Tensor:
    """Read a configured `empty_prompt_embeds` of either form as [tokens,channels] float32.

    Raises:
        ValueError: no table of finite numbers, or as `decode_compact_prompt`.
    """
    if isinstance(value, dict):
        return decode_compact_prompt(value)
    try:
        prompt_embeds = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`empty_prompt_embeds` must be numbers, tokens x channels; {error}.") from error
    if prompt_embeds.ndim != 2 or prompt_embeds.numel() == 0:
        raise ValueError(
            f"`empty_prompt_embeds` must be tokens x channels; got a list of shape {list(prompt_embeds.shape)}."
        )
    _check_finite("empty_prompt_embeds", prompt_embeds)
    return prompt_embeds


# ---------------------------------------------------------------------------------------------------------------------
# 5. Records
# ---------------------------------------------------------------------------------------------------------------------


class Photographs(NamedTuple):
    """Loaded photographs of one size.

    Attributes:
        pixels: [B,3,H,W] float32 in [0,1], in each photograph's own colours.
        icc_profiles: one colour profile per photograph; None = sRGB.
    """

    pixels: Tensor
    icc_profiles: list[bytes | None]


@dataclass
class ZeroStereoPipelineOutput(BaseOutput):
    """A stereo pair for each photograph: B photographs give N new views, N = B, or 2B with `target_view="both"`.

    With "both" the new views are left and right eye of photograph 0, then of photograph 1, and so on.

    Shapes by `output_type`: "pt" tensors [N,C,H,W] (C = 1 for maps and masks), "np" arrays [N,H,W,C], "pil" a list of
    N PIL images, and arrays [N,H,W] for maps and masks; "latent" as "pt". Maps are float32, masks bool, image values
    lie in [0,1], in the colours of the photograph; PIL images carry its colour profile.

    Attributes:
        images: N new views. Known pixels equal those of `warped_images` bit for bit, holes are invented. With
            `output_type="latent"` the denoised latents [N,c,h,w] of the networks' working picture.
        disparity: B maps, px, input view, >= 0: the input pixel at column x is seen at column x - d of a new right
            view, x + d of a new left view, and half as far in each with "both". As given where `disparity=` was
            passed (infinite = unknown).
        confidence: B maps in [0,1], input view: flip consistency stretched within each image (not comparable between
            images). None where the depth network did not run.
        hole_mask: N masks, new view, True where the pixel is invented.
        visible_mask: N masks, input view, True where the pixel is seen in the new view.
        warped_images: N new views before inpainting, 0 in holes.
        new_view_disparity: N maps, px, new view, 0 in holes: to the other eye's view (with "both" that is the other
            new view, so the full disparity).
        disparity_scale: [B] float32, s: the largest possible disparity as a share of the width. None where
            `disparity=` or `baseline_m=` was passed.
        flip_agreement: [B] float32 in [0,1], mean of u = 1 - |difference| of the flip consistency: comparable between
            images. None where the depth network did not run.
        input_images: B photographs as they were used: upright, first frame, RGB.
        target_view: "right", "left" or "both", as asked for.
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
    input_images: list[PIL.Image.Image] | np.ndarray | Tensor
    target_view: str

    @property
    def left_image(self) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """The left eye of each photograph, B of them, whatever the target."""
        if self.target_view == "both":
            return self.images[0::2]
        return self.images if self.target_view == "left" else self.input_images

    @property
    def right_image(self) -> list[PIL.Image.Image] | np.ndarray | Tensor:
        """The right eye of each photograph, B of them, whatever the target."""
        if self.target_view == "both":
            return self.images[1::2]
        return self.images if self.target_view == "right" else self.input_images


# ---------------------------------------------------------------------------------------------------------------------
# 6. StereoImageProcessor: files and arrays in, arrays and pictures out
# ---------------------------------------------------------------------------------------------------------------------

PILImageInput = PIL.Image.Image | np.ndarray | Tensor | list[PIL.Image.Image] | list[np.ndarray] | list[Tensor]

ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
PROFILE_MODES = {
    "RGB": "RGB",
    "GRAY": "L",
    "CMYK": "CMYK",
    "LAB": "LAB",
}  # colour space of a profile -> mode of Pillow
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# Anaglyphs for red-cyan glasses, red before the left eye: rows are R, G, B of the anaglyph, columns R, G, B of the
# left and the right view. Each row that is not empty sums to 1 over both views, so grey keeps its level.
#
# Dubois' least-squares projection: E. Dubois, "A projection method to generate anaglyph stereo images", ICASSP 2001.
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
# The others: P. Wimmer, "Anaglyph Methods Comparison", https://www.3dtv.at/Knowhow/AnaglyphComparison_en.aspx. Their
# grey is the luma of ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
NO_CHANNEL = (0.0, 0.0, 0.0)
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
ANAGLYPH_MATRICES = {  # method -> (matrix of the left view, matrix of the right view)
    "dubois": (DUBOIS_LEFT, DUBOIS_RIGHT),
    "color": ((RED, NO_CHANNEL, NO_CHANNEL), (NO_CHANNEL, GREEN, BLUE)),
    "half_color": ((LUMA, NO_CHANNEL, NO_CHANNEL), (NO_CHANNEL, GREEN, BLUE)),
    "optimized": (((0.0, 0.7, 0.3), NO_CHANNEL, NO_CHANNEL), (NO_CHANNEL, GREEN, BLUE)),
    "gray": ((LUMA, NO_CHANNEL, NO_CHANNEL), (NO_CHANNEL, LUMA, LUMA)),
    "true": ((LUMA, NO_CHANNEL, NO_CHANNEL), (NO_CHANNEL, NO_CHANNEL, LUMA)),
}
OPTIMIZED_RED_GAMMA = 1.5  # brightens the red channel of "optimized"

SIDE_BY_SIDE_LAYOUTS = ("parallel", "cross_eyed")
FRAME_SIZES = ("full", "half")

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

WIGGLE_FRAME_MS = 150  # how long a wigglegram shows each view
GIF_TICK_MS = 10  # GIF counts time in hundredths of a second
SHORTEST_FRAME_MS = 20  # browsers slow shorter frames of a GIF down to 100 ms
JPEG_LARGEST_SIDE, GIF_LARGEST_SIDE = 65500, 65535  # px, of the encoders
WEBP_LARGEST_SIDE, MP4_LARGEST_SIDE = 16383, 16384  # px
MP4_QUALITY = 8  # of imageio's 0 to 10

MPO_DISPARITY_TYPE = 0x020002  # "Multi-Frame Image (Disparity)" of CIPA DC-007, 5.2.3.3.1
MPO_REPRESENTATIVE_FLAG = 1 << 29  # the one that a viewer without stereo shows

SCALE_BAR_BACKGROUND, SCALE_BAR_INK = (255, 255, 255), (30, 30, 30)
SCALE_BAR_SMALLEST_WIDTH = 160  # px that the scale bar needs to be read; narrower maps get white margins

MAX_DEPTH_RATIO = 3.0  # a point cloud ends at this times the distance of its nearest point


class PointCloud(NamedTuple):
    """Points of a scene in the axes of glTF: x right, y up, z towards the viewer, camera at the origin.

    Attributes:
        positions: [N,3] float32, in metres where the baseline was given in metres, else in baselines; z < 0.
        colors: [N,3] uint8, sRGB.
    """

    positions: np.ndarray
    colors: np.ndarray


class StereoImageProcessor:
    """Converts what users hand in and take away; `pipe.image_processor`.

    Holds no state; every method is static, so it also serves without a pipeline.
    """

    # --- in ---

    @staticmethod
    def open(path: str | os.PathLike) -> PIL.Image.Image:
        """Open a photograph file of any format that Pillow reads; HEIC through the optional package pillow-heif.

        Raises:
            ImportError: a HEIC file, and pillow-heif is not installed.
            OSError: no such file, or none that Pillow reads (`PIL.UnidentifiedImageError`).
        """
        try:
            return PIL.Image.open(path)
        except PIL.UnidentifiedImageError as error:
            with open(path, "rb") as file:
                start = file.read(12)
            if start[4:8] != b"ftyp" or start[8:12] not in HEIC_BRANDS:
                raise
            try:
                pillow_heif: Any = importlib.import_module("pillow_heif")
            except ImportError:
                raise ImportError(
                    "`path` must be of a format that Pillow reads, or the package pillow-heif must be installed "
                    f"(pip install pillow-heif); got the HEIC file {path}."
                ) from error
            return pillow_heif.open_heif(path).to_pillow()

    @staticmethod
    def preprocess(image: PILImageInput | Photographs, name: str = "image") -> Tensor:
        """Load photographs as the networks see them: `load`, then sRGB.

        Args:
            image: as in `load`.
            name: the argument, for messages.

        Returns:
            [B,3,H,W] float32 in [0,1], sRGB. A float32 tensor [B,3,H,W] is returned as it is, not copied.

        Raises:
            TypeError, ValueError: as `load`.
        """
        photographs = StereoImageProcessor.load(image, name)
        return StereoImageProcessor.to_srgb(photographs.pixels, photographs.icc_profiles)

    @staticmethod
    def load(image: PILImageInput | Photographs, name: str = "image") -> Photographs:
        """Load one photograph or a batch of equal size, in its own colours.

        Rules for PIL images: the EXIF orientation is applied. Of several frames the one that the image stands at is
        used, which is the first of a file just opened. Grey, 16-bit grey, palette, CMYK, LAB and other modes become
        RGB, through their colour profile where they have one; an RGB profile is kept, not applied, unless it leads to
        sRGB only and not back. Transparency that
        is opaque everywhere is dropped; else the photograph is composited on white. What changes the picture
        (frames left out, transparency, a profile that cannot be used) is logged as a warning.

        Args:
            image: PIL image; array [H,W,3] or [B,H,W,3]; tensor [3,H,W] or [B,3,H,W]; or a list of one of these kinds
                without the batch axis. Arrays and tensors are uint8 in 0..255, uint16 in 0..65535 or float in [0,1].
            name: the argument, for messages.

        Returns:
            Photographs: pixels on the device of the tensors handed in, else on the CPU. A float32 tensor [B,3,H,W] is
            passed on, not copied.

        Raises:
            TypeError: another kind of object.
            ValueError: an empty list, images of different sizes, another number of channels, a PIL image of mode "I"
                or "F" (its range is not known), or values outside [0,1].
        """
        if isinstance(image, Photographs):
            return image
        items = image if isinstance(image, list) else [image]
        if not items:
            raise ValueError(f"`{name}` must hold at least one image; got an empty list.")
        loaded = [StereoImageProcessor._load_item(item, name, listed=isinstance(image, list)) for item in items]
        sizes = [tuple(one.pixels.shape[-2:]) for one in loaded]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"`{name}` must hold images of one size per call; got heights and widths "
                f"{[list(size) for size in sizes]}. Call the pipeline once per size."
            )
        if len(loaded) == 1:
            return loaded[0]
        return Photographs(
            torch.cat([one.pixels for one in loaded]), [profile for one in loaded for profile in one.icc_profiles]
        )

    @staticmethod
    def _load_item(image: Any, name: str, listed: bool) -> Photographs:
        """Load one item of `image=` as [1,3,H,W], or [B,3,H,W] for a batched array that is not part of a list."""
        profile: bytes | None = None
        if isinstance(image, PIL.Image.Image):
            image, profile = StereoImageProcessor._to_rgb(image, name)  # [H,W,3] uint8, or uint16 from 16-bit grey
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
            # torch warns of arrays that it must not write, and knows one byte order.
            native = image.astype(image.dtype.newbyteorder("="), copy=not image.flags.writeable)
            image = torch.from_numpy(np.ascontiguousarray(native)).movedim(-1, -3)
        image = image if image.ndim == 4 else image[None]
        if image.dtype in (torch.uint8, torch.uint16):
            image = image.float() / torch.iinfo(image.dtype).max
        elif not image.is_floating_point():
            raise ValueError(
                f"`{name}` must be uint8 in 0..255, uint16 in 0..65535 or float in [0, 1]; got dtype {image.dtype}."
            )
        lowest, highest = (bound.item() for bound in torch.aminmax(image))
        if not (lowest >= 0.0 and highest <= 1.0):
            raise ValueError(f"`{name}` must lie in [0, 1] where it is float; got {lowest:g} to {highest:g}.")
        return Photographs(image.float(), [profile] * len(image))

    @staticmethod
    def _to_rgb(image: PIL.Image.Image, name: str) -> tuple[np.ndarray, bytes | None]:
        """Return the upright pixels [H,W,3] of a PIL image and the RGB colour profile that they are meant in."""
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            logger.warning(f"`{name}` has {frames} frames; frame {image.tell() + 1} is used and the others are not.")
        upright = PIL.ImageOps.exif_transpose(image)
        data = StereoImageProcessor._usable_profile(image, name)
        if upright.mode in ALPHA_MODES or "transparency" in upright.info:
            upright = StereoImageProcessor._without_alpha(upright, name)
        if upright.mode in SIXTEEN_BIT_MODES:
            grey = np.asarray(upright).astype(np.uint16)  # [H,W]
            return np.repeat(grey[..., None], 3, axis=-1), None
        if upright.mode not in ("RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV"):
            raise ValueError(
                f"`{name}` must be a PIL image of 8 bits a channel or 16-bit grey; got mode {image.mode!r}, whose "
                "range is not known. Scale it to 8 bits, or pass a float array in [0, 1]."
            )
        space = None if data is None else _profile_space(data)
        if upright.mode == "LAB" or space in ("GRAY", "CMYK"):
            upright = upright.convert(PROFILE_MODES[space or "LAB"])
            return np.array(_convert_picture(upright, data, to_srgb=True)), None
        if data is not None and not _is_convertible(data, to_srgb=False):
            return np.array(_convert_picture(upright.convert("RGB"), data, to_srgb=True)), None
        return np.array(upright.convert("RGB")), data

    @staticmethod
    def _without_alpha(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
        """Drop an alpha channel that is opaque everywhere, else composite on white."""
        if image.mode in SIXTEEN_BIT_MODES:
            raise ValueError(
                f"`{name}` must have no transparency where it has 16 bits; got a PIL image of mode {image.mode!r}. "
                "Composite it on a background first."
            )
        with_alpha = image.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        lowest, _ = alpha.getextrema()
        flat = PIL.Image.new("RGB", image.size, "white")
        flat.paste(with_alpha.convert("RGB"), mask=alpha)
        if lowest != 255:
            logger.warning(f"`{name}` is transparent in places; it is composited on white.")
        return flat

    @staticmethod
    def _usable_profile(image: PIL.Image.Image, name: str) -> bytes | None:
        """Return the colour profile of a PIL image if it can be read and suits the image's mode."""
        data = image.info.get("icc_profile")
        if not data:
            return None
        space = _profile_space(data)
        suits = {"RGB": ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA"), "CMYK": ("CMYK",), "LAB": ("LAB",)}
        suits["GRAY"] = ("L", "LA", "La", "1")
        readable = space is not None and _is_convertible(data, to_srgb=True)
        if readable and image.mode in suits[space or "RGB"]:
            return data
        found = f"is for {space}, not for mode {image.mode!r}" if readable else "cannot be read"
        logger.warning(f"`{name}` has a colour profile that {found}; the photograph is taken for sRGB.")
        return None

    @staticmethod
    def to_srgb(pixels: Tensor, icc_profiles: list[bytes | None]) -> Tensor:
        """Convert pictures from their own colours to sRGB.

        Args:
            pixels: [N,3,H,W] float in [0,1].
            icc_profiles: N RGB colour profiles; None = sRGB.

        Returns:
            [N,3,H,W], float32, in [0,1]; 8-bit steps where there is a profile. The very tensor where there is none.

        Raises:
            ValueError: another number of profiles than pictures.
        """
        return _convert_colors(pixels, icc_profiles, to_srgb=True)

    @staticmethod
    def from_srgb(pixels: Tensor, icc_profiles: list[bytes | None]) -> Tensor:
        """Convert pictures from sRGB to the colours of their profiles; see `to_srgb`."""
        return _convert_colors(pixels, icc_profiles, to_srgb=False)

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
    def postprocess(images: Tensor, output_type: str, icc_profiles: list[bytes | None] | None = None) -> Any:
        """Convert images [B,3,H,W] in [0,1] to `output_type`: "pt" and "latent" as they are, "np" [B,H,W,3], "pil".

        PIL images carry the profiles, which Pillow writes into PNG and TIFF files by itself, into JPEG and WebP files
        with `save(..., icc_profile=image.info.get("icc_profile"))`.
        """
        if output_type in ("pt", "latent"):
            return images
        array = images.float().movedim(1, -1).cpu().numpy()  # [B,H,W,3]
        if output_type == "np":
            return array
        pictures = [PIL.Image.fromarray(np.rint(one * 255.0).astype(np.uint8)) for one in array]
        for picture, profile in zip(pictures, icc_profiles or [None] * len(pictures), strict=True):
            if profile is not None:
                picture.info["icc_profile"] = profile
        return pictures

    @staticmethod
    def postprocess_map(value: Tensor | None, output_type: str) -> Any:
        """Convert maps or masks [B,1,H,W]: "pt" and "latent" as they are, "np" [B,H,W,1], "pil" an array [B,H,W]."""
        if value is None or output_type in ("pt", "latent"):
            return value
        array = value.movedim(1, -1).cpu().numpy()  # [B,H,W,1]
        return array if output_type == "np" else array[..., 0]

    @staticmethod
    def postprocess_vector(value: Tensor | None, output_type: str) -> Any:
        """Convert one number per image [B] to `output_type`: "pt" and "latent" as they are, else an array [B]."""
        return value if value is None or output_type in ("pt", "latent") else value.cpu().numpy()

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
    def visualize_disparity(
        disparity: np.ndarray | Tensor, lowest: float | None = None, highest: float | None = None
    ) -> list[PIL.Image.Image]:
        """Paint disparity maps in colour, with a scale bar in px below.

        The map itself is the picture of `visualize_map`, pixel for pixel, at the top; maps narrower than 160 px stand
        in the middle of white margins, so that the bar can be read.

        Args:
            disparity: px, >= 0, map output of any `output_type`, or one map [H,W]; not finite = unknown: black, and
                named in the bar.
            lowest: px of the darkest colour; None = the lowest known value of each map.
            highest: px of the brightest colour; None = the highest known value of each map.

        Returns:
            One RGB image per map.

        Raises:
            ValueError: a negative disparity.

        Degenerate cases: a constant map has one colour and one tick; a map without known values only the word
        "unknown".
        """
        maps = StereoImageProcessor._to_disparity_maps(disparity)
        pictures = []
        for one, painted in zip(maps, StereoImageProcessor.visualize_map(maps, lowest, highest), strict=True):
            known = one[np.isfinite(one)]
            bounds = (float(known.min()), float(known.max())) if known.size else None
            if bounds is not None:
                bounds = (bounds[0] if lowest is None else lowest, bounds[1] if highest is None else highest)
            bar = StereoImageProcessor._draw_scale_bar(painted.size, bounds, names_unknown=known.size < one.size)
            picture = PIL.Image.new("RGB", (bar.width, painted.height + bar.height), SCALE_BAR_BACKGROUND)
            picture.paste(painted, ((bar.width - painted.width) // 2, 0))
            picture.paste(bar, (0, painted.height))
            pictures.append(picture)
        return pictures

    @staticmethod
    def _draw_scale_bar(
        size: tuple[int, int], bounds: tuple[float, float] | None, names_unknown: bool
    ) -> PIL.Image.Image:
        """Draw the colours from lowest to highest with ticks in px; `size` is that of the map above."""
        width = max(size[0], SCALE_BAR_SMALLEST_WIDTH)
        unit = max(12, round((size[0] * size[1]) ** 0.5 / 32))  # height of the letters in px, fits small and huge maps
        unit = min(unit, width // 13)
        font = PIL.ImageFont.load_default(unit)
        bar = PIL.Image.new("RGB", (width, 3 * unit + unit // 2), SCALE_BAR_BACKGROUND)
        draw = PIL.ImageDraw.Draw(bar)
        top, bottom, left, right = unit // 2, unit // 2 + unit, unit, width - unit - 1
        if names_unknown:
            word = round(draw.textlength("unknown", font))
            draw.rectangle((right - word, top, right, bottom), fill=(0, 0, 0))
            draw.text((right - word / 2, bottom + unit // 2), "unknown", SCALE_BAR_INK, font, anchor="mt")
            right -= word + unit
        if bounds is None:
            return bar
        lowest, highest = bounds
        ramp = np.linspace(lowest, highest, right - left + 1, dtype=np.float64)
        colors = StereoImageProcessor.visualize_map(np.repeat(ramp[None], bottom - top + 1, axis=0), lowest, highest)
        bar.paste(colors[0], (left, top))
        for most in range(10, 0, -1):  # as many ticks as there is room for their labels
            ticks = StereoImageProcessor._choose_ticks(lowest, highest, most)
            labels = [f"{tick:g}" for tick in ticks[:-1]] + [f"{ticks[-1]:g} px"]
            room = max(draw.textlength(label, font) for label in labels) + unit / 2
            if len(ticks) < 2 or room <= (ticks[1] - ticks[0]) / (highest - lowest) * (right - left):
                break
        for tick, label in zip(ticks, labels, strict=True):
            share = (tick - lowest) / (highest - lowest) if highest > lowest else 0.0
            x = left + round(share * (right - left))
            draw.line((x, bottom, x, bottom + unit // 3), fill=SCALE_BAR_INK, width=max(1, unit // 12))
            half = draw.textlength(label, font) / 2
            x = min(max(x, left + half - unit / 2), right - half + unit / 2)  # labels at the ends stay inside
            draw.text((x, bottom + unit // 2), label, SCALE_BAR_INK, font, anchor="mt")
        return bar

    @staticmethod
    def _choose_ticks(lowest: float, highest: float, most: int) -> list[float]:
        """Return at most `most` (at least one) multiples of 1, 2 or 5 times a power of ten in [lowest, highest]."""
        if not highest > lowest:
            return [float(f"{lowest:.3g}")]
        power = 10.0 ** math.floor(math.log10((highest - lowest) / most))
        ticks: list[float] = []
        for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
            first, last = math.ceil(lowest / step), math.floor(highest / step)
            if last < first:
                break  # a short range between two multiples keeps ticks of the finer step
            ticks = [float(f"{index * step:.6g}") for index in range(first, last + 1)]
            if len(ticks) <= most:
                break
        return ticks[:most]

    # --- files of disparity ---

    @staticmethod
    def _to_disparity_maps(disparity: np.ndarray | Tensor) -> np.ndarray:
        """Bring disparity to [B,H,W] float32, inf where it is not finite, refusing negative values."""
        if isinstance(disparity, Tensor):
            disparity = disparity.float()  # numpy has no bfloat16
        maps = StereoImageProcessor._to_maps(disparity).astype(np.float32)
        maps = np.where(np.isfinite(maps), maps, np.float32(np.inf))
        if maps.size and maps.min() < 0:
            raise ValueError(f"`disparity` must not be negative; got a minimum of {maps.min():g}.")
        return maps

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
        for one in StereoImageProcessor._to_disparity_maps(disparity):
            known = np.isfinite(one)
            values = np.where(known, one, 0.0).astype(np.float64)
            scale = PNG16_SCALE
            while np.rint(values.max() * scale) + 1 > np.iinfo(np.uint16).max:
                scale /= 2
            codes = np.where(known, np.rint(values * scale) + 1, 0).astype(np.uint16)
            encoded.append((PIL.Image.fromarray(codes), scale))
        return encoded

    @staticmethod
    def export_disparity_to_tiff(disparity: np.ndarray | Tensor) -> list[PIL.Image.Image]:
        """Turn disparity maps into images of mode "F", which `.save("disparity.tiff")` writes as float32, exactly.

        Args:
            disparity: px, >= 0, map output of any `output_type`, or one map [H,W].

        Returns:
            One image of mode "F" per map, px; inf = unknown (not finite).

        Raises:
            ValueError: a negative disparity.
        """
        return [PIL.Image.fromarray(one) for one in StereoImageProcessor._to_disparity_maps(disparity)]

    @staticmethod
    def export_disparity_to_pfm(disparity: np.ndarray | Tensor) -> list[bytes]:
        """Encode disparity maps as PFM files, the format of the Middlebury and Scene Flow ground truth.

        Args:
            disparity: px, >= 0, map output of any `output_type`, or one map [H,W].

        Returns:
            The bytes of one file per map: "Pf", little endian float32, rows from bottom to top; inf = unknown (not
            finite), as Middlebury has it.

        Raises:
            ValueError: a negative disparity.
        """
        files = []
        for picture in StereoImageProcessor.export_disparity_to_tiff(disparity):
            file = io.BytesIO()
            picture.save(file, format="PPM")  # Pillow writes mode "F" as PFM
            files.append(file.getvalue())
        return files

    # --- stereo pictures ---

    @staticmethod
    def _load_views(
        left_view: PIL.Image.Image, right_view: PIL.Image.Image
    ) -> tuple[PIL.Image.Image, PIL.Image.Image]:
        """Apply the EXIF orientation, which the pipeline applied too, and make both RGB of one colour profile.

        Both carry the left view's profile in `info["icc_profile"]`, or both none. A profile of grey or CMYK says
        nothing about the RGB values that Pillow makes of such a view, and is left out.
        """
        left, right = (PIL.ImageOps.exif_transpose(view).convert("RGB") for view in (left_view, right_view))
        if left.size != right.size:
            raise ValueError(f"`right_view` must have the size of `left_view`, {left.size}; got {right.size}.")
        for view in (left, right):
            if (view.info.get("icc_profile") or b"")[16:20] != b"RGB ":
                view.info.pop("icc_profile", None)
        profile, profile_of_right = left.info.get("icc_profile"), right.info.get("icc_profile")
        if profile_of_right not in (None, profile):
            raise ValueError(
                "`right_view` must have the colour profile of `left_view`, or none; got another profile. "
                "Convert one view to the colours of the other first (PIL.ImageCms)."
            )
        if profile is not None:
            right.info["icc_profile"] = profile
        return left, right

    @staticmethod
    def _to_srgb(view: PIL.Image.Image, name: str) -> PIL.Image.Image:
        """Convert an RGB view that carries a colour profile to sRGB; one without is taken to be sRGB already."""
        profile = view.info.get("icc_profile")
        if profile is None:
            return view
        try:
            return _convert_picture(view, profile, to_srgb=True)
        except (OSError, PIL.ImageCms.PyCMSError) as error:
            raise ValueError(f"`{name}` must have a colour profile that can be read; got: {error}.") from error

    @staticmethod
    def converge(
        left_view: PIL.Image.Image, right_view: PIL.Image.Image, convergence: int = 0
    ) -> tuple[PIL.Image.Image, PIL.Image.Image]:
        """Shift both views against each other, so that another depth lies in the plane of the screen.

        Convention: points whose disparity is `convergence` come to lie in the screen, nearer ones before it, farther
        ones behind it. Nothing is invented: for c > 0 the left view loses its first c columns and the right view its
        last c, for c < 0 the other way round. A point of disparity d then has the parallax d - c.

        Args:
            left_view: PIL image; its EXIF orientation is applied.
            right_view: PIL image of the same upright size.
            convergence: c in px. 0 leaves the most distant points in the screen.

        Returns:
            (left view, right view), RGB, both W - |c| wide, with the colour profile of the left view, if it has one.

        Raises:
            ValueError: views of different sizes or colour profiles, or a convergence that is no integer or leaves no
                column.
        """
        left, right = StereoImageProcessor._load_views(left_view, right_view)
        if not _is_int(convergence):
            raise ValueError(f"`convergence` must be an integer number of px; got {convergence!r}.")
        width, height = left.size
        kept = width - abs(convergence)
        if kept < 1:
            raise ValueError(
                f"`convergence` must leave at least one of the {width} columns of the views; got {convergence} px."
            )
        first_of_left, first_of_right = max(convergence, 0), max(-convergence, 0)
        return (
            left.crop((first_of_left, 0, first_of_left + kept, height)),
            right.crop((first_of_right, 0, first_of_right + kept, height)),
        )

    @staticmethod
    def side_by_side(
        left_view: PIL.Image.Image,
        right_view: PIL.Image.Image,
        layout: str = "parallel",
        size: str = "full",
        convergence: int = 0,
    ) -> PIL.Image.Image:
        """Put both views beside each other.

        Args:
            left_view: PIL image; its EXIF orientation is applied.
            right_view: PIL image of the same upright size.
            layout: "parallel" = the left view left, for headsets, players and parallel viewing; "cross_eyed" = the
                left view right, for crossing the eyes.
            size: "full" = every view as it is; "half" = each squeezed to half its width (rounded up), which players
                stretch again.
            convergence: px, see `converge`.

        Returns:
            RGB, twice as wide as a view ("full"), or as wide as one ("half"; one column more where that is odd), with
            the colour profile of the left view, if it has one.

        Raises:
            ValueError: an unknown layout or size, or see `converge`.
        """
        if layout not in SIDE_BY_SIDE_LAYOUTS:
            raise ValueError(f"`layout` must be one of {SIDE_BY_SIDE_LAYOUTS}; got {layout!r}.")
        views = StereoImageProcessor.converge(left_view, right_view, convergence)
        first, second = views if layout == "parallel" else views[::-1]
        return StereoImageProcessor._join(first, second, size, axis=0)

    @staticmethod
    def top_bottom(
        left_view: PIL.Image.Image, right_view: PIL.Image.Image, size: str = "full", convergence: int = 0
    ) -> PIL.Image.Image:
        """Put the left view above the right one.

        Args:
            left_view: PIL image; its EXIF orientation is applied.
            right_view: PIL image of the same upright size.
            size: "full" = every view as it is; "half" = each squeezed to half its height (rounded up), which players
                stretch again.
            convergence: px, see `converge`.

        Returns:
            RGB, twice as high as a view ("full"), or as high as one ("half"; one row more where that is odd), with
            the colour profile of the left view, if it has one.

        Raises:
            ValueError: an unknown size, or see `converge`.
        """
        first, second = StereoImageProcessor.converge(left_view, right_view, convergence)
        return StereoImageProcessor._join(first, second, size, axis=1)

    @staticmethod
    def _join(first: PIL.Image.Image, second: PIL.Image.Image, size: str, axis: int) -> PIL.Image.Image:
        """Paste two views beside (axis 0) or below (axis 1) each other, squeezed along that axis if "half"."""
        if size not in FRAME_SIZES:
            raise ValueError(f"`size` must be one of {FRAME_SIZES}; got {size!r}.")
        width, height = first.size
        if size == "half":
            width, height = ((width + 1) // 2, height) if axis == 0 else (width, (height + 1) // 2)
            first, second = (view.resize((width, height), PIL.Image.Resampling.LANCZOS) for view in (first, second))
        corner = (width, 0) if axis == 0 else (0, height)
        picture = PIL.Image.new("RGB", (width + corner[0], height + corner[1]))
        picture.paste(first, (0, 0))
        picture.paste(second, corner)
        if "icc_profile" in first.info:
            picture.info["icc_profile"] = first.info["icc_profile"]
        return picture

    @staticmethod
    def anaglyph(
        left_view: PIL.Image.Image, right_view: PIL.Image.Image, method: str = "dubois", convergence: int = 0
    ) -> PIL.Image.Image:
        """Mix both views for red-cyan glasses, red before the left eye.

        The mixing assumes sRGB: views with a colour profile are converted first, and the anaglyph carries none.

        Args:
            left_view: PIL image; its EXIF orientation is applied.
            right_view: PIL image of the same upright size.
            method: "dubois" = least squares over what the glasses let through, little ghosting; "color" = red of the
                left, green and blue of the right view; "half_color" = the same with the luma of the left view as red,
                which flickers less at saturated colours; "optimized" = red from green and blue of the left view,
                brightened: reds are lost, hardly anything flickers; "gray" = no colours; "true" = no colours, red and
                blue only: dark, least ghosting.
            convergence: px, see `converge`.

        Returns:
            RGB picture of the size of `converge`'s views, sRGB.

        Raises:
            ValueError: an unknown method, a colour profile that cannot be read, or see `converge`.

        Source: see the matrices, `ANAGLYPH_MATRICES`.
        """
        if method not in ANAGLYPH_MATRICES:
            raise ValueError(f"`method` must be one of {tuple(ANAGLYPH_MATRICES)}; got {method!r}.")
        views = StereoImageProcessor.converge(left_view, right_view, convergence)
        of_left, of_right = (np.array(matrix, np.float32).T for matrix in ANAGLYPH_MATRICES[method])
        left, right = (
            np.asarray(StereoImageProcessor._to_srgb(view, name), dtype=np.float32)
            for view, name in zip(views, ("left_view", "right_view"), strict=True)
        )
        mixed = left @ of_left + right @ of_right  # [H,W,3]
        if method == "optimized":
            mixed[..., 0] = 255.0 * (mixed[..., 0] / 255.0) ** (1.0 / OPTIMIZED_RED_GAMMA)
        return PIL.Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))

    @staticmethod
    def export_views_to_mpo(
        left_view: PIL.Image.Image, right_view: PIL.Image.Image, quality: int = 95, convergence: int = 0
    ) -> bytes:
        """Encode both views as one MPO file, the format of stereo cameras, which 3D viewers open as a pair.

        Both are marked as the disparity pair of one scene, the left one first and as what a viewer without stereo
        shows. They are JPEG images without chroma subsampling: close to the views, not lossless.

        Args:
            left_view: PIL image; its EXIF orientation is applied.
            right_view: PIL image of the same upright size.
            quality: of JPEG, 1 to 100.
            convergence: px, see `converge`.

        Returns:
            The bytes of the file, with the colour profile of the left view in both images, if it has one.

        Raises:
            ValueError: a quality outside 1 to 100, views of more than 65500 px a side, or see `converge`.

        Source: CIPA DC-007 (Multi-Picture Format).
        """
        if not _is_int(quality) or not 1 <= quality <= 100:
            raise ValueError(f"`quality` must be an integer from 1 to 100; got {quality!r}.")
        left, right = StereoImageProcessor.converge(left_view, right_view, convergence)
        StereoImageProcessor._check_sides("left_view", left.size, 1, JPEG_LARGEST_SIDE, "MPO")
        file = io.BytesIO()
        left.save(
            file,
            format="MPO",
            save_all=True,
            append_images=[right],
            quality=quality,
            subsampling=0,
            icc_profile=left.info.get("icc_profile"),
        )
        encoded = bytearray(file.getvalue())
        # Pillow calls the second image "undefined". The 16-byte entries stand behind the 3 tags of the index, and the
        # index behind the 8 bytes of the header; each begins with the attributes.
        entries = encoded.index(b"MPF\0") + 4 + 8 + 2 + 3 * 12 + 4
        struct.pack_into("<L", encoded, entries, MPO_REPRESENTATIVE_FLAG | MPO_DISPARITY_TYPE)
        struct.pack_into("<L", encoded, entries + 16, MPO_DISPARITY_TYPE)
        return bytes(encoded)

    @staticmethod
    def wiggle(left_view: PIL.Image.Image, right_view: PIL.Image.Image, convergence: int = 0) -> list[PIL.Image.Image]:
        """Return the frames of a wigglegram, which shows depth without glasses: the left view, then the right view.

        Nothing is interpolated. Points whose disparity is `convergence` stand still; a wigglegram is calm where that
        is the disparity of what one looks at.

        Args:
            left_view: PIL image; its EXIF orientation is applied.
            right_view: PIL image of the same upright size.
            convergence: px, see `converge`.

        Returns:
            Two RGB frames, for `export_wiggle_to_gif`, `_to_webp` and `_to_mp4`.

        Raises:
            ValueError: see `converge`.
        """
        return list(StereoImageProcessor.converge(left_view, right_view, convergence))

    @staticmethod
    def _check_frames(frames: list[PIL.Image.Image], frame_ms: int) -> None:
        """Raise unless there are at least two RGB frames of one size and they are shown for long enough."""
        if len(frames) < 2 or len({frame.size for frame in frames}) > 1 or any(one.mode != "RGB" for one in frames):
            found = [(frame.mode, *frame.size) for frame in frames]
            raise ValueError(f"`frames` must be two or more RGB images of one size; got {found}.")
        if not _is_int(frame_ms) or frame_ms < SHORTEST_FRAME_MS:
            raise ValueError(f"`frame_ms` must be an integer of at least {SHORTEST_FRAME_MS} ms; got {frame_ms!r}.")

    @staticmethod
    def _check_sides(name: str, size: tuple[int, int], least: int, most: int, encoding: str) -> None:
        if not least <= min(size) <= max(size) <= most:
            raise ValueError(f"`{name}` must be {least} to {most} px a side for {encoding}; got {size}.")

    @staticmethod
    def _check_loop(loop: int) -> None:
        if not _is_int(loop) or loop < 0:
            raise ValueError(f"`loop` must be an integer >= 0, 0 = for ever; got {loop!r}.")

    @staticmethod
    def export_wiggle_to_gif(frames: list[PIL.Image.Image], frame_ms: int = WIGGLE_FRAME_MS, loop: int = 0) -> bytes:
        """Encode frames as an animated GIF of 256 colours, the same ones in all frames, so that none flickers.

        GIF knows no colour profiles: frames with one are converted to sRGB.

        Args:
            frames: from `wiggle`, at most 65535 px a side.
            frame_ms: how long each frame is shown, a multiple of 10.
            loop: how often it plays, 0 = for ever.

        Returns:
            The bytes of the file.

        Raises:
            ValueError: frames that do not fit together or are too large, or numbers outside their range.

        Degenerate cases: of equal frames in a row the file keeps one, shown for their whole time.
        """
        StereoImageProcessor._check_frames(frames, frame_ms)
        StereoImageProcessor._check_loop(loop)
        StereoImageProcessor._check_sides("frames", frames[0].size, 1, GIF_LARGEST_SIDE, "GIF")
        if frame_ms % GIF_TICK_MS:
            raise ValueError(f"`frame_ms` must be a multiple of {GIF_TICK_MS} ms for GIF; got {frame_ms}.")
        frames = [StereoImageProcessor._to_srgb(frame, "frames") for frame in frames]
        width, height = frames[0].size
        strip = PIL.Image.new("RGB", (width, height * len(frames)))
        for index, frame in enumerate(frames):
            strip.paste(frame, (0, index * height))
        palette = strip.quantize(256)
        first, *others = (frame.quantize(palette=palette, dither=PIL.Image.Dither.FLOYDSTEINBERG) for frame in frames)
        file = io.BytesIO()
        first.save(file, format="GIF", save_all=True, append_images=others, duration=frame_ms, loop=loop)
        return file.getvalue()

    @staticmethod
    def export_wiggle_to_webp(
        frames: list[PIL.Image.Image], frame_ms: int = WIGGLE_FRAME_MS, loop: int = 0, quality: int = 90
    ) -> bytes:
        """Encode frames as an animated WebP in full colour, with the colour profile of the first frame, if it has one.

        Args:
            frames: from `wiggle`, at most 16383 px a side.
            frame_ms: how long each frame is shown.
            loop: how often it plays, 0 = for ever.
            quality: 1 to 100, lossy.

        Returns:
            The bytes of the file.

        Raises:
            ValueError: frames that do not fit together or are too large, or numbers outside their range.
        """
        StereoImageProcessor._check_frames(frames, frame_ms)
        StereoImageProcessor._check_loop(loop)
        StereoImageProcessor._check_sides("frames", frames[0].size, 1, WEBP_LARGEST_SIDE, "WebP")
        if not _is_int(quality) or not 1 <= quality <= 100:
            raise ValueError(f"`quality` must be an integer from 1 to 100; got {quality!r}.")
        file = io.BytesIO()
        frames[0].save(
            file,
            format="WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=frame_ms,
            loop=loop,
            quality=quality,
            icc_profile=frames[0].info.get("icc_profile"),
        )
        return file.getvalue()

    @staticmethod
    def export_wiggle_to_mp4(
        frames: list[PIL.Image.Image], frame_ms: int = WIGGLE_FRAME_MS, repeats: int = 10
    ) -> bytes:
        """Encode frames as an H.264 video in an MP4 file, which every player shows; needs imageio and imageio-ffmpeg.

        Players want even sizes: an odd last column or row is left out, nothing is scaled. A video knows no loop, so
        the frames are repeated in the file. Frames with a colour profile are converted to sRGB.

        Args:
            frames: from `wiggle`, 2 to 16384 px a side.
            frame_ms: how long each frame is shown.
            repeats: how often the frames follow each other.

        Returns:
            The bytes of the file.

        Raises:
            ImportError: imageio or imageio-ffmpeg is not installed.
            ValueError: frames that do not fit together or are of another size, or numbers outside their range.
            RuntimeError: the encoder wrote nothing; it says why on stderr.
        """
        StereoImageProcessor._check_frames(frames, frame_ms)
        if not _is_int(repeats) or repeats < 1:
            raise ValueError(f"`repeats` must be an integer of at least 1; got {repeats!r}.")
        StereoImageProcessor._check_sides("frames", frames[0].size, 2, MP4_LARGEST_SIDE, "MP4")
        width, height = (side - side % 2 for side in frames[0].size)
        StereoImageProcessor.require_mp4()
        even = [StereoImageProcessor._to_srgb(frame, "frames").crop((0, 0, width, height)) for frame in frames]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "wiggle.mp4")
            fps: Any = 1000 / frame_ms  # imageio takes fractions, whatever the annotation says
            export_to_video(even * repeats, path, fps=fps, quality=MP4_QUALITY, macro_block_size=1)
            encoded = Path(path).read_bytes()
        if not encoded:
            raise RuntimeError("The MP4 encoder wrote nothing; its messages on stderr say why.")
        return encoded

    @staticmethod
    def require_mp4() -> None:
        """Raise an ImportError that names what to install unless MP4 files can be written."""
        try:
            for name in ("imageio", "imageio_ffmpeg"):
                importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                "MP4 files need imageio and imageio-ffmpeg: pip install imageio imageio-ffmpeg"
            ) from error

    # --- point clouds ---

    @staticmethod
    def point_cloud(
        image: PIL.Image.Image,
        disparity: np.ndarray | Tensor,
        fov_deg: float,
        baseline_m: float = 1.0,
        max_depth_ratio: float | None = MAX_DEPTH_RATIO,
        max_points: int | None = None,
    ) -> PointCloud:
        """Place every pixel of a view in space.

        Convention: pinhole camera at the origin, its axis through the middle of the picture, axes of glTF: x right,
        y up, z towards the viewer, so what is seen has z < 0. With focal_px = W / 2 / tan(fov / 2), a pixel of
        disparity d lies at depth -z = focal_px * baseline / d. Pixels of unknown disparity are left out. Those
        farther than `max_depth_ratio` times the nearest one are put at that depth on their rays, as a backdrop: the
        sky, and the farthest parts of a relative map, whose disparity is 0 by definition, have no finite place, and a
        viewer that shows the whole cloud would show a speck.

        Args:
            image: the view that the disparity belongs to; its EXIF orientation is applied, and it is converted to
                sRGB if it carries a colour profile.
            disparity: px, >= 0, one map of the size of the image in any of the shapes of the outputs; not finite =
                unknown.
            fov_deg: horizontal field of view of the photograph, in (0, 180). A photograph of 60 degrees that is said
                to have 30 becomes twice as deep.
            baseline_m: distance of the two cameras; 1 gives positions in units of it, a length in metres gives metres.
            max_depth_ratio: see above, >= 1; None for measured disparity: every point keeps its place, and pixels of
                disparity 0 are left out.
            max_points: at most that many points are returned, chosen evenly and always the same; None = all.

        Returns:
            PointCloud(positions [N,3] float32, colors [N,3] uint8), row by row.

        Raises:
            ValueError: a disparity that is negative or not of the size of the image, a number outside its range, a
                colour profile that cannot be read, or no pixel with a disparity above 0.
        """
        StereoImageProcessor._check_cloud_arguments(fov_deg, baseline_m, max_depth_ratio, max_points)
        upright, _ = StereoImageProcessor._load_views(image, image)
        maps = StereoImageProcessor._to_disparity_maps(disparity)
        if maps.shape != (1, upright.height, upright.width):
            raise ValueError(
                f"`disparity` must be one map of the size of `image`, {[upright.height, upright.width]}; "
                f"got {list(maps.shape)}."
            )
        colors = np.asarray(StereoImageProcessor._to_srgb(upright, "image"))  # [H,W,3]
        known = np.isfinite(maps[0])  # [H,W]
        values = np.where(known, maps[0], 0.0).astype(np.float64)  # [H,W]
        nearest = values.max()
        if not nearest > 0:
            raise ValueError("`disparity` must be above 0 px in at least one pixel; got none.")
        if max_depth_ratio is not None:
            values = np.maximum(values, nearest / max_depth_ratio)
        y, x = np.nonzero(known & (values > 0))
        if max_points is not None and len(y) > max_points:
            chosen = np.sort(np.random.default_rng(0).permutation(len(y))[:max_points])
            y, x = y[chosen], x[chosen]
        focal_px = upright.width / 2 / math.tan(math.radians(fov_deg) / 2)
        depth = focal_px * baseline_m / values[y, x]
        right = (x + 0.5 - upright.width / 2) * depth / focal_px
        up = (upright.height / 2 - y - 0.5) * depth / focal_px
        return PointCloud(np.stack([right, up, -depth], axis=1).astype(np.float32), colors[y, x])

    @staticmethod
    def _check_cloud_arguments(
        fov_deg: float, baseline_m: float, max_depth_ratio: float | None, max_points: int | None
    ) -> None:
        if not 0 < fov_deg < 180:
            raise ValueError(f"`fov_deg` must lie in (0, 180) degrees; got {fov_deg}.")
        if not 0 < baseline_m < math.inf:
            raise ValueError(f"`baseline_m` must be positive and finite; got {baseline_m}.")
        if max_depth_ratio is not None and not 1 <= max_depth_ratio < math.inf:
            raise ValueError(f"`max_depth_ratio` must be None or a number of at least 1; got {max_depth_ratio}.")
        if max_points is not None and (not _is_int(max_points) or max_points < 1):
            raise ValueError(f"`max_points` must be None or an integer of at least 1; got {max_points!r}.")

    @staticmethod
    def _check_cloud(cloud: PointCloud) -> None:
        positions, colors = cloud
        if positions.ndim != 2 or positions.shape[1] != 3 or len(positions) == 0 or colors.shape != positions.shape:
            raise ValueError(
                "`cloud` must have positions and colors of shape [N,3] with at least one point; "
                f"got {list(positions.shape)} and {list(colors.shape)}."
            )
        if not np.isfinite(positions).all():
            raise ValueError("`cloud` must have finite positions; got infinite or NaN ones.")

    @staticmethod
    def export_point_cloud_to_ply(cloud: PointCloud) -> bytes:
        """Encode a point cloud as a binary PLY file: x, y, z float and red, green, blue uchar, little endian.

        Args:
            cloud: from `point_cloud`, N >= 1.

        Returns:
            The bytes of the file, 15 a point.

        Raises:
            ValueError: positions or colors of another shape, or positions that are not finite.
        """
        StereoImageProcessor._check_cloud(cloud)
        layout = [("xyz", "<f4", 3), ("rgb", "u1", 3)]
        points = np.empty(len(cloud.positions), dtype=layout)
        points["xyz"], points["rgb"] = cloud.positions, cloud.colors
        lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
        lines += [f"property float {axis}" for axis in "xyz"]
        lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
        return "\n".join([*lines, "end_header\n"]).encode("ascii") + points.tobytes()

    @staticmethod
    def export_point_cloud_to_glb(cloud: PointCloud) -> bytes:
        """Encode a point cloud as a binary glTF 2.0 file with one mesh of POINTS.

        glTF wants linear colours, so the sRGB values are converted, and stored as float32: 8 bits would lose dark
        colours, and some readers take 16-bit colours for 8-bit ones. Points have no normals, so the material is unlit.

        Args:
            cloud: from `point_cloud`, N >= 1.

        Returns:
            The bytes of the file, 24 a point.

        Raises:
            ValueError: positions or colors of another shape, or positions that are not finite.

        Source: Khronos glTF 2.0 specification, 3.6 and 4.4; extension KHR_materials_unlit; the transfer function is
        that of IEC 61966-2-1.
        """
        StereoImageProcessor._check_cloud(cloud)
        positions = cloud.positions.astype("<f4")
        count = len(positions)
        encoded = np.arange(256) / 255.0
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        colors = linear.astype("<f4")[cloud.colors]  # [N,3]
        binary = positions.tobytes() + colors.tobytes()  # 12 bytes a point each, so both parts are aligned
        scene = {
            "asset": {"version": "2.0", "generator": "ZeroStereo"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0, "material": 0}]}],
            "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
            "accessors": [
                {
                    "bufferView": 0,
                    "componentType": 5126,  # float32
                    "count": count,
                    "type": "VEC3",
                    "min": positions.min(axis=0).tolist(),
                    "max": positions.max(axis=0).tolist(),
                },
                {"bufferView": 1, "componentType": 5126, "count": count, "type": "VEC3"},
            ],
            "bufferViews": [
                {"buffer": 0, "byteOffset": 0, "byteLength": positions.nbytes, "target": 34962},
                {"buffer": 0, "byteOffset": positions.nbytes, "byteLength": colors.nbytes, "target": 34962},
            ],
            "buffers": [{"byteLength": len(binary)}],
        }
        text = json.dumps(scene, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<L4s", len(text), b"JSON") + text + struct.pack("<L4s", len(binary), b"BIN\0") + binary
        return struct.pack("<4sLL", b"glTF", 2, 12 + len(chunks)) + chunks


# ---------------------------------------------------------------------------------------------------------------------
# 7. ZeroStereoPipeline
# ---------------------------------------------------------------------------------------------------------------------

LATENT_MASK_REDUCTIONS = ("nearest", "max")
MASKED_FILLS = ("zero", "background")
DEPTH_PREDICTIONS = ("inverse_depth", "depth", "metric_depth")
DEPTH_POSITION_EMBEDDINGS = ("transformers", "official")
TARGET_VIEWS = ("right", "left", "both")
FILLS = ("whole", "tiled", "background")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

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


class ZeroStereoPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    r"""Turns photographs into stereo pairs, after ZeroStereo (https://arxiv.org/abs/2501.08654).

    Depth network -> disparity range fitted to the image width -> forward warp with masks -> diffusion inpainting of
    the holes. The photograph is the left view and the new view the right one, unless `target_view` says otherwise.

    Model inherits from [`DiffusionPipeline`]; see there for loading, saving and moving to devices. LoRA weights of the
    UNet are loaded, fused and unloaded with the methods of [`StableDiffusionLoraLoaderMixin`].

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
        default_inpaint_resolution (`int`): upper bound of the inpainting networks' short side in px; 0 = none.
        tile_size (`int`): side in px of the tiles of `fill="tiled"`; what the UNet was trained on suits.
        depth_prediction (`str`): "inverse_depth" (Depth Anything), "depth" or "metric_depth" (metres).
        depth_mean (`list`), depth_std (`list`): normalisation of the depth network's input, RGB in [0,1].
        depth_size_multiple (`int`): the depth network's input is padded to multiples of this.
        empty_prompt_embeds (`list` or `dict`, *optional*): embedding of the empty prompt, tokens x channels, or its
            compact form (`encode_prompt_compactly`).
        depth_position_embedding (`str`): how a DINOv2 depth network resizes its position table to other picture
            sizes: "transformers", or "official" as Depth Anything's authors do. "official" is bound to the depth
            estimator that is passed, once, here; `restore_position_embedding` undoes it.
    """

    model_cpu_offload_seq = "depth_estimator->text_encoder->unet->vae"
    _optional_components = ["depth_estimator", "text_encoder", "tokenizer"]
    _lora_loadable_modules = ["unet"]
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
        default_inpaint_resolution: int = 0,
        tile_size: int = 512,
        depth_prediction: str = "inverse_depth",
        depth_mean: list = IMAGENET_MEAN,  # type: ignore[assignment]
        depth_std: list = IMAGENET_STD,  # type: ignore[assignment]
        depth_size_multiple: int = 14,
        empty_prompt_embeds: list | dict | None = None,
        depth_position_embedding: str = "transformers",
    ):
        """Check the configuration and keep the components."""
        super().__init__()
        for name, value, choices in (
            ("latent_mask_reduction", latent_mask_reduction, LATENT_MASK_REDUCTIONS),
            ("masked_fill", masked_fill, MASKED_FILLS),
            ("depth_prediction", depth_prediction, DEPTH_PREDICTIONS),
            ("depth_position_embedding", depth_position_embedding, DEPTH_POSITION_EMBEDDINGS),
        ):
            _check_choice(name, value, choices)
        for name, value, least in (
            ("default_num_inference_steps", default_num_inference_steps, 1),
            ("default_depth_resolution", default_depth_resolution, 0),
            ("default_inpaint_resolution", default_inpaint_resolution, 0),
            ("tile_size", tile_size, 1),
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
        if empty_prompt_embeds is not None:
            _load_prompt(empty_prompt_embeds)
        if depth_estimator is not None:
            _prepare_depth_estimator(depth_estimator, depth_position_embedding)
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
            default_inpaint_resolution=default_inpaint_resolution,
            tile_size=tile_size,
            depth_prediction=depth_prediction,
            depth_mean=list(depth_mean),
            depth_std=list(depth_std),
            depth_size_multiple=depth_size_multiple,
            empty_prompt_embeds=empty_prompt_embeds,
            depth_position_embedding=depth_position_embedding,
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

    # --- LoRA: of the UNet alone, for no prompt is ever given ---

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `load_lora_weights` fills the UNet, and there may be no text encoder."""

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Merge loaded LoRA weights into the UNet; see `LoraBaseMixin.fuse_lora`."""
        super().fuse_lora(components=["unet"] if components is None else components, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take merged LoRA weights out of the UNet again; see `LoraBaseMixin.unfuse_lora`."""
        super().unfuse_lora(components=["unet"] if components is None else components, **kwargs)

    # --- the public steps, each usable alone ---

    @torch.no_grad()
    def estimate_inverse_depth(
        self, image: PILImageInput | Photographs, depth_resolution: int | None = None
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
        inverse_depth, flip = self._predict_inverse_depth(image, depth_resolution)
        return normalize_inverse_depth(inverse_depth), flip

    @torch.no_grad()
    def estimate_metric_inverse_depth(
        self, image: PILImageInput | Photographs, depth_resolution: int | None = None
    ) -> tuple[Tensor, FlipConsistency]:
        """Run a metric depth network as `estimate_inverse_depth` does, without normalising what it says.

        Returns:
            (inverse depth [B,1,H,W] float32 in 1/m, FlipConsistency). Depths below a thousandth of the image's largest
            count as that.

        Raises:
            ValueError: no depth estimator, or one that is not configured as `depth_prediction="metric_depth"`; or its
                output is not finite.
        """
        if self.config.depth_prediction != "metric_depth":
            raise ValueError(
                '`depth_prediction` must be configured as "metric_depth" for distances in metres; '
                f"got {self.config.depth_prediction!r}."
            )
        return self._predict_inverse_depth(image, depth_resolution)

    def _predict_inverse_depth(
        self, image: PILImageInput | Photographs, depth_resolution: int | None
    ) -> tuple[Tensor, FlipConsistency]:
        """Return what the network says, inverted where it says depth, as [B,1,H,W], and FlipConsistency."""
        self._check_depth_arguments(depth_resolution)
        bound = self.config.default_depth_resolution if depth_resolution is None else depth_resolution
        image = self.image_processor.preprocess(image).to(self._execution_device)  # [B,3,H,W]
        B, _, H, W = image.shape
        h, w = _bounded_size(H, W, bound)
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
        if self.config.depth_prediction != "inverse_depth":
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
        return predicted[:B], flip_consistency(normalized[:B], normalized[B:])

    def select_disparity(
        self,
        normalized_inverse_depth: Tensor,
        disparity_scale: float | list[float] | Tensor,
        sharpen: bool = True,
    ) -> Tensor:
        """Fit a normalised inverse depth to the image width and sharpen it.

        Args:
            normalized_inverse_depth: [B,1,H,W] float in [0,1].
            disparity_scale: s, a number or one per image: largest disparity as a share of the width.
            sharpen: make hard steps of soft borders (`sharpen_disparity`); for maps that have hard steps, False.

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
        disparity = normalized_inverse_depth.float() * (scale * W).view(B, 1, 1, 1)
        return sharpen_disparity(disparity) if sharpen else disparity

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
            return _load_prompt(self.config.empty_prompt_embeds)[None]
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
        """Draw the initial noise, in float32 whatever the networks use, or take `latents`; scale for the scheduler.

        Noise is drawn picture after picture, also from a single generator, so that a batch equals its pictures one by
        one.
        """
        device = self._execution_device
        if latents is None:
            generators = [generator] * shape[0] if isinstance(generator, torch.Generator) else generator
            latents = randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)
        return latents.to(device, self.unet.dtype) * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def inpaint(
        self,
        warped_image: PILImageInput | Photographs,
        hole_mask: Tensor,
        new_view_disparity: Tensor | None = None,
        *,
        target_view: str = "right",
        fill: str = "whole",
        inpaint_resolution: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pt",
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Tensor:
        """Fill the holes of warped views by diffusion; no text guidance.

        Left views are filled as mirror images, because the networks were trained on right ones.

        Args:
            warped_image: [N,3,H,W] in [0,1], or any form that `__call__` takes.
            hole_mask: [N,1,H,W] bool, True where to fill.
            new_view_disparity: [N,1,H,W] px; needed where the weights want holes filled from the background, and for
                `fill="background"`.
            target_view: which eyes the views are: "right", "left", or "both" for left and right by turns.
            fill: as in `__call__`.
            inpaint_resolution: as in `__call__`.
            num_inference_steps: denoising steps; None = as configured.
            timesteps: as in `__call__`.
            sigmas: as in `__call__`.
            eta: as in `__call__`.
            generator: one, or one per view; with "both" also one per pair.
            latents: initial noise [N,c,h,w] of the working picture instead of drawn noise.
            output_type: "pt", or "latent" for the denoised latents [N,c,h,w] of the working picture.
            callback_on_step_end: as in `__call__`.
            callback_on_step_end_tensor_inputs: as in `__call__`.

        Returns:
            [N,3,H,W] float32 in [0,1]; known pixels bit for bit those of `warped_image`.

        Raises:
            ValueError: shapes disagree, or `new_view_disparity` is needed and missing.
        """
        warped, icc_profiles = self.image_processor.load(warped_image, "warped_image")  # [N,3,H,W]
        warped = warped.to(self._execution_device)
        self._check_inpaint_inputs(warped, hole_mask, new_view_disparity, target_view, fill)
        N, _, H, W = warped.shape
        copies = 2 if target_view == "both" else 1
        if isinstance(generator, list) and len(generator) * copies == N:
            generator = [one for one in generator for _ in range(copies)]
        self._check_loop_inputs(
            N,
            (H, W),
            fill,
            inpaint_resolution,
            num_inference_steps,
            timesteps,
            sigmas,
            eta,
            generator,
            latents,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        mirrored = _mirrored_entries(target_view, N // copies)
        hole_mask = _mirror(hole_mask.to(warped.device), mirrored)
        warped = _mirror(warped, mirrored)
        if new_view_disparity is not None:
            new_view_disparity = _mirror(new_view_disparity.to(warped.device), mirrored)
        if fill == "background":
            assert new_view_disparity is not None  # by _check_inpaint_inputs
            return _mirror(fill_from_background(warped, hole_mask, new_view_disparity), mirrored)
        self._interrupt = False

        # 1. What the UNet is told: the view with its holes covered, and where they are.
        # Model invocation: self.vae, self.text_encoder.
        working = shrink_warped_view(
            self.image_processor.to_srgb(warped, icc_profiles),
            hole_mask,
            new_view_disparity,
            *self._working_size(H, W, fill, inpaint_resolution),
        )
        masked = cover_holes(*working, self.config.masked_fill)  # [N,3,H',W'] in [-1,1]
        padded, padding = pad_to_multiple(masked, self.vae_scale_factor)  # [N,3,Hp,Wp]
        padded_mask, _ = pad_to_multiple(working.hole_mask, self.vae_scale_factor)  # [N,1,Hp,Wp]
        h, w = (length // self.vae_scale_factor for length in padded.shape[-2:])
        tiles = self._tiles(h, w, fill)
        used = torch.stack([tile.scaled(self.vae_scale_factor).of(padded_mask).any((1, 2, 3)) for tile in tiles], 1)
        dtype, factor = self.unet.dtype, self.vae_scale_factor
        latent_shape = (N, self.vae.config.latent_channels, h, w)
        masked_image_latents = blend_tiles(
            tiles, latent_shape, used, lambda tile: encode_latents(self.vae, tile.scaled(factor).of(padded))
        ).to(dtype)  # [N,c,h,w]
        latent_mask = reduce_mask_to_latent(padded_mask, factor, self.config.latent_mask_reduction).to(dtype)
        prompt_embeds = self.encode_empty_prompt().to(warped.device, dtype).expand(N, -1, -1)

        # 2. Denoise from noise of each image's own generator.
        # Model invocation: self.unet.
        if timesteps is not None or sigmas is not None:
            steps = {"sigmas": sigmas} if timesteps is None else {"timesteps": timesteps}
        elif num_inference_steps is not None:
            steps = {"num_inference_steps": num_inference_steps}
        else:
            steps = {"num_inference_steps": self.config.default_num_inference_steps}
        self.scheduler.set_timesteps(**steps, device=warped.device)  # first: it sets init_noise_sigma
        state = {
            "latents": self.prepare_latents(latent_shape, generator, latents),  # [N,c,h,w]
            "latent_mask": latent_mask,  # [N,1,h,w]
            "masked_image_latents": masked_image_latents,  # [N,c,h,w]
            "prompt_embeds": prompt_embeds,  # [N,tokens,channels]
        }
        callback_inputs = (
            ["latents"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        )
        step_kwargs = self._scheduler_step_kwargs(generator, N, eta)
        denoised = self._denoise(tiles, used, state, step_kwargs, callback_on_step_end, callback_inputs)  # [N,c,h,w]
        if output_type == "latent":
            return denoised

        # 3. Decode, and take nothing but the holes from it.
        # Model invocation: self.vae.
        decoded = blend_tiles(
            tiles, tuple(padded.shape), used, lambda tile: decode_latents(self.vae, tile.of(denoised)), factor
        )
        decoded = (unpad(decoded.float(), padding) / 2 + 0.5).clamp(0.0, 1.0)  # [N,3,H',W']
        if decoded.shape[-2:] != (H, W):
            decoded = functional.interpolate(decoded, (H, W), mode="bicubic").clamp(0.0, 1.0)  # [N,3,H,W]
        decoded = self.image_processor.from_srgb(decoded, icc_profiles)
        return _mirror(torch.where(hole_mask, decoded, warped), mirrored)

    def _working_size(self, height: int, width: int, fill: str, inpaint_resolution: int | None) -> tuple[int, int]:
        """Height and width of the picture that the inpainting networks see."""
        if fill != "whole":
            return height, width
        bound = self.config.default_inpaint_resolution if inpaint_resolution is None else inpaint_resolution
        return _bounded_size(height, width, bound)

    def _tiles(self, latent_height: int, latent_width: int, fill: str) -> list[Tile]:
        """Tiles of the working picture in latent pixels: one unless `fill` is "tiled"."""
        if fill == "tiled":
            return place_tiles(latent_height, latent_width, max(1, self.config.tile_size // self.vae_scale_factor))
        return [Tile(0, latent_height, 0, latent_width)]

    def _denoise(
        self,
        tiles: list[Tile],
        used: Tensor,
        state: dict[str, Tensor],
        step_kwargs: dict[str, Any],
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None,
        callback_inputs: list[str],
    ) -> Tensor:
        """Run the scheduler's steps; the UNet sees tile by tile, the scheduler the blended picture.

        Args:
            tiles: of the latent picture.
            used: [N,len(tiles)] bool, as in `blend_tiles`.
            state: the tensors that a callback may see and change, by the names of `_callback_tensor_inputs`.
            step_kwargs: for `scheduler.step`.
            callback_on_step_end: as in `__call__`.
            callback_inputs: names of the tensors that the callback gets.

        Returns:
            The denoised latents [N,c,h,w].
        """
        state, dtype = dict(state), state["latents"].dtype
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(timesteps):
                if self._interrupt:
                    break
                latents, prompt_embeds = state["latents"], state["prompt_embeds"]
                noisy = self.scheduler.scale_model_input(latents, t)
                stacked = torch.cat(
                    [noisy, state["latent_mask"], state["masked_image_latents"]], dim=1
                )  # [N,2c+1,h,w]

                def predict(
                    tile: Tile, stacked: Tensor = stacked, t: Tensor = t, prompt: Tensor = prompt_embeds
                ) -> Tensor:
                    return self.unet(tile.of(stacked), t, encoder_hidden_states=prompt, return_dict=False)[0]

                prediction = blend_tiles(tiles, tuple(latents.shape), used, predict).to(dtype)  # [N,c,h,w]
                stepped = self.scheduler.step(prediction, t, latents, **step_kwargs, return_dict=False)[0]
                state["latents"] = stepped.to(dtype)
                if callback_on_step_end is not None:
                    state.update(callback_on_step_end(self, i, t, {name: state[name] for name in callback_inputs}))
                progress_bar.update()
        return state["latents"]

    def _scheduler_step_kwargs(
        self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int, eta: float
    ) -> dict[str, Any]:
        """Keyword arguments of `scheduler.step` that only some schedulers know."""
        generators = [generator] * batch_size if isinstance(generator, torch.Generator) else generator
        known = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("generator", generators), ("eta", eta)) if name in known}

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

    def _check_inpaint_inputs(
        self, warped: Tensor, hole_mask: Any, new_view_disparity: Any, target_view: Any, fill: Any
    ) -> None:
        _check_choice("target_view", target_view, TARGET_VIEWS)
        _check_choice("fill", fill, FILLS)
        _check_warped("warped_image", warped, "hole_mask", hole_mask)
        if target_view == "both" and len(warped) % 2:
            raise ValueError(
                f'`warped_image` must hold left and right views by turns with `target_view="both"`; got {len(warped)}.'
            )
        if new_view_disparity is None and fill == "background":
            raise ValueError('`new_view_disparity` must be given with `fill="background"`; got None.')
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
        views: int,
        size: tuple[int, ...],
        fill: str,
        inpaint_resolution: Any,
        num_inference_steps: Any,
        timesteps: Any,
        sigmas: Any,
        eta: Any,
        generator: Any,
        latents: Any,
        output_type: Any,
        callback_on_step_end: Any,
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        of_networks = {
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "sigmas": sigmas,
            "callback_on_step_end": callback_on_step_end,
        }
        self._check_fill(fill, inpaint_resolution, latents, output_type, of_networks)
        if fill != "background":
            self._check_prompt()
        self._check_steps(num_inference_steps, timesteps, sigmas, eta)
        self._check_generator(generator, views)
        if latents is not None:
            factor, channels = self.vae_scale_factor, self.vae.config.latent_channels
            height, width = self._working_size(size[0], size[1], fill, inpaint_resolution)
            expected = [views, channels, -(-height // factor), -(-width // factor)]
            if not isinstance(latents, Tensor) or list(latents.shape) != expected:
                found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
                raise ValueError(f"`latents` must be a tensor of shape [B,c,h,w] = {expected}; got {found}.")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` must be callable; got {type(callback_on_step_end).__name__}.")
        unknown = set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}; "
                f"got {sorted(unknown)}."
            )

    def _check_steps(self, num_inference_steps: Any, timesteps: Any, sigmas: Any, eta: Any) -> None:
        if num_inference_steps is not None and (not _is_int(num_inference_steps) or num_inference_steps < 1):
            raise ValueError(f"`num_inference_steps` must be an integer >= 1; got {num_inference_steps!r}.")
        trained = self.scheduler.config.num_train_timesteps
        if num_inference_steps is not None and num_inference_steps > trained:
            raise ValueError(
                f"`num_inference_steps` must not exceed the {trained} steps of the scheduler; "
                f"got {num_inference_steps}."
            )
        steps = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
        given = [name for name, value in steps.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"`{given[0]}` must be the only one of {list(steps)}; got also {given[1:]}.")
        known = inspect.signature(self.scheduler.set_timesteps).parameters
        for name in ("timesteps", "sigmas"):
            value = steps[name]
            if value is None:
                continue
            if name not in known:
                raise ValueError(f"`{name}` must not be given with {type(self.scheduler).__name__}; got {value!r}.")
            numbers = isinstance(value, (list, tuple)) and all(
                isinstance(one, (int, float, np.number)) for one in value
            )
            if not numbers or not value or list(value) != sorted(value, reverse=True):
                raise ValueError(f"`{name}` must be a list of descending numbers; got {value!r}.")
        if not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
            raise ValueError(f"`eta` must be a number in [0, 1]; got {eta!r}.")
        if eta and "eta" not in inspect.signature(self.scheduler.step).parameters:
            raise ValueError(
                f"`eta` must be 0 with {type(self.scheduler).__name__}, which does not take it; got {eta!r}."
            )

    @staticmethod
    def _check_generator(generator: Any, count: int) -> None:
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(
                f"`generator` must be one generator or a list of one per image, {count}; got {len(generator)}."
            )
        for one in generator if isinstance(generator, list) else [generator]:
            if not isinstance(one, torch.Generator) and generator is not None:
                raise TypeError(f"`generator` must be a torch.Generator or a list of them; got {type(one).__name__}.")

    @staticmethod
    def _check_fill(
        fill: str, inpaint_resolution: Any, latents: Any, output_type: Any, of_networks: dict[str, Any]
    ) -> None:
        """Refuse what has no meaning beside a way to fill."""
        _check_choice("fill", fill, FILLS)
        _check_choice("output_type", output_type, OUTPUT_TYPES)
        if inpaint_resolution is not None and (not _is_int(inpaint_resolution) or inpaint_resolution < 0):
            raise ValueError(
                "`inpaint_resolution` must be an integer >= 0, 0 for the photograph's own resolution; "
                f"got {inpaint_resolution!r}."
            )
        if inpaint_resolution is not None and fill != "whole":
            raise ValueError(
                f'`inpaint_resolution` must not be given with `fill="{fill}"`, which works at the photograph\'s own '
                f"resolution; got {inpaint_resolution!r}."
            )
        if latents is not None and fill != "whole":
            raise ValueError(f'`latents` must not be given with `fill="{fill}"`; got a {type(latents).__name__}.')
        if output_type == "latent" and fill != "whole":
            raise ValueError(f'`output_type` must not be "latent" with `fill="{fill}"`; got "latent".')
        if fill == "background":
            for name, value in of_networks.items():
                if value is not None:
                    raise ValueError(
                        f'`{name}` has no meaning with `fill="background"`, for no network fills the holes; '
                        f"got {value!r}."
                    )

    def check_inputs(
        self,
        image: Tensor,
        inverse_depth: Tensor | None,
        disparity: Tensor | None,
        disparity_scale: Any,
        max_disparity_px: Any,
        baseline_m: Any,
        fov_deg: Any,
        sharpen: Any,
        target_view: Any,
        fill: Any,
        inpaint_resolution: Any,
        depth_resolution: int | None,
        num_inference_steps: int | None,
        timesteps: Any,
        sigmas: Any,
        eta: Any,
        generator: Any,
        latents: Tensor | None,
        output_type: str,
        callback_on_step_end: Any,
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        """Raise on anything that `__call__` could not use, before any network runs. Takes loaded tensors."""
        B, _, H, W = image.shape
        _check_choice("target_view", target_view, TARGET_VIEWS)
        self._check_generator(generator, B)
        copies = 2 if target_view == "both" else 1
        self._check_loop_inputs(
            B * copies,
            (H, W),
            fill,
            inpaint_resolution,
            num_inference_steps,
            timesteps,
            sigmas,
            eta,
            generator * copies if isinstance(generator, list) else generator,
            latents,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        if not isinstance(sharpen, bool):
            raise TypeError(f"`sharpen` must be True or False; got {type(sharpen).__name__}.")
        if inverse_depth is None and disparity is None:
            self._check_depth_arguments(depth_resolution)
        elif depth_resolution is not None:
            raise ValueError(
                "`depth_resolution` has no meaning beside `inverse_depth` or `disparity`, for the depth network does "
                f"not run; got {depth_resolution!r}."
            )
        self._check_maps(inverse_depth, disparity)
        self._check_strength(B, W, inverse_depth, disparity, disparity_scale, max_disparity_px, baseline_m, fov_deg)

    @staticmethod
    def _check_maps(inverse_depth: Tensor | None, disparity: Tensor | None) -> None:
        if inverse_depth is not None and disparity is not None:
            raise ValueError("`inverse_depth` and `disparity` must not both be given; got both.")
        if inverse_depth is not None:
            _check_finite("inverse_depth", inverse_depth)
        if disparity is None:
            return
        if torch.isnan(disparity).any():
            raise ValueError(f"`disparity` must not be NaN; got {int(torch.isnan(disparity).sum())} NaN values.")
        if (disparity < 0).any():
            raise ValueError(f"`disparity` must not be negative; got a minimum of {disparity.min().item():g}.")

    def _check_strength(
        self,
        batch_size: int,
        width: int,
        inverse_depth: Tensor | None,
        disparity: Tensor | None,
        disparity_scale: Any,
        max_disparity_px: Any,
        baseline_m: Any,
        fov_deg: Any,
    ) -> None:
        strengths = {
            "disparity_scale": disparity_scale,
            "max_disparity_px": max_disparity_px,
            "baseline_m": baseline_m,
        }
        given = [name for name, value in strengths.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"`{given[0]}` must be the only one of {list(strengths)}; got also {given[1:]}.")
        if given and disparity is not None:
            raise ValueError(
                f"`{given[0]}` must not be given beside `disparity`, which is used as it is; "
                f"got {strengths[given[0]]!r}."
            )
        if disparity_scale is not None:
            _load_scale(disparity_scale, batch_size)
        if max_disparity_px is not None:
            _load_max_disparity(max_disparity_px, batch_size, width)
        if (baseline_m is None) != (fov_deg is None):
            raise ValueError(f"`baseline_m` and `fov_deg` must be given together; got {baseline_m!r} and {fov_deg!r}.")
        if baseline_m is None:
            return
        _load_baseline(baseline_m, fov_deg, batch_size)
        if inverse_depth is not None or self.config.depth_prediction != "metric_depth":
            found = (
                repr(self.config.depth_prediction) if inverse_depth is None else "`inverse_depth`, whose unit is open"
            )
            raise ValueError(
                "`baseline_m` needs distances in metres, from a depth network that is configured as "
                f'`depth_prediction="metric_depth"`; got {found}.'
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: PILImageInput | Photographs,
        *,
        inverse_depth: np.ndarray | Tensor | None = None,
        disparity: np.ndarray | Tensor | None = None,
        disparity_scale: float | list[float] | Tensor | None = None,
        max_disparity_px: float | list[float] | Tensor | None = None,
        baseline_m: float | list[float] | Tensor | None = None,
        fov_deg: float | list[float] | Tensor | None = None,
        sharpen: bool = True,
        target_view: str = "right",
        fill: str = "whole",
        inpaint_resolution: int | None = None,
        depth_resolution: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = ["latents"],  # noqa: B006
    ) -> ZeroStereoPipelineOutput | tuple:
        r"""Make the other eye's view of each photograph.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, a list of one of these, or `Photographs`):
                Photographs of one size. PIL images of any 8-bit mode or 16-bit grey; see `StereoImageProcessor.load`
                for the rules on orientation, colour profiles, transparency and frames. Arrays [H,W,3] or [B,H,W,3],
                tensors [3,H,W] or [B,3,H,W]; uint8 in 0..255, uint16 in 0..65535 or float in [0,1].
            inverse_depth (`np.ndarray` or `torch.Tensor`, *optional*):
                [H,W] or one map per photograph, of its size, any scale, larger = nearer, finite: used instead of the
                depth network; normalised, scaled and sharpened.
            disparity (`np.ndarray` or `torch.Tensor`, *optional*):
                [H,W] or one map per photograph, px, >= 0; infinite = unknown. Used as it is, not sharpened.
            disparity_scale (`float` or one per image, *optional*):
                s in (0,1]: the largest disparity as a share of the width. Where none of `disparity_scale`,
                `max_disparity_px` and `baseline_m` is given, s is drawn from the image's generator by adaptive
                disparity selection (0 to 0.2, mostly 0.05 to 0.15).
            max_disparity_px (`float` or one per image, *optional*): the largest disparity in px, in (0, width].
            baseline_m (`float` or one per image, *optional*):
                Distance of the eyes in metres; needs `fov_deg` and a depth network that predicts metres. The disparity
                is baseline x focal length / depth, not normalised.
            fov_deg (`float` or one per image, *optional*): horizontal field of view of the photograph, beside
                `baseline_m`.
            sharpen (`bool`): make hard steps of a predicted map's soft object borders.
            target_view (`str`):
                "right": the photograph is the left eye. "left": it is the right eye. "both": two new eyes around it.
            fill (`str`):
                "whole": the networks fill a picture whose short side is bounded by `inpaint_resolution`; only holes
                are taken from it. "tiled": they work at the photograph's own resolution in overlapping tiles of
                `tile_size`, blended at every step: more detail, much slower. "background": each row of a hole takes
                the colour of its farther side; no inpainting network runs; a preview at once.
            inpaint_resolution (`int`, *optional*):
                Upper bound of the inpainting networks' short side in px; 0 = none; None = as the weights are
                configured.
            depth_resolution (`int`, *optional*):
                Upper bound of the depth network's short side in px; 0 = none; None = as the weights are configured.
            num_inference_steps (`int`, *optional*):
                Denoising steps; None = as the weights are configured.
            timesteps (`list[int]`, *optional*), sigmas (`list[float]`, *optional*):
                The very steps instead of their number, descending, for schedulers that take them.
            eta (`float`): share in [0,1] of fresh noise in each step of DDIM; other schedulers take 0 only.
            generator (`torch.Generator` or one per image, *optional*):
                Source of the scale, if it is drawn, and then of the noise, left eye first. With one per image a batch
                equals the same images one by one.
            latents (`torch.Tensor`, *optional*):
                Initial noise [N,c,h,w] of the inpainting networks' working picture instead of drawn noise.
            output_type (`str`): "pil", "np", "pt" or "latent"; see [`ZeroStereoPipelineOutput`].
            return_dict (`bool`): False returns the fields as a tuple in their order, new view first.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, tensors)` after each step; returns the tensors, or new ones.
            callback_on_step_end_tensor_inputs (`list[str]`): which tensors it gets, of `_callback_tensor_inputs`.

        Examples:

        Returns:
            [`ZeroStereoPipelineOutput`] or `tuple`.
        """
        # 1. Load the photographs and maps, and check every argument before any network runs.
        photographs = self.image_processor.load(image)  # pixels [B,3,H,W] float32 in [0,1]
        B, _, H, W = photographs.pixels.shape
        if inverse_depth is not None:
            inverse_depth = self.image_processor.load_map("inverse_depth", inverse_depth, B, H, W)  # [B,1,H,W]
        if disparity is not None:
            disparity = self.image_processor.load_map("disparity", disparity, B, H, W)  # [B,1,H,W]
        self.check_inputs(
            photographs.pixels,
            inverse_depth,
            disparity,
            disparity_scale,
            max_disparity_px,
            baseline_m,
            fov_deg,
            sharpen,
            target_view,
            fill,
            inpaint_resolution,
            depth_resolution,
            num_inference_steps,
            timesteps,
            sigmas,
            eta,
            generator,
            latents,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        device = self._execution_device
        photographs = Photographs(photographs.pixels.to(device), photographs.icc_profiles)

        # 2. Estimate the inverse depth and how far it agrees with that of the mirror image.
        # Model invocation: self.depth_estimator.
        flip, scale = None, None
        if inverse_depth is not None:
            inverse_depth = normalize_inverse_depth(inverse_depth.to(device))  # [B,1,H,W]
        elif disparity is None:
            metric = baseline_m is not None
            estimate = self.estimate_metric_inverse_depth if metric else self.estimate_inverse_depth
            inverse_depth, flip = estimate(photographs, depth_resolution)  # [B,1,H,W], 2 x [B,1,H,W]

        # 3. Select the disparity: as given, from metres, or scaled to the image width; sharpened unless given.
        if disparity is not None:
            disparity = disparity.to(device)  # [B,1,H,W]
        elif baseline_m is not None and fov_deg is not None and inverse_depth is not None:
            disparity = disparity_from_metric_depth(inverse_depth, baseline_m, fov_deg)
            disparity = sharpen_disparity(disparity) if sharpen else disparity
        else:
            scale = self._select_scale(B, W, disparity_scale, max_disparity_px, generator)  # [B]
            assert inverse_depth is not None  # by step 2
            disparity = self.select_disparity(inverse_depth, scale, sharpen)

        # 4. Warp every pixel to its place in the new views.
        views = warp_to_views(photographs.pixels, disparity, target_view)  # images [N,3,H,W], the others [N,1,H,W]
        profiles = [profile for profile in photographs.icc_profiles for _ in range(len(views.images) // B)]

        # 5. Inpaint the holes.
        # Model invocation: self.vae, self.text_encoder, self.unet, self.vae.
        new_views = self.inpaint(
            Photographs(views.images, profiles),
            views.hole_mask,
            views.new_view_disparity,
            target_view=target_view,
            fill=fill,
            inpaint_resolution=inpaint_resolution,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            eta=eta,
            generator=generator,
            latents=latents,
            output_type="latent" if output_type == "latent" else "pt",
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # [N,3,H,W], or latents [N,c,h,w]

        # 6. Convert to the output type and offload all models.
        self.maybe_free_model_hooks()
        to_images, to_map = self.image_processor.postprocess, self.image_processor.postprocess_map
        to_vector = self.image_processor.postprocess_vector
        output = ZeroStereoPipelineOutput(
            images=to_images(new_views, output_type, profiles),
            disparity=to_map(disparity, output_type),
            confidence=to_map(None if flip is None else flip.confidence, output_type),
            hole_mask=to_map(views.hole_mask, output_type),
            visible_mask=to_map(views.visible_mask, output_type),
            warped_images=to_images(views.images, output_type, profiles),
            new_view_disparity=to_map(views.new_view_disparity, output_type),
            disparity_scale=to_vector(None if scale is None else scale.to(device), output_type),
            flip_agreement=to_vector(None if flip is None else flip.agreement.mean((1, 2, 3)), output_type),
            input_images=to_images(photographs.pixels, output_type, photographs.icc_profiles),
            target_view=target_view,
        )
        return output if return_dict else tuple(getattr(output, name) for name in output.__dataclass_fields__)

    @staticmethod
    def _select_scale(
        batch_size: int,
        width: int,
        disparity_scale: Any,
        max_disparity_px: Any,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        """Return the disparity scale [B] on the CPU: as asked for, or drawn."""
        if disparity_scale is not None:
            return _load_scale(disparity_scale, batch_size)
        if max_disparity_px is not None:
            return _load_max_disparity(max_disparity_px, batch_size, width) / width
        return sample_disparity_scale(batch_size, generator)


def _load_scale(disparity_scale: Any, batch_size: int) -> Tensor:
    """Load a disparity scale, a number or one per image, as [B] float32 on the CPU."""
    interval = "(0, 1], a share of the image width"
    return _load_numbers("disparity_scale", disparity_scale, batch_size, lambda s: (s > 0) & (s <= 1), interval)


def _load_max_disparity(max_disparity_px: Any, batch_size: int, width: int) -> Tensor:
    """Load the largest disparity in px, a number or one per image, as [B] float32 on the CPU."""
    interval = f"(0, {width}], px of the image width"
    return _load_numbers("max_disparity_px", max_disparity_px, batch_size, lambda d: (d > 0) & (d <= width), interval)


def _load_baseline(baseline_m: Any, fov_deg: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    """Load the distance of the eyes and the horizontal field of view, as [B] float32 on the CPU."""
    baseline = _load_numbers(
        "baseline_m", baseline_m, batch_size, lambda b: (b > 0) & (b < math.inf), "(0, inf), in metres"
    )
    fov = _load_numbers("fov_deg", fov_deg, batch_size, lambda f: (f > 0) & (f < 180), "(0, 180), in degrees")
    return baseline, fov


def _load_numbers(
    name: str, value: Any, batch_size: int, is_inside: Callable[[Tensor], Tensor], interval: str
) -> Tensor:
    """Load a number or one per image as [B] float32 on the CPU.

    Args:
        name: the argument, for messages.
        value: a number, or a list, array or tensor of `batch_size` numbers.
        batch_size: B.
        is_inside: tells for each number whether it lies in the interval.
        interval: the same in words.

    Raises:
        TypeError: no numbers.
        ValueError: another count, or a number outside the interval.
    """
    numbers = value if isinstance(value, (list, tuple)) else [value]
    accepted = (int, float, np.number, np.ndarray, Tensor)
    kinds = {type(one).__name__ for one in numbers if isinstance(one, bool) or not isinstance(one, accepted)}
    if kinds:
        raise TypeError(f"`{name}` must be a number or one number per image; got {', '.join(sorted(kinds))}.")
    loaded = torch.as_tensor(value, dtype=torch.float32).cpu()
    if loaded.ndim > 1 or (loaded.ndim == 1 and loaded.numel() != batch_size):
        raise ValueError(f"`{name}` must be a number or one number per image, {batch_size}; got {value!r}.")
    if not is_inside(loaded).all():
        raise ValueError(f"`{name}` must lie in {interval}; got {value!r}.")
    return loaded.expand(batch_size).clone()


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}; got {value!r}.")


def _bounded_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width of a picture whose short side is bounded by `resolution` (0 = not)."""
    short = min(height, width)
    if resolution == 0 or short <= resolution:
        return height, width
    return max(1, round(height * resolution / short)), max(1, round(width * resolution / short))


def _prepare_depth_estimator(depth_estimator: PreTrainedModel, position_embedding: str) -> None:
    """Bind the official position embedding where it is asked for, and warn where depth will be rounded.

    Raises:
        ValueError: "official" for another backbone than DINOv2; or "transformers" for a network bound to the official.
    """
    if position_embedding == "official":
        bind_official_position_embedding(depth_estimator)
    elif has_official_position_embedding(depth_estimator):
        raise ValueError(
            '`depth_position_embedding` must be "official" for a depth estimator that is bound to the official '
            f"position embedding; got {position_embedding!r}. `restore_position_embedding(depth_estimator)` undoes it."
        )
    if getattr(depth_estimator, "dtype", None) in (torch.float16, torch.bfloat16):
        # The loaders hand one dtype to every component before the pipeline exists; what was passed is not cast here.
        logger.warning(
            f"`depth_estimator` is in {depth_estimator.dtype}: rounded depth moves pixels. Load with "
            f'dtype={{"default": {depth_estimator.dtype}, "depth_estimator": torch.float32}} to keep it in float32.'
        )


def _is_int(value: Any) -> bool:
    """Tell whether value is an integer number; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _write_file(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it; a link is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _profile_space(profile: bytes) -> str | None:
    """Name the colour space of an ICC profile, one of `PROFILE_MODES`; None for others and if it cannot be read."""
    try:
        space = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip().upper()
    except (OSError, PIL.ImageCms.PyCMSError):
        return None
    return space if space in PROFILE_MODES else None


def _build_transform(profile: bytes | None, to_srgb: bool) -> PIL.ImageCms.ImageCmsTransform:
    """Build the conversion of 8-bit pictures from a profile to sRGB or back; None is the LAB of Pillow.

    Raises:
        OSError, PIL.ImageCms.PyCMSError: the profile cannot be read, or does not lead that way.
    """
    srgb = PIL.ImageCms.createProfile("sRGB")
    if profile is None:
        return PIL.ImageCms.buildTransform(PIL.ImageCms.createProfile("LAB"), srgb, "LAB", "RGB")
    own, mode = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)), PROFILE_MODES[_profile_space(profile) or "RGB"]
    if to_srgb:
        return PIL.ImageCms.buildTransform(own, srgb, mode, "RGB")
    return PIL.ImageCms.buildTransform(srgb, own, "RGB", mode)


def _is_convertible(profile: bytes, to_srgb: bool) -> bool:
    """Tell whether `_convert_picture` will work, before anything depends on it."""
    try:
        _build_transform(profile, to_srgb)
    except (OSError, PIL.ImageCms.PyCMSError):
        return False
    return True


def _convert_picture(picture: PIL.Image.Image, profile: bytes | None, to_srgb: bool) -> PIL.Image.Image:
    """Return an 8-bit picture of the profile's mode as sRGB without a profile, or the other way round."""
    converted = PIL.ImageCms.applyTransform(picture, _build_transform(profile, to_srgb))
    assert converted is not None  # a new image, unless inPlace is asked for
    converted.info.pop("icc_profile", None)
    return converted


def _convert_colors(pixels: Tensor, icc_profiles: list[bytes | None], to_srgb: bool) -> Tensor:
    """Convert pictures [N,3,H,W] in [0,1] between their profiles and sRGB, in 8 bits; see `to_srgb`."""
    if len(icc_profiles) != len(pixels):
        raise ValueError(f"`icc_profiles` must hold one per picture, {len(pixels)}; got {len(icc_profiles)}.")
    if not any(icc_profiles):
        return pixels
    converted = pixels.clone()
    for number, profile in enumerate(icc_profiles):
        if profile is not None:
            picture = StereoImageProcessor.postprocess(pixels[number : number + 1], "pil")[0]
            picture = _convert_picture(picture, profile, to_srgb)
            converted[number] = torch.from_numpy(np.array(picture)).movedim(-1, 0).to(pixels) / 255.0
    return converted
