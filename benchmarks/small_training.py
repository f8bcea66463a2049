# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks that train share: a plain resumable loop, latents of procedural scenes kept on disk, crops.

Nothing here knows what is learned: the loss of a step is a function that is handed in. There is no accelerate and no
moving average; one process, one device, minutes. `training/run.py` is what real runs use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from tqdm.auto import tqdm

from training.inpainting_loss import InpaintingBatch, WarpedPair, encode_pair, warp_pair
from training.procedural_scenes import SceneBatch, render_scenes, scene_generator
from training.run import step_generator

Unet = TypeVar("Unet", bound=UNet2DConditionModel)

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
EMPTY_PROMPT = torch.zeros(1, 1, 32)  # [1,tokens,channels], the constant embedding of the embedded weights
TRAINING_SEED = 5001  # of the scenes that are learned from
HEIGHT, WIDTH = 96, 128  # px of a scene
FACTOR = 2  # px for each latent pixel
RENDER_BATCH = 32
WARMUP_SHARE = 0.05  # of the steps; the learning rate then falls linearly to zero, the shape of the paper's curve
MAX_GRADIENT_NORM = 1.0


def save_atomically(value: Any, path: Path) -> None:
    """Write with torch.save under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_or_make(path: Path, make: Callable[[], Any]) -> Any:
    """Read what an earlier run left at `path`, or make it and leave it there."""
    if not path.exists():
        save_atomically(make(), path)
    return torch.load(path, weights_only=True)


def prepare_for_training(unet: Unet) -> Unet:
    """Choose the attention and the memory layout that are faster at so few pixels."""
    unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def embedded_unet() -> UNet2DConditionModel:
    """Load the embedded UNet in float32 for training."""
    return prepare_for_training(
        UNet2DConditionModel.from_pretrained(DEFAULT_WEIGHTS / "unet", torch_dtype=torch.float32)
    )


def render_scene_batch(seed: int, first: int, count: int, height: int, width: int) -> SceneBatch:
    """Render scenes first ... first + count - 1 of a seed; each batch of `RENDER_BATCH` has a generator of its own."""
    parts = [
        render_scenes(min(RENDER_BATCH, first + count - start), height, width, generator=scene_generator(seed, start))
        for start in range(first, first + count, RENDER_BATCH)
    ]
    return SceneBatch(*(torch.cat(planes) for planes in zip(*parts, strict=True)))


@torch.no_grad()
def encode_in_parts(vae: Any, pair: WarpedPair, latent_mask_reduction: str) -> list[Tensor]:
    """Encode warped pairs, and keep latents in half precision: [N,c,h,w] twice, then the mask [N,1,h,w]."""
    parts = []
    for start in range(0, len(pair.right_image), RENDER_BATCH):
        part = WarpedPair(*(plane[start : start + RENDER_BATCH] for plane in pair))
        encoded = encode_pair(vae, part, latent_mask_reduction, EMPTY_PROMPT)
        parts.append((encoded.target_latents.half(), encoded.masked_image_latents.half(), encoded.latent_mask.half()))
    return [torch.cat(planes) for planes in zip(*parts, strict=True)]


def scene_latents(
    vae: Any, *, seed: int, scenes: int, height: int, width: int, masked_fill: str, latent_mask_reduction: str
) -> list[Tensor]:
    """Render, warp and encode the scenes of a seed, as `encode_in_parts` returns them."""
    parts = []
    for start in tqdm(range(0, scenes, RENDER_BATCH), desc="scenes", unit="batch"):
        batch = render_scene_batch(seed, start, min(RENDER_BATCH, scenes - start), height, width)
        pair = warp_pair(batch.left_image, batch.left_disparity, batch.right_image, masked_fill)
        parts.append(encode_in_parts(vae, pair, latent_mask_reduction))
    return [torch.cat(planes) for planes in zip(*parts, strict=True)]


def scene_pictures(*, seed: int, scenes: int, height: int, width: int) -> Tensor:
    """Render the right views of a seed, at latent size: [N,12,height/2,width/2] in [-1,1]; `unfold` undoes it."""
    parts = []
    for start in tqdm(range(0, scenes, RENDER_BATCH), desc="pictures", unit="batch"):
        batch = render_scene_batch(seed, start, min(RENDER_BATCH, scenes - start), height, width)
        parts.append(F.pixel_unshuffle(2 * batch.right_image - 1, FACTOR).half())
    return torch.cat(parts)


def unfold(pictures: Tensor) -> Tensor:
    """Put crops of `scene_pictures` back to pixels, [B,3,H,W]."""
    return F.pixel_shuffle(pictures, FACTOR)


def cut_squares(
    planes: list[Tensor], count: int, side: int, border_share: float, generator: torch.Generator
) -> list[Tensor]:
    """Cut the same squares from planes of random samples; a share of them ends at the right border of the view.

    Args:
        planes: each [N,*,h,w].
        count: squares.
        side: of each, in latent pixels.
        border_share: in [0,1].
        generator: every draw comes from it.

    Returns:
        for each plane [count,*,side,side] float32.
    """
    N, _, h, w = planes[0].shape
    chosen = torch.randint(N, (count,), generator=generator).tolist()
    draws = torch.rand((count, 3), generator=generator).tolist()
    squares = []
    for sample, (top_draw, left_draw, border_draw) in zip(chosen, draws, strict=True):
        top = int(top_draw * (h - side + 1))
        left = w - side if border_draw < border_share else int(left_draw * (w - side + 1))
        squares.append([plane[sample, :, top : top + side, left : left + side].float() for plane in planes])
    return [torch.stack(parts) for parts in zip(*squares, strict=True)]


def draw_crops(
    latents: list[Tensor], count: int, side: int, border_share: float, generator: torch.Generator
) -> InpaintingBatch:
    """Draw a batch by `cut_squares` from target latents, masked image latents and mask."""
    target, masked, mask = cut_squares(latents, count, side, border_share, generator)
    return InpaintingBatch(target, masked, mask, EMPTY_PROMPT.expand(count, -1, -1))


def linear_rate(step: int, steps: int, peak: float) -> float:
    """Give the learning rate of a step: a short linear rise, then a linear fall to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train_resumably(
    network: nn.Module,
    loss_of_step: Callable[[torch.Generator], Tensor],
    *,
    path: Path,
    steps: int,
    peak_learning_rate: float,
    seed: int,
    save_every_steps: int = 50,
) -> list[float]:
    """Train a network in place, or go on from the file that an interrupted call left, or only load what it finished.

    Args:
        network: learns; ends with the trained weights, in evaluation mode.
        loss_of_step: takes the generator of the step, which depends on (seed, step) only.
        path: of the state: step, weights, optimiser, losses so far.
        steps: of the whole training.
        peak_learning_rate: of `linear_rate`.
        seed: of every step's generator.
        save_every_steps: steps between two states on disk.

    Returns:
        the loss of every step.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak_learning_rate, betas=(0.9, 0.99))
    losses: list[float] = []
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        losses = state["losses"]
        if len(losses) < steps:
            optimizer.load_state_dict(state["optimizer"])
    network.train()
    bar = tqdm(range(len(losses), steps), initial=len(losses), total=steps, desc=path.stem, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = linear_rate(step, steps, peak_learning_rate)
        loss = loss_of_step(step_generator(seed, step, 0))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % save_every_steps == 0 or len(losses) == steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
            save_atomically(state, path)
            bar.set_postfix(loss=f"{sum(losses[-save_every_steps:]) / save_every_steps:.4f}", refresh=False)
    network.eval()
    return losses
