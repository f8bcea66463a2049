# SPDX-License-Identifier: Apache-2.0
"""What a benchmark measures on one picture and on all: regions, counts of each picture, figures of both averages.

Pure functions; no network, no files. The metrics themselves are in stereo_metrics.py; which set is measured how is
known by stereo_benchmarks.py, and how figures are written by stereo_tables.py.

Four regions, as far as a set lets them be told apart (`REGIONS`). The boundary region is our own: ZeroStereo (Tab. 7)
reports errors at boundaries without saying which pixels these are, so our figures of it compare with each other and
not with the paper's. Letters: B batch, H W pixels. Disparities in px, left view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.stereo_metrics import (
    StereoErrors,
    StereoFigures,
    average_images,
    check_mask,
    join_errors,
    measure_errors,
    pool_pixels,
    split_by_visibility,
)

# A step is a discontinuity if it is larger than this and the distance of the two pixels together: 2 px between
# neighbours, the `eval_disp_gap` of Scharstein and Szeliski (IJCV 2002), whose window of 9 px is ours too.
BOUNDARY_STEP_PX = 1.0
BOUNDARY_WINDOW = 9  # px, odd
BOUNDARY_LARGEST_GAP = 8  # px between known pixels of a row or column that are still compared, for laser scans

REGIONS = {
    "all": "every pixel whose true disparity is known",
    "noc": "those that both views see, by the benchmark's own mask",
    "occ": "the others, seen by the left view only",
    "boundary": (
        f"those of `all` in a window of {BOUNDARY_WINDOW}x{BOUNDARY_WINDOW} px around a discontinuity of the true "
        "disparity: two pixels of a row or column, known, with nothing known between them and n <= "
        f"{BOUNDARY_LARGEST_GAP} px apart, whose disparities differ by more than n + {BOUNDARY_STEP_PX:g} px. Our "
        "definition; the paper's (Tab. 7) is not known"
    ),
}
AVERAGES = {
    "image average": "mean of the images' figures, each image alike, as published by ZeroStereo and its relatives",
    "pixel pooled": "all pixels of all images together, each pixel alike, as the benchmarks' servers count",
}


class ImageResult(NamedTuple):
    """What was measured on one pair."""

    name: str  # path of the left frame below the set's root
    seconds: float  # that the network took
    regions: dict[str, StereoErrors]  # of one image (B = 1) each


class RegionFigures(NamedTuple):
    """Figures of one region of a data set, by the names of AVERAGES."""

    image_average: StereoFigures
    pixel_pooled: StereoFigures


def boundary_mask(true_disparity: Tensor, valid_mask: Tensor) -> Tensor:
    """Mark the known pixels near a discontinuity of the true disparity.

    Why this definition: a surface that both views see from the front moves by less than one px of disparity per px
    of a row, so a larger step between two known pixels is a boundary between surfaces (or a surface that one view
    does not see), and a slanted road is none. It needs no threshold that depends on the scene and no dense map: of the
    Motorcycle pair's known pixels it takes 25.7 %, and 25.1 % where a random quarter of them is known. It is in px of
    the map, so figures of one scene at different sizes are of different regions.

    Args:
        true_disparity: [B,1,H,W], px; any value where not valid.
        valid_mask: [B,1,H,W] bool, where it is known.

    Returns:
        [B,1,H,W] bool, a part of `valid_mask`; see `REGIONS`.

    Raises:
        ValueError, TypeError: the mask has another shape, or is not bool.

    Degenerate cases: nothing known, one pixel or a constant map have no boundary.
    """
    check_mask("valid_mask", valid_mask, true_disparity.shape)
    ends = _row_ends(true_disparity, valid_mask)
    ends |= _row_ends(true_disparity.mT, valid_mask.mT).mT
    near = F.max_pool2d(ends.float(), BOUNDARY_WINDOW, stride=1, padding=BOUNDARY_WINDOW // 2) > 0
    return near & valid_mask


def _row_ends(disparity: Tensor, valid_mask: Tensor) -> Tensor:
    """Mark both pixels of each discontinuity along rows: [B,1,H,W] bool."""
    width = disparity.shape[-1]
    columns = torch.arange(width, device=disparity.device).expand(disparity.shape)
    latest = torch.where(valid_mask, columns, -1).cummax(-1).values
    before = F.pad(latest[..., :-1], (1, 0), value=-1)  # the known pixel before each column, -1 where there is none
    gap = columns - before
    step = (disparity - disparity.gather(-1, before.clamp(min=0))).abs()
    jumps = valid_mask & (before >= 0) & (gap <= BOUNDARY_LARGEST_GAP) & (step > gap + BOUNDARY_STEP_PX)
    ends = F.pad(jumps, (0, 1))  # one column more, for the other end of what is no jump
    ends.scatter_(-1, torch.where(jumps, before, width), True)
    return ends[..., :width]


def find_regions(
    true_disparity: Tensor,
    valid_mask: Tensor,
    visible_mask: Tensor | None = None,
    *,
    max_disparity_px: float | None = None,
) -> dict[str, Tensor]:
    """Return the regions of REGIONS that can be told apart.

    Args:
        true_disparity: [B,1,H,W], px.
        valid_mask: [B,1,H,W] bool, where it is known.
        visible_mask: [B,1,H,W] bool, what both views see; None = not known, then there are no "noc" and "occ".
        max_disparity_px: leaves out pixels of this disparity and more, as some evaluations do; None = none, as
            ZeroStereo's.

    Returns:
        name -> [B,1,H,W] bool. The boundaries are those of the whole map, whatever `max_disparity_px` leaves out.

    Raises:
        ValueError, TypeError: a mask has another shape or is not bool; `max_disparity_px` is not above 0.
    """
    if max_disparity_px is not None and not max_disparity_px > 0:
        raise ValueError(f"`max_disparity_px` must be above 0, or None for no limit; got {max_disparity_px!r}.")
    near = boundary_mask(true_disparity, valid_mask)
    counted = valid_mask if max_disparity_px is None else valid_mask & (true_disparity < max_disparity_px)
    regions = {"all": counted} if visible_mask is None else split_by_visibility(counted, visible_mask)
    return regions | {"boundary": near & counted}


def measure_image(
    name: str, seconds: float, disparity: Tensor, true_disparity: Tensor, regions: Mapping[str, Tensor]
) -> ImageResult:
    """Measure one pair in every region.

    Args:
        name: of the pair.
        seconds: that the network took.
        disparity: [1,1,H,W], px.
        true_disparity: [1,1,H,W], px.
        regions: of `find_regions`.

    Raises:
        ValueError: a disparity in a region is not finite, or shapes disagree; the message names the pair.
    """
    try:
        measured = {region: measure_errors(disparity, true_disparity, mask) for region, mask in regions.items()}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return ImageResult(name, seconds, measured)


def summarize(results: Sequence[ImageResult]) -> dict[str, RegionFigures]:
    """Make figures of the results of a data set, by region in the order of REGIONS.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("`results` must hold at least one result of `measure_image`; got none.")
    figures = {}
    for region in REGIONS:
        counts = [result.regions[region] for result in results if region in result.regions]
        if counts:
            joined = join_errors(counts)
            figures[region] = RegionFigures(average_images(joined), pool_pixels(joined))
    return figures


