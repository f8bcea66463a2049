# SPDX-License-Identifier: Apache-2.0
"""From a stereo pair with disparity to the inpainting loss, through the functions that inference uses.

Warping, covering of holes, encoding and the mask's reduction are the pipeline's own, so training and inference cannot
disagree about what the UNet sees: [noisy latents, latent mask, masked image latents], in this order of channels.

Letters as in pipeline_zerostereo.py: B batch, H W pixels, h w latent, c latent channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline_zerostereo import cover_holes, encode_latents, forward_warp, reduce_mask_to_latent, sharpen_disparity

KNOWN_WEIGHT = 0.1  # loss weight of a latent pixel away from holes: its content is known and pasted back anyway
HOLE_WEIGHT = 3.0  # added inside the latent mask, dilated by one latent pixel

PREDICTED_BLUR = (0.5, 2.5)  # px, standard deviations of the blur of object borders that stands for a depth network's
BLUR_REACH = 8  # px, a little more than three deviations


class WarpedPair(NamedTuple):
    """A pair of pictures as inference meets them, and the truth."""

    right_image: Tensor  # [B,3,H,W] in [-1,1], the true right view
    masked_image: Tensor  # [B,3,H,W] in [-1,1], the left view warped to the right, holes covered
    right_hole_mask: Tensor  # [B,1,H,W] bool, True where nothing of the left view landed


class InpaintingBatch(NamedTuple):
    """What `inpainting_loss` takes."""

    target_latents: Tensor  # [B,c,h,w]
    masked_image_latents: Tensor  # [B,c,h,w]
    latent_mask: Tensor  # [B,1,h,w] float, 1 = to be filled
    prompt_embeds: Tensor  # [B,tokens,channels]


def warp_pair(left_image: Tensor, left_disparity: Tensor, right_image: Tensor, masked_fill: str) -> WarpedPair:
    """Warp the left view to the right one and cover its holes as the pipeline does.

    Args:
        left_image: [B,3,H,W] in [0,1].
        left_disparity: [B,1,H,W], px, left view.
        right_image: [B,3,H,W] in [0,1], the true right view.
        masked_fill: "background" or "zero", see `cover_holes`.

    Raises:
        ValueError: the views differ in shape; and what `forward_warp` and `cover_holes` refuse.
    """
    if right_image.shape != left_image.shape:
        raise ValueError(
            "`right_image` must have the shape of `left_image` "
            f"{list(left_image.shape)}; got {list(right_image.shape)}."
        )
    warp = forward_warp(left_image, left_disparity)
    covered = cover_holes(warp.right_image, warp.right_hole_mask, warp.right_disparity, masked_fill)
    return WarpedPair(2 * right_image - 1, covered, warp.right_hole_mask)


def as_predicted(disparity: Tensor, *, generator: torch.Generator) -> Tensor:
    """Give a true disparity map what a predicted one has at inference: soft object borders, then sharpened.

    A depth network's map is blurred at object borders and the pipeline sharpens it; a UNet that has only seen warps by
    true maps meets displaced borders there for the first time. Each map is blurred by a Gaussian whose standard
    deviation is drawn from PREDICTED_BLUR, then goes through the pipeline's own `sharpen_disparity`.

    Args:
        disparity: [B,1,H,W], px, >= 0, finite.
        generator: the deviations are drawn from it.

    Returns:
        [B,1,H,W] float32, px.

    Raises:
        ValueError: as `sharpen_disparity`.
    """
    B, low, high = len(disparity), *PREDICTED_BLUR
    deviation = low + (high - low) * torch.rand((B, 1), generator=generator, device=generator.device)  # [B,1]
    reach = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=generator.device)
    kernel = torch.exp(-0.5 * (reach / deviation).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(disparity.device)[:, None]  # [B,1,2r+1]
    planes = disparity.float().transpose(0, 1)  # [1,B,H,W]: each map is a channel with its own kernel
    for shape, edges in (((1, -1), (BLUR_REACH, BLUR_REACH, 0, 0)), ((-1, 1), (0, 0, BLUR_REACH, BLUR_REACH))):
        padded = F.pad(planes, edges, mode="replicate")
        planes = F.conv2d(padded, kernel.view(B, 1, *shape), groups=B)
    return sharpen_disparity(planes.transpose(0, 1))


@torch.no_grad()
def encode_pair(vae: Any, pair: WarpedPair, latent_mask_reduction: str, prompt_embeds: Tensor) -> InpaintingBatch:
    """Encode a warped pair; the autoencoder is not trained.

    Args:
        vae: AutoencoderKL or AutoencoderTiny.
        pair: H and W are multiples of the autoencoder's factor.
        latent_mask_reduction: "max" or "nearest", see `reduce_mask_to_latent`.
        prompt_embeds: [1,tokens,channels], the embedding of the empty prompt.
    """
    B, H = pair.right_image.shape[0], pair.right_image.shape[-2]
    both = encode_latents(vae, torch.cat([pair.right_image, pair.masked_image])).float()  # [2B,c,h,w]
    target, masked = both.chunk(2)
    mask = reduce_mask_to_latent(pair.right_hole_mask, H // target.shape[-2], latent_mask_reduction)
    return InpaintingBatch(target, masked, mask.float(), prompt_embeds.to(target.device).expand(B, -1, -1))


def draw_timesteps(
    batch_size: int, train_timesteps: int, last_timestep_share: float, *, generator: torch.Generator
) -> Tensor:
    """Draw timesteps [B] uniformly, except that a share of them is the last one.

    Few-step sampling with trailing spacing begins at the last timestep, where its image is made; drawn uniformly,
    one sample in a thousand would practise that.
    """
    device = generator.device
    timesteps = torch.randint(train_timesteps, (batch_size,), generator=generator, device=device)
    chosen = torch.rand(batch_size, generator=generator, device=device) < last_timestep_share
    return torch.where(chosen, train_timesteps - 1, timesteps)


def prediction_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Give what the UNet should predict, [B,c,h,w], by the scheduler's `prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f'`prediction_type` must be "epsilon", "v_prediction" or "sample"; got {kind!r}.')


def snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Give the weight [B] of each sample's loss by its signal-to-noise ratio S: min-SNR-gamma.

    In terms of the clean latents the weight is min(S, gamma): easy timesteps count no more than that. Divided by S
    where the UNet predicts noise, by S + 1 where it predicts velocity. With S = 0 the limit is taken, so a zero
    terminal SNR gives 1, 0 and 0 for noise, velocity and latents.

    Source: Hang et al. 2023 (https://arxiv.org/abs/2303.09556).
    """
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()  # S = kept / (1 - kept)
    limit = kept.new_tensor(gamma)
    if scheduler.config.prediction_type == "epsilon":
        return torch.minimum(torch.ones_like(kept), limit * (1 - kept) / kept)  # limit / S, infinite where S is 0
    bounded = torch.minimum(kept / (1 - kept), limit)
    return bounded * (1 - kept) if scheduler.config.prediction_type == "v_prediction" else bounded


