# SPDX-License-Identifier: Apache-2.0
"""How wrong a disparity is: end-point error, shares of outliers, KITTI's D1; per image and over all pixels.

Pure tensor functions; no network, no files. `measure_errors` counts for each image, `average_images` and `pool_pixels`
make figures of the counts, and the two are not the same: the first is what ZeroStereo and its relatives publish (the
mean of the images' figures), the second weighs every pixel alike, as KITTI's and Middlebury's servers do.

Letters: B batch, H W pixels. Disparities in px, left view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

THRESHOLDS_PX = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
D1_PX = 3.0  # KITTI 2015: an outlier is wrong by more than 3 px ...
D1_SHARE = 0.05  # ... and by more than 5 % of the true disparity


class StereoErrors(NamedTuple):
    """Counts of each image of a batch, to be averaged or pooled."""

    pixels: Tensor  # [B] int64, pixels measured
    error_px: Tensor  # [B] float64, sum of the absolute errors
    outliers: dict[float, Tensor]  # threshold in px -> [B] int64, pixels that are wrong by more
    d1_outliers: Tensor  # [B] int64, pixels that are outliers by KITTI's rule


class StereoFigures(NamedTuple):
    """Figures over a data set."""

    end_point_error_px: float
    bad_percent: dict[float, float]  # threshold in px -> share of pixels that are wrong by more
    d1_percent: float
    images: int  # that had pixels to measure
    pixels: int


def split_by_visibility(valid_mask: Tensor, visible_mask: Tensor) -> dict[str, Tensor]:
    """Return the three regions that benchmarks report: "all", "noc" (seen in both views) and "occ" (in one only).

    Args:
        valid_mask: [B,1,H,W] bool, where the true disparity is known.
        visible_mask: [B,1,H,W] bool, left view, True where the pixel is seen in the right view.

    Raises:
        ValueError, TypeError: see `measure_errors`.
    """
    check_mask("valid_mask", valid_mask, valid_mask.shape)
    check_mask("visible_mask", visible_mask, valid_mask.shape)
    return {"all": valid_mask, "noc": valid_mask & visible_mask, "occ": valid_mask & ~visible_mask}


def check_mask(name: str, mask: Tensor, shape: torch.Size) -> None:
    """Raise unless a mask is a bool tensor of the shape."""
    if mask.dtype != torch.bool:
        raise TypeError(f"`{name}` must be a bool tensor; got {mask.dtype}.")
    if mask.shape != shape:
        raise ValueError(f"`{name}` must have the shape {list(shape)}; got {list(mask.shape)}.")


def measure_errors(
    disparity: Tensor, true_disparity: Tensor, mask: Tensor, *, thresholds_px: Sequence[float] = THRESHOLDS_PX
) -> StereoErrors:
    """Count errors of each image where the mask is True.

    Args:
        disparity: [B,1,H,W], px, finite where the mask is True.
        true_disparity: the same shape, finite where the mask is True.
        mask: [B,1,H,W] bool, one of the regions of `split_by_visibility`, say.
        thresholds_px: N of bad-N: a pixel is bad if it is wrong by more than N px, not by N.

    Returns:
        StereoErrors. An image with nothing in its mask has 0 pixels.

    Raises:
        ValueError: shapes disagree, or a disparity in the mask is not finite.
        TypeError: the mask is not bool.
    """
    if disparity.ndim != 4 or disparity.shape[1] != 1:
        raise ValueError(f"`disparity` must have the shape [B,1,H,W]; got {list(disparity.shape)}.")
    if true_disparity.shape != disparity.shape:
        raise ValueError(
            f"`true_disparity` must have the shape of `disparity` {list(disparity.shape)}; "
            f"got {list(true_disparity.shape)}."
        )
    check_mask("mask", mask, disparity.shape)
    for name, value in (("disparity", disparity), ("true_disparity", true_disparity)):
        spoilt = int((mask & ~value.isfinite()).sum())
        if spoilt:
            raise ValueError(f"`{name}` must be finite where `mask` is True; got {spoilt} pixels that are not.")
    truth = torch.where(mask, true_disparity, 0).double()
    error = (torch.where(mask, disparity, 0).double() - truth).abs()  # 0 outside the mask: no outlier there

    def count(chosen: Tensor) -> Tensor:
        return chosen.flatten(1).sum(1)

    return StereoErrors(
        pixels=count(mask),
        error_px=error.flatten(1).sum(1),
        outliers={threshold: count(error > threshold) for threshold in thresholds_px},
        d1_outliers=count((error > D1_PX) & (error > D1_SHARE * truth.abs())),
    )


def join_errors(batches: Sequence[StereoErrors]) -> StereoErrors:
    """Put the counts of several batches behind each other.

    Raises:
        ValueError: there are none, or their thresholds differ.
    """
    if not batches:
        raise ValueError("`batches` must hold at least one result of `measure_errors`; got none.")
    thresholds = list(batches[0].outliers)
    for batch in batches:
        if list(batch.outliers) != thresholds:
            raise ValueError(
                f"`batches` must have one set of thresholds; got {thresholds} and {list(batch.outliers)}."
            )
    return StereoErrors(
        pixels=torch.cat([batch.pixels for batch in batches]),
        error_px=torch.cat([batch.error_px for batch in batches]),
        outliers={threshold: torch.cat([batch.outliers[threshold] for batch in batches]) for threshold in thresholds},
        d1_outliers=torch.cat([batch.d1_outliers for batch in batches]),
    )


def average_images(errors: StereoErrors) -> StereoFigures:
    """Average the figures of the images, each image alike, as published.

    Images with no pixel to measure are left out (the official code gives NaN for the whole set); `images` says how
    many remained. If none did, the figures are NaN.
    """
    measured = errors.pixels > 0
    pixels = errors.pixels[measured].double()

    def mean(sums: Tensor) -> float:
        return float((sums[measured].double() / pixels).mean())

    return StereoFigures(
        end_point_error_px=mean(errors.error_px),
        bad_percent={threshold: 100 * mean(count) for threshold, count in errors.outliers.items()},
        d1_percent=100 * mean(errors.d1_outliers),
        images=int(measured.sum()),
        pixels=int(errors.pixels.sum()),
    )


def pool_pixels(errors: StereoErrors) -> StereoFigures:
    """Take all pixels of all images together, each pixel alike; NaN if there are none."""
    pixels = errors.pixels.sum().double()

    def mean(sums: Tensor) -> float:
        return float(sums.sum().double() / pixels)

    return StereoFigures(
        end_point_error_px=mean(errors.error_px),
        bad_percent={threshold: 100 * mean(count) for threshold, count in errors.outliers.items()},
        d1_percent=100 * mean(errors.d1_outliers),
        images=int((errors.pixels > 0).sum()),
        pixels=int(pixels),
    )
