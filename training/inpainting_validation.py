# SPDX-License-Identifier: Apache-2.0
"""How well the holes of held-out views are filled: figures and a picture, through the pipeline's own `inpaint`.

Every figure is over the hole pixels of all views together. PSNR favours blur, so it never stands alone: the gradient
energy says how much texture there is, the difference across hole borders how visible the seam is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline_zerostereo import ZeroStereoPipeline, cover_holes, forward_warp
from training.run import picture_grid

SSIM_WINDOW = 7  # px; with the constants of Wang et al. 2004, as scikit-image's structural_similarity has them
SSIM_CONSTANTS = (0.01**2, 0.03**2)
PICTURED_VIEWS = 6


class HeldOutViews(NamedTuple):
    """What the pipeline is given, and the truth. All on the CPU, pictures in [0,1]."""

    warped: Tensor  # [N,3,H,W], 0 in holes
    holes: Tensor  # [N,1,H,W] bool
    right_disparity: Tensor  # [N,1,H,W], px
    truth: Tensor  # [N,3,H,W]


def hold_out(left_image: Tensor, left_disparity: Tensor, right_image: Tensor) -> HeldOutViews:
    """Warp left views [N,3,H,W] in [0,1] by their disparity [N,1,H,W], px; the true right views are the truth."""
    warp = forward_warp(left_image, left_disparity)
    views = (warp.right_image, warp.right_hole_mask, warp.right_disparity, right_image)
    return HeldOutViews(*(tensor.cpu() for tensor in views))


def hole_psnr(image: Tensor, truth: Tensor, hole_mask: Tensor) -> float:
    """Give the PSNR in dB over all hole pixels of a set of pictures [B,3,H,W] in [0,1]; NaN without holes."""
    error = (image - truth).square().mean(1, keepdim=True)[hole_mask].mean()
    return float(-10 * error.clamp_min(1e-9).log10())


def _neighbours(values: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Pairs of horizontally and of vertically adjacent values."""
    return ((values[..., 1:], values[..., :-1]), (values[..., 1:, :], values[..., :-1, :]))


def hole_gradient_energy(image: Tensor, hole_mask: Tensor) -> float:
    """Sum the squared differences of adjacent pixels over pairs of which both are holes; image [B,3,H,W]."""
    total = torch.zeros((), dtype=torch.float64)
    for (a, b), (mask_a, mask_b) in zip(_neighbours(image.double()), _neighbours(hole_mask), strict=True):
        total += ((a - b).square() * (mask_a & mask_b)).sum()
    return float(total)


def border_difference(image: Tensor, hole_mask: Tensor) -> float:
    """Give the mean absolute difference of adjacent pixels, one in a hole and one known; NaN without such pairs.

    Args:
        image: [B,3,H,W] in [0,1], holes filled.
        hole_mask: [B,1,H,W] bool.
    """
    differences = []
    for (a, b), (mask_a, mask_b) in zip(_neighbours(image), _neighbours(hole_mask), strict=True):
        differences.append((a - b).abs().mean(1, keepdim=True)[mask_a ^ mask_b])
    return float(torch.cat(differences).mean())


def similarity(image: Tensor, truth: Tensor) -> Tensor:
    """Give the SSIM of pictures [B,3,H,W] in [0,1] at every pixel, channels averaged: [B,1,H,W].

    scikit-image's `structural_similarity(..., data_range=1, full=True)`: uniform window of 7 px, sample covariance,
    mirrored borders.
    """
    reach, count = SSIM_WINDOW // 2, SSIM_WINDOW**2

    def mean(values: Tensor) -> Tensor:
        padded = _mirror_borders(values, reach)
        return F.avg_pool2d(padded, SSIM_WINDOW, stride=1)

    a, b = image.double(), truth.double()
    mean_a, mean_b = mean(a), mean(b)
    sample = count / (count - 1)
    variance_a, variance_b = (sample * (mean(x * x) - m * m) for x, m in ((a, mean_a), (b, mean_b)))
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    first, second = SSIM_CONSTANTS
    ratio = (2 * mean_a * mean_b + first) / (mean_a.square() + mean_b.square() + first)
    return (ratio * (2 * covariance + second) / (variance_a + variance_b + second)).mean(1, keepdim=True).float()


def _mirror_borders(values: Tensor, reach: int) -> Tensor:
    """Pad by mirror images that repeat the border pixel, as scipy's filters do."""
    for dim in (-1, -2):
        length = values.shape[dim]
        before, after = values.narrow(dim, 0, reach).flip(dim), values.narrow(dim, length - reach, reach).flip(dim)
        values = torch.cat([before, values, after], dim=dim)
    return values


def score(filled: Tensor, views: HeldOutViews) -> dict[str, float]:
    """Compare filled views [N,3,H,W] in [0,1] with the truth.

    Returns:
        psnr: dB, over the hole pixels.
        gradient_ratio: gradient energy inside holes over the truth's; 1 is right, less is blur, more is noise.
        ssim: averaged over the hole pixels; windows reach into the known pixels around.
        border_difference: across hole borders, in [0,1]; the truth has its own, `true_border_difference`.
    """
    truth_energy = hole_gradient_energy(views.truth, views.holes)
    energy = hole_gradient_energy(filled, views.holes)
    return {
        "psnr": hole_psnr(filled, views.truth, views.holes),
        "gradient_ratio": energy / truth_energy if truth_energy else float("nan"),
        "ssim": float(similarity(filled, views.truth)[views.holes].mean()),
        "border_difference": border_difference(filled, views.holes),
    }


@torch.no_grad()
def fill(pipe: ZeroStereoPipeline, views: HeldOutViews, steps: int) -> Tensor:
    """Fill held-out views one by one, the noise of each from its own fixed seed: [N,3,H,W] on the CPU."""
    device: Any = pipe.unet.device
    parts = []
    for i in range(len(views.warped)):
        one = slice(i, i + 1)
        inputs = (x[one].to(device) for x in (views.warped, views.holes, views.right_disparity))
        generator = torch.Generator().manual_seed(i)
        parts.append(pipe.inpaint(*inputs, num_inference_steps=steps, generator=generator).float().cpu())
    return torch.cat(parts)


def validate(
    pipe: ZeroStereoPipeline, views: HeldOutViews, steps: tuple[int, ...]
) -> tuple[dict[str, float], Image.Image]:
    """Fill held-out views with these counts of denoising steps, beside the fill from the background.

    Returns:
        figures by name, `validation_psnr_4_steps` and the like, see `score`; and a picture, a view in each row:
        warped, filled from the background, filled with the last count of steps, true.
    """
    background = cover_holes(views.warped, views.holes, views.right_disparity, "background") / 2 + 0.5
    figures = {f"validation_background_{name}": value for name, value in score(background, views).items()}
    figures["validation_true_border_difference"] = border_difference(views.truth, views.holes)
    filled = background
    for count in steps:
        filled = fill(pipe, views, count)
        found = score(filled, views)
        figures |= {f"validation_{name}_{count}_steps": value for name, value in found.items()}
    columns = (views.warped, background, filled, views.truth)
    return figures, picture_grid([[x[i] for x in columns] for i in range(min(PICTURED_VIEWS, len(filled)))])
