# SPDX-License-Identifier: Apache-2.0
"""Classical ways to fill the holes of a warped view: what the inpainting network has to beat.

All take a right view [B,3,H,W] float in [0,1] and its hole mask [B,1,H,W] bool and return [B,3,H,W] of the same dtype;
known pixels are copied bit for bit. `fill_from_background`, the fourth of them, is the pipeline's.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline_zerostereo import fill_from_background

__all__ = ["fill_by_fast_marching", "fill_by_navier_stokes", "fill_from_background", "fill_from_photograph"]

INPAINT_RADIUS = 5.0  # px


def _check_view(right_image: Tensor, right_hole_mask: Tensor) -> None:
    """Raise unless the view is [B,3,H,W] and the mask bool [B,1,H,W]."""
    if right_image.ndim != 4 or right_image.shape[1] != 3:
        raise ValueError(f"`right_image` must have shape [B,3,H,W]; got {list(right_image.shape)}.")
    if right_hole_mask.dtype != torch.bool:
        raise TypeError(f"`right_hole_mask` must be a bool tensor; got {right_hole_mask.dtype}.")
    expected = [right_image.shape[0], 1, *right_image.shape[2:]]
    if list(right_hole_mask.shape) != expected:
        raise ValueError(
            f"`right_hole_mask` must have the B, H and W of `right_image`, {expected}; "
            f"got {list(right_hole_mask.shape)}."
        )


def fill_from_photograph(right_image: Tensor, right_hole_mask: Tensor, donor: Tensor) -> Tensor:
    """Fill holes with the pixels of another photograph at the same places, its colours adapted to the view.

    Each channel of the donor is shifted and scaled so that its mean and standard deviation over the whole donor become
    those of the view's known pixels (Reinhard et al. 2001, here in RGB), then clamped to [0,1].

    Args:
        right_image: [B,3,H,W] float in [0,1], right view.
        right_hole_mask: [B,1,H,W] bool, right view, True where to fill.
        donor: [B,3,H,W] float in [0,1], photographs of other scenes; the result depends on the choice.

    Returns:
        [B,3,H,W], dtype of `right_image`; known pixels bit for bit.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: shapes disagree.

    Degenerate cases: a donor channel without contrast becomes the mean of the known pixels; a view without any known
    pixel takes the donor's colours as they are.

    Source: in the manner of MfS-Stereo (Watson et al. 2020, https://arxiv.org/abs/2008.01484).
    """
    _check_view(right_image, right_hole_mask)
    if donor.shape != right_image.shape:
        raise ValueError(
            f"`donor` must have the shape of `right_image`, {list(right_image.shape)}; got {list(donor.shape)}."
        )
    donor = donor.to(right_image)
    adapted = []
    for view, hole, other in zip(right_image, right_hole_mask, donor, strict=True):
        known = view[:, ~hole[0]]  # [3,known pixels]
        if known.shape[1] == 0:
            adapted.append(other)
            continue
        deviation, mean = torch.std_mean(other, (1, 2), correction=0, keepdim=True)  # [3,1,1]
        known_deviation, known_mean = torch.std_mean(known, 1, correction=0, keepdim=True)  # [3,1]
        gain = torch.where(deviation > 0, known_deviation[:, None] / deviation, 0.0)
        adapted.append(((other - mean) * gain + known_mean[:, None]).clamp(0, 1))
    return torch.where(right_hole_mask, torch.stack(adapted), right_image)


def fill_by_fast_marching(right_image: Tensor, right_hole_mask: Tensor) -> Tensor:
    """Fill holes with OpenCV's fast marching (Telea 2004), radius 5 px, on 8-bit colours.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: shapes disagree.
    """
    return _fill_with_opencv(right_image, right_hole_mask, cv2.INPAINT_TELEA)


def fill_by_navier_stokes(right_image: Tensor, right_hole_mask: Tensor) -> Tensor:
    """Fill holes with OpenCV's Navier-Stokes (Bertalmio et al. 2001), radius 5 px, on 8-bit colours.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: shapes disagree.
    """
    return _fill_with_opencv(right_image, right_hole_mask, cv2.INPAINT_NS)


def _fill_with_opencv(right_image: Tensor, right_hole_mask: Tensor, method: int) -> Tensor:
    _check_view(right_image, right_hole_mask)
    codes = (right_image.float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()  # [B,H,W,3]
    holes = right_hole_mask[:, 0].to(torch.uint8).cpu().numpy() * 255  # [B,H,W]
    filled = [
        cv2.inpaint(np.ascontiguousarray(one), hole, INPAINT_RADIUS, method)
        for one, hole in zip(codes, holes, strict=True)
    ]
    result = torch.from_numpy(np.stack(filled)).movedim(-1, 1).to(right_image) / 255  # [B,3,H,W]
    return torch.where(right_hole_mask, result, right_image)
