# SPDX-License-Identifier: Apache-2.0
"""Sampling in few steps, learned end to end: the right picture at once, and the same one from every later step.

A network trained on noise alone (the paper's recipe) needs tens of steps: its first answer, from nothing but noise, is
an average over all possible fills, and where noise is predicted its error is divided by a signal of a fifteenth. So
the student is trained on its answer itself, the clean latents, and mostly where a sampling begins. Two things are
added because regression alone leaves blur, and would train one step only:

- Self-consistency. At inference the later steps see what the student's own earlier answers have become. So training
  shows it points between its first answer and the goal, noised by the same noise, at any timestep; each shall lead
  to the same goal. More steps then refine the picture, and never lead elsewhere.
- Texture. The local contrast of neighbouring latent pixels, a figure without position or sign, shall be that of the
  true latents. Distance alone prefers no texture to a texture at another place.

The goal is the truth, or a sample: with a teacher, deterministic DDIM turns each noise into one sample in many steps,
and the student learns to give this sample from that noise. That keeps what a good sampler invents, and inherits what a
poor one cannot: a teacher that was trained for minutes has a sixth of the true texture in 20 steps
(benchmarks/few_steps.py), so there the truth is the better goal.

Sources: end-to-end fine-tuning of the first step, spacing "trailing" (https://arxiv.org/abs/2409.11355,
https://arxiv.org/abs/2305.08891); pairs of noise and sample, Luhman & Luhman 2021 (https://arxiv.org/abs/2101.02388);
the same answer from every timestep, consistency models (https://arxiv.org/abs/2303.01469), without their
bootstrapping. The texture term is ours.

Functions are pure: schedulers are read, never stepped, and every draw comes from the generator that is passed in.
Letters as in pipeline_zerostereo.py: B batch, h w latent pixels, c latent channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.inpainting_loss import HOLE_WEIGHT, KNOWN_WEIGHT, InpaintingBatch, draw_timesteps

TEACHER_STEPS = 50  # denoising steps of a sample that is learned from
LAST_TIMESTEP_SHARE = 0.4  # of the samples practise the first step of every sampling, which decides most
TEXTURE_WEIGHT = 2.0
TEXTURE_WINDOW = 5  # latent pixels; contrast is compared over squares of this side
SMALLEST_CONTRAST = 1e-3  # keeps the gradient of the root finite where a picture is flat


class NoisePair(NamedTuple):
    """A noise, and the clean latents that it shall lead to."""

    noise: Tensor  # [B,c,h,w]
    goal: Tensor  # [B,c,h,w]


def trailing_timesteps(train_timesteps: int, steps: int) -> list[int]:
    """List the timesteps of a sampling that begins at the last one: DDIM's `timestep_spacing="trailing"`.

    Raises:
        ValueError: `steps` outside 1 ... train_timesteps.
    """
    if not 1 <= steps <= train_timesteps:
        raise ValueError(f"`steps` must lie in 1 ... {train_timesteps}; got {steps}.")
    return [round(train_timesteps - i * train_timesteps / steps) - 1 for i in range(steps)]


def signal_and_noise(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Give the shares of signal and noise at timesteps [B]: two of [B,1,1,1], whose squares sum to 1."""
    share = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float().view(-1, 1, 1, 1)
    return share.sqrt(), (1 - share).sqrt()