def figures_of_image(result: ImageResult) -> dict[str, StereoFigures]:
    """Return the figures of one image by region; NaN where a region has no pixel."""
    return {region: pool_pixels(errors) for region, errors in result.regions.items()}


def result_to_json(result: ImageResult) -> dict[str, Any]:
    """Turn a result into what JSON can hold, without loss."""
    return {
        "name": result.name,
        "seconds": result.seconds,
        "regions": {
            region: {
                "pixels": int(errors.pixels),
                "error_px": float(errors.error_px),
                "outliers": {f"{threshold:g}": int(count) for threshold, count in errors.outliers.items()},
                "d1_outliers": int(errors.d1_outliers),
            }
            for region, errors in result.regions.items()
        },
    }


def result_from_json(values: Mapping[str, Any]) -> ImageResult:
    """Read what `result_to_json` gave."""
    regions = {
        region: StereoErrors(
            pixels=torch.tensor([counts["pixels"]]),
            error_px=torch.tensor([counts["error_px"]], dtype=torch.float64),
            outliers={float(threshold): torch.tensor([count]) for threshold, count in counts["outliers"].items()},
            d1_outliers=torch.tensor([counts["d1_outliers"]]),
        )
        for region, counts in values["regions"].items()
    }
    return ImageResult(values["name"], values["seconds"], regions)
