# SPDX-License-Identifier: Apache-2.0
"""The ZeroStereo loss: pseudo disparities where they are trusted, the pictures themselves where they are not.

Pure tensor functions; no network, no files. Works on what any network of training/stereo_networks/ gives.

The formula and its means are those of the official training (ZeroStereo, arXiv 2501.08654, section 3.4; code of
commit 69b2f4a), with its numbers reproduced in tests/test_stereo_loss.py. It differs where the official code has no
result: a single prediction has weight 1 (there the exponent divides by zero), and a mean over no pixels is 0 with zero
gradient (there not a number). Nothing is written into the arguments (there the predictions are negated in place).

Letters: B batch, H W pixels, C channels. Convention: disparity positive, px at width W, left view; a left pixel at
column x is at x - d in the right picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOMETRIC_WEIGHT = 0.1  # mu
SSIM_SHARE = 0.85  # beta, of the photometric distance; the rest is the mean absolute difference
SSIM_WINDOW = 7  # px
SSIM_C1 = 0.01**2  # for values in [0,1], and used by the published training on 0..255
SSIM_C2 = 0.03**2
SEQUENCE_DECAY = 0.9  # of the weight of earlier refinements ...
SEQUENCE_LENGTH = 15  # ... between the first and the last, however many there are
VARIANTS = ("zerostereo", "supervised", "unsupervised")
PHOTOMETRIC_RANGES = (255, 1)


class StereoLoss(NamedTuple):
    """The loss and what it is made of."""

    total: Tensor  # scalar; disparity + photometric
    disparity: Tensor  # scalar, over all predictions: distance from the pseudo disparity
    photometric: Tensor  # scalar, over all predictions, with its weight mu: distance of the pictures


def sequence_weights(count: int) -> list[float]:
    """Return the weight of each of `count` refinements; the last one has 1, the first about 0.9^15."""
    if count == 1:
        return [1.0]
    decay = SEQUENCE_DECAY ** (SEQUENCE_LENGTH / (count - 1))
    return [decay ** (count - 1 - i) for i in range(count)]


def warp_backward(right: Tensor, disparity: Tensor, *, nearest: bool = False) -> Tensor:
    """Fetch for every left pixel what the right picture has at x - d.

    Args:
        right: [B,C,H,W], float.
        disparity: [B,1,H,W], px, finite; the result is differentiable in it unless `nearest`.
        nearest: False interpolates linearly and repeats the border outside; True takes the nearest pixel and 0
            outside.

    Returns:
        [B,C,H,W], left view.
    """
    H, W = disparity.shape[-2:]
    columns = torch.arange(W, device=disparity.device, dtype=disparity.dtype)
    rows = torch.arange(H, device=disparity.device, dtype=disparity.dtype)
    x = 2 * (columns - disparity[:, 0]) / max(W - 1, 1) - 1  # [B,H,W]
    y = (2 * rows / max(H - 1, 1) - 1)[:, None].expand_as(x)
    mode, padding = ("nearest", "zeros") if nearest else ("bilinear", "border")
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(right, grid, mode=mode, padding_mode=padding, align_corners=True)


def ssim_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return (1 - SSIM) / 2, clamped to [0,1], per channel, over 7x7 boxes with reflected borders.

    Args:
        first: [B,C,H,W], float32; the constants are meant for values in [0,1]. H and W at least 4.
        second: the same shape.

    Returns:
        [B,C,H,W]; 0 where both are equal.
    """

    def box(value: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(value, (SSIM_WINDOW // 2,) * 4, mode="reflect"), SSIM_WINDOW, stride=1)

    mean_1, mean_2 = box(first), box(second)
    variance_1 = box(first**2) - mean_1**2
    variance_2 = box(second**2) - mean_2**2
    covariance = box(first * second) - mean_1 * mean_2
    similarity = (2 * mean_1 * mean_2 + SSIM_C1) * (2 * covariance + SSIM_C2)
    similarity = similarity / ((mean_1**2 + mean_2**2 + SSIM_C1) * (variance_1 + variance_2 + SSIM_C2))
    return ((1 - similarity) / 2).clamp(0, 1)


def photometric_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mix SSIM distance and absolute difference, 0.85 to 0.15, both averaged over channels: [B,1,H,W]."""
    structure = ssim_distance(first, second).mean(1, keepdim=True)
    return SSIM_SHARE * structure + (1 - SSIM_SHARE) * (first - second).abs().mean(1, keepdim=True)


def mean_over(value: Tensor, mask: Tensor) -> Tensor:
    """Average where the mask is True; 0, with zero gradient, where it is True nowhere. Scalar."""
    return torch.where(mask, value, 0).sum() / mask.sum().clamp(min=1)


def visible_in_both(left_visible_mask: Tensor, right_hole_mask: Tensor, disparity: Tensor) -> Tensor:
    """Tell which left pixels are seen in the right view, at a place that was not invented.

    Args:
        left_visible_mask: [B,1,H,W] bool, left view, True where the pixel is seen in the right view.
        right_hole_mask: [B,1,H,W] bool, right view, True where the picture was inpainted.
        disparity: [B,1,H,W], px, left view; where it is not finite the pixel is seen nowhere.

    Returns:
        [B,1,H,W] bool, left view.
    """
    outside = 2.0 * disparity.shape[-1]
    known = warp_backward((~right_hole_mask).to(disparity.dtype), finite_or(disparity, outside), nearest=True)
    return left_visible_mask & (known > 0.5)


def finite_or(value: Tensor, other: float) -> Tensor:
    """Replace infinities and NaN."""
    return torch.where(value.isfinite(), value, other)


def check_map(name: str, value: Tensor, shape: torch.Size, kind: str) -> None:
    """Raise unless a map has the shape of the disparity and the kind of numbers asked for ("bool" or "float")."""
    if value.shape != shape:
        raise ValueError(f"`{name}` must have the shape of `disparity` {list(shape)}; got {list(value.shape)}.")
    fits = value.dtype == torch.bool if kind == "bool" else value.is_floating_point()
    if not fits:
        raise TypeError(f"`{name}` must be a {kind} tensor; got {value.dtype}.")


def check_arguments(
    predictions: Sequence[Tensor],
    initial_disparity: Tensor | None,
    disparity: Tensor,
    images: dict[str, Tensor],
    masks: dict[str, Tensor],
) -> None:
    """Raise unless all shapes and types fit together."""
    if isinstance(predictions, Tensor) or len(predictions) == 0:
        got = f"a tensor {list(predictions.shape)}" if isinstance(predictions, Tensor) else "an empty list"
        raise ValueError(f"`predictions` must be a list of at least one [B,1,H,W]; got {got}.")
    if disparity.ndim != 4 or disparity.shape[1] != 1:
        raise ValueError(f"`disparity` must have the shape [B,1,H,W]; got {list(disparity.shape)}.")
    for i, prediction in enumerate(predictions):
        check_map(f"predictions[{i}]", prediction, disparity.shape, "float")
    if initial_disparity is not None:
        check_map("initial_disparity", initial_disparity, disparity.shape, "float")
    B, _, H, W = disparity.shape
    for name, image in images.items():
        if image.ndim != 4 or image.shape[0] != B or image.shape[-2:] != (H, W):
            raise ValueError(f"`{name}` must have the shape [{B},C,{H},{W}]; got {list(image.shape)}.")
    for name, mask in masks.items():
        check_map(name, mask, disparity.shape, "bool")


def fixed_confidence(variant: str, confidence: Tensor | None, disparity: Tensor) -> Tensor:
    """Return the confidence that a variant uses: the given one, or 1 or 0 everywhere."""
    if variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    if variant != "zerostereo":
        return torch.full_like(disparity, 1.0 if variant == "supervised" else 0.0)
    if confidence is None:
        raise ValueError('`confidence` must be given for `variant="zerostereo"`; got None.')
    check_map("confidence", confidence, disparity.shape, "float")
    return confidence.float()


def zerostereo_loss(
    predictions: Sequence[Tensor],
    *,
    left_image: Tensor,
    right_image: Tensor,
    disparity: Tensor,
    confidence: Tensor | None,
    valid_disparity_mask: Tensor,
    left_visible_mask: Tensor,
    right_hole_mask: Tensor,
    max_disparity_px: float,
    initial_disparity: Tensor | None = None,
    variant: str = "zerostereo",
    photometric_range: int = 255,
    photometric_weight: float = PHOTOMETRIC_WEIGHT,
) -> StereoLoss:
    """Compare refinements with the pseudo disparity and, through the disparity, the pictures with each other.

        sum_i w_i (mean_v(C |d_i - d|) + mu mean_m((1 - C) P(left, right at x - d_i)))

    with C the confidence, P the photometric distance, w_i `sequence_weights`, v the valid pixels below the largest
    disparity, and m the pixels of `visible_in_both`. v and m are different sets, each mean is over its own. An initial
    disparity is added with weight 1, its absolute difference replaced by the smooth L1 (beta 1).

    Args:
        predictions: refinements [B,1,H,W], px, first to last; any float type.
        left_image: [B,C,H,W], 0..255, without augmentation of its colours.
        right_image: the same shape; without augmentation either.
        disparity: [B,1,H,W], px, pseudo or true; anything where it is not valid.
        confidence: [B,1,H,W] in [0,1]; may be None in the other variants.
        valid_disparity_mask: [B,1,H,W] bool.
        left_visible_mask: [B,1,H,W] bool, left view, True where the pixel is seen in the right view.
        right_hole_mask: [B,1,H,W] bool, right view, True where the picture was inpainted.
        max_disparity_px: larger disparities are not learnt; 700 for RAFT-Stereo and 192 for IGEV-Stereo as published.
        initial_disparity: [B,1,H,W], px, where the network gives one.
        variant: "zerostereo"; "supervised" is C = 1 everywhere, the plain L1 loss; "unsupervised" is C = 0 everywhere,
            the pictures alone, in which the disparity only says which pixels are in m.
        photometric_range: 255 compares pictures in 0..255 as the published training does, with constants of SSIM that
            are meant for 0..1: the absolute difference decides and SSIM in flat areas is noise. 1 compares in 0..1.
        photometric_weight: mu.

    Returns:
        StereoLoss, float32 scalars.

    Raises:
        ValueError: shapes disagree, `predictions` is empty, a choice is unknown, `confidence` is missing.
        TypeError: a mask is not bool, a map not float.

    Degenerate cases: a mean over no pixels is 0 and has zero gradient; one prediction has weight 1.
    """
    images = {"left_image": left_image, "right_image": right_image}
    masks = {
        "valid_disparity_mask": valid_disparity_mask,
        "left_visible_mask": left_visible_mask,
        "right_hole_mask": right_hole_mask,
    }
    check_arguments(predictions, initial_disparity, disparity, images, masks)
    if variant != "supervised" and min(disparity.shape[-2:]) <= SSIM_WINDOW // 2:
        raise ValueError(f"`disparity` must be at least 4x4, the reach of SSIM; got {list(disparity.shape[-2:])}.")
    if photometric_range not in PHOTOMETRIC_RANGES:
        raise ValueError(f"`photometric_range` must be 255 or 1; got {photometric_range!r}.")
    disparity = disparity.float()
    C = fixed_confidence(variant, confidence, disparity)
    left, right = (image.float() * (photometric_range / 255) for image in (left_image, right_image))
    learnt = valid_disparity_mask & disparity.isfinite() & (disparity < max_disparity_px)
    seen = visible_in_both(left_visible_mask, right_hole_mask, disparity)
    target = finite_or(disparity, 0.0)

    terms = list(zip(sequence_weights(len(predictions)), predictions, [F.l1_loss] * len(predictions), strict=True))
    if initial_disparity is not None:
        terms.append((1.0, initial_disparity, F.smooth_l1_loss))
    distance = photometric = disparity.new_zeros(())
    for weight, prediction, difference in terms:
        prediction = prediction.float()
        distance = distance + weight * mean_over(C * difference(prediction, target, reduction="none"), learnt)
        if variant != "supervised":
            pictures = photometric_distance(left, warp_backward(right, prediction))
            photometric = photometric + weight * photometric_weight * mean_over((1 - C) * pictures, seen)
    return StereoLoss(distance + photometric, distance, photometric)
