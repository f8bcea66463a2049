# SPDX-License-Identifier: Apache-2.0
"""A photograph alone as a sample for inpainting: what the other eye cannot see of it is a hole of known truth.

The photograph is taken as the NEW (right) view. Its pixels go to the other (left) eye by their disparity, and that
view goes back to the photograph's place by the warp of inference. Pixels at which nothing comes back are those that
would be disoccluded when the photograph is made from the other eye; the photograph itself is the truth under them. So
real pictures of any kind train the network, without a second camera and without rendered colours.

The functions are pure. They know no files, no depth network (training/photograph_depth.py) and no data set.

Idea: GRT, "derive true disocclusion masks from one image" (https://arxiv.org/abs/2607.05354). This is our own
formulation, through the pipeline's warp alone.

Letters as in pipeline_zerostereo.py: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline_zerostereo import (
    cover_holes,
    fill_from_background,
    forward_warp,
    sample_disparity_scale,
    sharpen_disparity,
    warp_to_views,
)
from training.inpainting_loss import WarpedPair


class OtherEye(NamedTuple):
    """The left eye's view of a photograph that is taken as the right one.

    Attributes:
        left_image: [B,C,H,W], dtype and range of the photograph. Where only the left eye sees, a cover from the
            background: it lends the pixels beside it a colour when they are resampled, and nothing else.
        left_disparity: [B,1,H,W] float32, px, left view; NaN where only the left eye sees, which `forward_warp` drops.
    """

    left_image: Tensor
    left_disparity: Tensor


def see_from_other_eye(photograph: Tensor, disparity: Tensor) -> OtherEye:
    """Make the left eye's view of a photograph that is taken as the right eye's.

    Convention: the photograph's pixel at column x with disparity d belongs at column x + d of the left view: the
    mirror image of `forward_warp` on the mirror image.

    Args:
        photograph: [B,C,H,W] float, finite, any value range.
        disparity: [B,1,H,W] float, px at width W, >= 0, of the photograph. Infinite or NaN: the pixel is dropped.

    Raises:
        TypeError, ValueError: as `forward_warp`.
    """
    left = warp_to_views(photograph, disparity, "left")
    cover = fill_from_background(left.images, left.hole_mask, left.new_view_disparity)
    return OtherEye(cover, left.new_view_disparity.masked_fill(left.hole_mask, torch.nan))


def photograph_pair(photograph: Tensor, disparity: Tensor, masked_fill: str) -> WarpedPair:
    """Make a training sample of a photograph: itself as the truth, and itself as inference would have met it.

    Convention: the photograph is the right view. A pixel is a hole where nothing of the left view lands on it: behind
    a nearer surface for the left eye, or beyond that eye's right frame. That strip along the right border is as wide
    as the disparity there, as it is at inference.

    Known pixels have been to the other eye and back, so they show what warping does to pixels. They are resampled
    twice where inference resamples once, and are softer for it: on scenes of 192x256 px the squared steps along the
    rows keep .50 of the truth's energy here, .67 at inference (a cubic first trip would give .57).

    Args:
        photograph: [B,3,H,W] float in [0,1].
        disparity: [B,1,H,W] float, px at width W, >= 0, of the photograph; sharp at object borders, as
            `select_photograph_disparity` returns it. Infinite or NaN: the pixel is seen by no other eye, a hole.
        masked_fill: "background" or "zero", see `cover_holes`.

    Returns:
        WarpedPair with
            right_image: [B,3,H,W] in [-1,1], the photograph.
            masked_image: [B,3,H,W] in [-1,1], the photograph by way of the other eye, its holes covered.
            right_hole_mask: [B,1,H,W] bool, True where only the photograph sees.

    Raises:
        TypeError, ValueError: as `forward_warp` and `cover_holes`.

    Degenerate cases: zero or whole constant disparity d leaves every known pixel as it is, bit for bit up to the
    change of range; the holes are the d last columns.
    """
    eye = see_from_other_eye(photograph, disparity)
    back = forward_warp(eye.left_image, eye.left_disparity)
    covered = cover_holes(back.right_image, back.right_hole_mask, back.right_disparity, masked_fill)
    return WarpedPair(2 * photograph - 1, covered, back.right_hole_mask)


def select_photograph_disparity(
    normalized_inverse_depth: Tensor,
    photograph_width: int,
    *,
    generator: torch.Generator | list[torch.Generator],
) -> Tensor:
    """Draw a strength for each photograph as inference does, and make the disparity of it: ADS, then sharpening.

    Args:
        normalized_inverse_depth: [B,1,H,W] float in [0,1], of whole photographs or of crops of them.
        photograph_width: px, of the whole photographs that crops were cut from; W where they are whole. The strength
            is a share of it, so a crop has the disparities of its photograph.
        generator: one, or one per photograph; two numbers are taken for each, see `sample_disparity_scale`.

    Returns:
        [B,1,H,W] float32, px.

    Raises:
        TypeError: not a float tensor.
        ValueError: not of shape [B,1,H,W], outside [0,1], or wider than `photograph_width`.
    """
    W = normalized_inverse_depth.shape[-1]
    if photograph_width < W:
        raise ValueError(
            f"`photograph_width` must be at least the width of `normalized_inverse_depth`, {W}; "
            f"got {photograph_width}."
        )
    lowest, highest = normalized_inverse_depth.aminmax()
    if not (lowest >= 0 and highest <= 1):
        raise ValueError(
            f"`normalized_inverse_depth` must lie in [0, 1]; got {lowest.item():g} to {highest.item():g}."
        )
    scale = sample_disparity_scale(len(normalized_inverse_depth), generator)  # [B]
    largest = (scale * photograph_width).to(normalized_inverse_depth.device).view(-1, 1, 1, 1)
    return sharpen_disparity(normalized_inverse_depth.float() * largest)