def denoising_loss(
    unet: nn.Module,
    scheduler: Any,
    batch: InpaintingBatch,
    noise: Tensor,
    timesteps: Tensor,
    *,
    known_weight: float = KNOWN_WEIGHT,
    hole_weight: float = HOLE_WEIGHT,
    snr_gamma: float | None = None,
) -> Tensor:
    """Let the UNet predict from latents with this noise at these timesteps, and compare.

    Args:
        unet: takes (input [B,2c+1,h,w], timesteps [B], encoder_hidden_states); returns a tuple, first [B,c,h,w].
        scheduler: gives `add_noise` and its `prediction_type`.
        batch: what `encode_pair` returned.
        noise: [B,c,h,w].
        timesteps: [B].
        known_weight: weight of every latent pixel.
        hole_weight: added inside the latent mask, dilated by one latent pixel because the decoder looks that far.
        snr_gamma: see `snr_weights`; None weighs all timesteps alike.

    Returns:
        the weighted mean squared error, a scalar. With known_weight=1, hole_weight=0 and no snr_gamma it is the plain
        one over the whole latent, as ZeroStereo trains.
    """
    latents = batch.target_latents
    noisy = scheduler.add_noise(latents, noise, timesteps)
    unet_input = torch.cat([noisy, batch.latent_mask, batch.masked_image_latents], dim=1)  # [B,2c+1,h,w]
    prediction = unet(unet_input, timesteps, encoder_hidden_states=batch.prompt_embeds, return_dict=False)[0]
    error = (prediction.float() - prediction_target(scheduler, latents, noise, timesteps)).square()
    weight = known_weight + hole_weight * F.max_pool2d(batch.latent_mask, 3, stride=1, padding=1)  # [B,1,h,w]
    if snr_gamma is not None:
        weight = weight * snr_weights(scheduler, timesteps, snr_gamma).view(-1, 1, 1, 1)
    return (weight * error).mean()


def inpainting_loss(
    unet: nn.Module,
    scheduler: Any,
    batch: InpaintingBatch,
    generator: torch.Generator,
    *,
    last_timestep_share: float = 0.0,
    known_weight: float = KNOWN_WEIGHT,
    hole_weight: float = HOLE_WEIGHT,
    snr_gamma: float | None = None,
) -> Tensor:
    """Draw noise and timesteps, then `denoising_loss`.

    Args:
        unet: as there.
        scheduler: as there.
        batch: as there.
        generator: noise and timesteps are drawn from it.
        last_timestep_share: see `draw_timesteps`.
        known_weight: as there.
        hole_weight: as there.
        snr_gamma: as there.
    """
    latents = batch.target_latents
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents.device)
    timesteps = draw_timesteps(
        len(latents), scheduler.config.num_train_timesteps, last_timestep_share, generator=generator
    ).to(latents.device)
    weights = {"known_weight": known_weight, "hole_weight": hole_weight}
    return denoising_loss(unet, scheduler, batch, noise, timesteps, **weights, snr_gamma=snr_gamma)