def predicted_latents(scheduler: Any, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Turn what a network predicts into the clean latents that it means.

    Args:
        scheduler: tells `alphas_cumprod` and `prediction_type`.
        prediction: [B,c,h,w], noise, latents or velocity.
        noisy: [B,c,h,w], what the network saw.
        timesteps: [B].

    Returns:
        [B,c,h,w] float32.

    Raises:
        ValueError: an unknown `prediction_type`; or "epsilon" where a timestep holds no signal at all (zero terminal
            SNR): noise then says nothing about the picture.
    """
    kind = scheduler.config.prediction_type
    prediction, noisy = prediction.float(), noisy.float()
    signal, noise = signal_and_noise(scheduler, timesteps)
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return signal * noisy - noise * prediction
    if kind != "epsilon":
        raise ValueError(f'`prediction_type` must be "epsilon", "v_prediction" or "sample"; got {kind!r}.')
    if not (signal > 1e-4).all():
        raise ValueError(
            '`scheduler` must keep some signal at every timestep where it predicts "epsilon"; got a share of '
            f"{signal.min().item():g}. Set rescale_betas_zero_snr=False, or predict the velocity."
        )
    return (noisy - noise * prediction) / signal


def answer(network: nn.Module, scheduler: Any, batch: InpaintingBatch, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Ask a network which clean latents [B,c,h,w] it sees in noisy ones at timesteps [B]."""
    unet_input = torch.cat([noisy, batch.latent_mask, batch.masked_image_latents], dim=1)  # [B,2c+1,h,w]
    prediction = network(unet_input, timesteps, encoder_hidden_states=batch.prompt_embeds, return_dict=False)[0]
    return predicted_latents(scheduler, prediction, noisy, timesteps)


@torch.no_grad()
def sample_from_noise(network: nn.Module, scheduler: Any, batch: InpaintingBatch, noise: Tensor, steps: int) -> Tensor:
    """Sample by deterministic DDIM with trailing timesteps; the noise decides the sample.

    Args:
        network: as in `inpainting_loss`.
        scheduler: tells `alphas_cumprod`, `prediction_type` and `num_train_timesteps`.
        batch: the conditions; its target latents are not looked at.
        noise: [B,c,h,w], unit variance.
        steps: denoising steps.

    Returns:
        [B,c,h,w] float32; the same as the pipeline's with DDIMScheduler, eta 0, set_alpha_to_one, no clipping, where
        `steps` divides the training timesteps (else DDIMScheduler aims one timestep beside the next; this does not).

    Raises:
        ValueError: as `trailing_timesteps` and `predicted_latents`.
    """
    places = trailing_timesteps(scheduler.config.num_train_timesteps, steps)
    noisy = noise.float()
    latents = noisy
    for place, following in zip(places, [*places[1:], None], strict=True):
        timesteps = torch.full((len(noise),), place, device=noise.device)
        latents = answer(network, scheduler, batch, noisy, timesteps)
        if following is not None:
            signal, share = signal_and_noise(scheduler, timesteps)
            direction = (noisy - signal * latents) / share  # the noise that is meant
            signal, share = signal_and_noise(scheduler, torch.full_like(timesteps, following))
            noisy = signal * latents + share * direction
    return latents


def local_contrast(latents: Tensor) -> Tensor:
    """Give the root mean square step between neighbouring latent pixels around each place, [B,c,h,w].

    Steps along both axes, within squares of `TEXTURE_WINDOW`; at the borders of those that exist.
    """
    across = F.pad((latents[..., 1:] - latents[..., :-1]).square(), (0, 1))
    down = F.pad((latents[..., 1:, :] - latents[..., :-1, :]).square(), (0, 0, 0, 1))
    mean = F.avg_pool2d(across + down, TEXTURE_WINDOW, stride=1, padding=TEXTURE_WINDOW // 2, count_include_pad=False)
    return (mean + SMALLEST_CONTRAST**2).sqrt()


def pair_loss(
    student: nn.Module,
    scheduler: Any,
    batch: InpaintingBatch,
    pair: NoisePair,
    generator: torch.Generator,
    *,
    last_timestep_share: float = LAST_TIMESTEP_SHARE,
    texture_weight: float = TEXTURE_WEIGHT,
) -> Tensor:
    """Compare the student's answer, from anywhere on its way, with the goal of its noise.

    Args:
        student: as in `inpainting_loss`.
        scheduler: tells `alphas_cumprod`, `prediction_type` and `num_train_timesteps`.
        batch: conditions, and the true latents whose texture is asked for.
        pair: a noise and its goal under these conditions.
        generator: timesteps, and how far each first answer is moved towards the goal, are drawn from it.
        last_timestep_share: see `draw_timesteps`.
        texture_weight: of the squared difference in `local_contrast`, beside the squared distance.

    Returns:
        a scalar, weighted as `inpainting_loss` weighs: mostly inside the latent mask, dilated by one.

    Raises:
        ValueError: as `predicted_latents`.
    """
    B, device = len(pair.noise), pair.noise.device
    train_timesteps = scheduler.config.num_train_timesteps
    timesteps = draw_timesteps(B, train_timesteps, last_timestep_share, generator=generator).to(device)
    progress = torch.rand(B, generator=generator, device=generator.device).to(device).view(-1, 1, 1, 1)
    last = torch.full_like(timesteps, train_timesteps - 1)
    with torch.no_grad():
        first = answer(student, scheduler, batch, pair.noise, last)
    between = torch.lerp(first, pair.goal, progress)
    signal, share = signal_and_noise(scheduler, timesteps)
    noisy = signal * between + share * pair.noise
    noisy = torch.where((timesteps == last).view(-1, 1, 1, 1), pair.noise, noisy)  # where sampling begins
    found = answer(student, scheduler, batch, noisy, timesteps)
    distance = (found - pair.goal).square()
    texture = (local_contrast(found) - local_contrast(batch.target_latents)).square()
    weight = KNOWN_WEIGHT + HOLE_WEIGHT * F.max_pool2d(batch.latent_mask, 3, stride=1, padding=1)  # [B,1,h,w]
    return (weight * (distance + texture_weight * texture)).mean()


def few_step_loss(
    student: nn.Module,
    teacher: nn.Module | None,
    scheduler: Any,
    batch: InpaintingBatch,
    generator: torch.Generator,
    *,
    teacher_steps: int = TEACHER_STEPS,
    last_timestep_share: float = LAST_TIMESTEP_SHARE,
    texture_weight: float = TEXTURE_WEIGHT,
) -> Tensor:
    """Draw a noise, and let the student learn to reach its goal in any number of steps.

    Args:
        student: learns; begins as a network that was trained by `inpainting_loss`.
        teacher: None: the goal is the truth. A network: the goal is what it makes of the noise in `teacher_steps`; it
            gets no gradient.
        scheduler: of both; not changed.
        batch: what `encode_pair` returned.
        generator: every draw comes from it.
        teacher_steps: denoising steps of the teacher. They are most of the cost then: where data are fixed, keep the
            `NoisePair` of each sample and call `pair_loss`.
        last_timestep_share: see `pair_loss`.
        texture_weight: see `pair_loss`.

    Returns:
        a scalar.

    Raises:
        ValueError: as `pair_loss` and `sample_from_noise`.
    """
    goal, device = batch.target_latents, batch.target_latents.device
    noise = torch.randn(goal.shape, generator=generator, device=generator.device).to(device)
    if teacher is not None:
        goal = sample_from_noise(teacher, scheduler, batch, noise, teacher_steps)
    return pair_loss(
        student,
        scheduler,
        batch,
        NoisePair(noise, goal),
        generator,
        last_timestep_share=last_timestep_share,
        texture_weight=texture_weight,
    )
