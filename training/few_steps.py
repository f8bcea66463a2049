# SPDX-License-Identifier: Apache-2.0
"""Sampling in few steps, learned end to end: the right picture at once, and the same one from every later step.

A network trained on noise alone (the paper's recipe) needs tens of steps: its first answer, from nothing but noise, is
an average over all possible fills, and where noise is predicted its error is divided by a signal of a fifteenth. So
the student is trained on its answer itself, the clean latents, and mostly where a sampling begins. Two things are
added because regression alone leaves blur, and would train one step only:

- Self-consistency. At inference the later steps see what the student's own first answer has become. So at every
  other timestep it is shown its first answer, noised by the same noise, and shall give the same answer again, in place
  and in texture: the picture does not depend on the number of steps.
- Texture. The local energy of steps between the pixels of the decoded picture, a figure without position or sign,
  shall be that of the truth, because distance alone prefers no texture to a texture at another place. It is the
  pixels' energy: latents can have all the energy of true ones and be decoded into blur. Energies are compared by a
  divergence whose optimum is the mean of what is possible; the optimum of squared roots lies far below it, as
  energies are spread over orders of magnitude.

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

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.inpainting_loss import HOLE_WEIGHT, KNOWN_WEIGHT, InpaintingBatch, draw_timesteps

TEACHER_STEPS = 50  # denoising steps of a sample that is learned from
LAST_TIMESTEP_SHARE = 0.7  # of the samples practise the first step of every sampling, which decides the picture
TEXTURE_WEIGHT = 0.8
TEXTURE_LAGS = (1, 2)  # px; a checkerboard has all its energy in steps of one, texture has not
TEXTURE_WINDOW = 5  # px; energy is compared over squares of this side
SMALLEST_ENERGY = 1e-4  # added to every energy, of pictures in [-1,1]: a difference below it cannot be seen


class NoisePair(NamedTuple):
    """A noise, and the clean latents that it shall lead to."""

    noise: Tensor  # [B,c,h,w]
    goal: Tensor  # [B,c,h,w]


class Pictures(NamedTuple):
    """The truth in pixels, and the way from latents to pixels."""

    truth: Tensor  # [B,3,H,W] in [-1,1]
    decode: Callable[[Tensor], Tensor]  # [B,c,h,w] -> [B,3,H,W] in [-1,1]; gradients pass through it


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


def local_energy(image: Tensor, lag: int) -> Tensor:
    """Give the mean squared step between pixels `lag` apart around each place, [B,C,H,W].

    Steps along both axes, added; within squares of `TEXTURE_WINDOW`. Steps beyond the borders count as none.

    Raises:
        ValueError: `lag` outside 1 ... the smaller side - 1.
    """
    smallest = min(image.shape[-2:])
    if not 1 <= lag < smallest:
        raise ValueError(f"`lag` must lie in 1 ... {smallest - 1}; got {lag}.")
    across = F.pad((image[..., lag:] - image[..., :-lag]).square(), (0, lag))
    down = F.pad((image[..., lag:, :] - image[..., :-lag, :]).square(), (0, 0, 0, lag))
    return F.avg_pool2d(across + down, TEXTURE_WINDOW, 1, TEXTURE_WINDOW // 2, count_include_pad=False)


def texture_divergence(found: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Compare the local energies of two pictures where a mask says so: >= 0, and 0 where they are equal.

    The generalised Kullback-Leibler divergence t log(t / f) - t + f, a mean over the mask, relative to the mean of t
    there. As for every Bregman divergence, the f that is best for many t is their mean.

    Args:
        found: [B,C,H,W] in [-1,1].
        truth: [B,C,H,W] in [-1,1].
        mask: [B,1,H,W] float, 1 where to compare.

    Returns:
        a scalar, summed over `TEXTURE_LAGS`; 0 where the mask is empty.

    Raises:
        ValueError: as `local_energy`.
    """
    total = torch.zeros((), device=found.device)
    for lag in TEXTURE_LAGS:
        ours, true = (local_energy(image.float(), lag) + SMALLEST_ENERGY for image in (found, truth))
        divergence = true * (true / ours).log() - true + ours
        total = total + (mask * divergence).sum() / (mask * true).sum().clamp_min(SMALLEST_ENERGY)
    return total


def _as_it_is(latents: Tensor) -> Tensor:
    return latents


def pair_loss(
    student: nn.Module,
    scheduler: Any,
    batch: InpaintingBatch,
    pair: NoisePair,
    generator: torch.Generator,
    *,
    pictures: Pictures | None = None,
    last_timestep_share: float = LAST_TIMESTEP_SHARE,
    texture_weight: float = TEXTURE_WEIGHT,
) -> Tensor:
    """Compare the student's first answer with the goal of its noise, and its later ones with the first.

    Args:
        student: as in `inpainting_loss`.
        scheduler: tells `alphas_cumprod`, `prediction_type` and `num_train_timesteps`.
        batch: the conditions; and without `pictures`, the target latents as the true picture.
        pair: a noise and its goal under these conditions.
        generator: timesteps are drawn from it.
        pictures: the true pictures, whose texture the first answer shall have in the holes, and how answers are
            decoded. None: texture is that of the latents; cheaper, and weaker, for pixels may still be blurred.
        last_timestep_share: see `draw_timesteps`.
        texture_weight: of `texture_divergence`, beside the squared distance of latents.

    Returns:
        a scalar. Distances are weighted as `inpainting_loss` weighs: mostly inside the latent mask, dilated by one.

    Raises:
        ValueError: as `predicted_latents` and `local_energy`.
    """
    B, device = len(pair.noise), pair.noise.device
    train_timesteps = scheduler.config.num_train_timesteps
    timesteps = draw_timesteps(B, train_timesteps, last_timestep_share, generator=generator).to(device)
    last = torch.full_like(timesteps, train_timesteps - 1)
    is_first = (timesteps == last).view(-1, 1, 1, 1)
    with torch.no_grad():
        first = answer(student, scheduler, batch, pair.noise, last)
    signal, share = signal_and_noise(scheduler, timesteps)
    noisy = torch.where(is_first, pair.noise, signal * first + share * pair.noise)
    found = answer(student, scheduler, batch, noisy, timesteps)
    distance = (found - torch.where(is_first, pair.goal, first)).square()
    weight = KNOWN_WEIGHT + HOLE_WEIGHT * F.max_pool2d(batch.latent_mask, 3, stride=1, padding=1)  # [B,1,h,w]
    truth, decode = pictures or Pictures(batch.target_latents, _as_it_is)
    mask = F.interpolate(batch.latent_mask, truth.shape[-2:])  # [B,1,H,W]
    with torch.no_grad():
        asked_for = torch.where(is_first, truth.float(), decode(first).float())
    texture = texture_divergence(decode(found), asked_for, mask)
    return (weight * distance).mean() + texture_weight * texture


def few_step_loss(
    student: nn.Module,
    teacher: nn.Module | None,
    scheduler: Any,
    batch: InpaintingBatch,
    generator: torch.Generator,
    *,
    pictures: Pictures | None = None,
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
        pictures: see `pair_loss`; `Pictures(pair.right_image, lambda latents: decode_latents(vae, latents))`.
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
        pictures=pictures,
        last_timestep_share=last_timestep_share,
        texture_weight=texture_weight,
    )
