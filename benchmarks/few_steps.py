# SPDX-License-Identifier: Apache-2.0
"""Fills in few steps, before and after few-step training: quality over the number of denoising steps.

    python -m benchmarks.few_steps --work out/few_steps --json out/few_steps/curves.json     # about 40 CPU minutes
    python -m benchmarks.few_steps --work out/smoke --smoke      # CPU smoke, a minute: does it run?

1. Before: a UNet that predicts noise learns by the paper's recipe at tiny size: mean squared error of the noise over
   the whole latent, uniform timesteps, the noise schedule of Stable Diffusion 2, no averaging, a learning rate that
   falls linearly. Procedural scenes, the embedded autoencoder, and the embedded UNet as the network to fine-tune. What
   differs from the paper: holes are covered and the mask is reduced as that network knows them, and the network adds
   its noisy input to its prediction, because 32 channels cannot carry noise of 8 channels past the normalisations.
2. After: a copy of it learns to answer at once (training/few_steps.py), with the truth as its goal.
3. Curves: held-out scenes, filled by the pipeline in 1 to 50 steps: PSNR, texture and SSIM of the holes as
   embedded_quality.py defines them. Before is shown with the published sampler (DDIM, spacing "leading") and with
   spacing "trailing", which alone helps where steps are few; after uses "trailing".

Everything finished is a file in --work; an interrupted benchmark goes on where it stopped. --work also gets
curves.png (the plot) and fills.png (warped | before, 4 and 50 steps | after, 1, 4 and 50 steps | true).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from benchmarks.embedded_quality import FillScore, finite_or_none, versions
from benchmarks.small_training import (
    DEFAULT_WEIGHTS,
    EMPTY_PROMPT,
    HEIGHT,
    TRAINING_SEED,
    WIDTH,
    cut_squares,
    draw_crops,
    load_or_make,
    prepare_for_training,
    render_scene_batch,
    scene_latents,
    scene_pictures,
    train_resumably,
    unfold,
)
from pipeline_zerostereo import WarpResult, ZeroStereoPipeline, decode_latents, forward_warp
from training.few_steps import Pictures, few_step_loss
from training.inpainting_loss import InpaintingBatch, inpainting_loss
from training.run import picture_grid, write_text_atomically

MASKED_FILL, LATENT_MASK = "background", "max"  # as the embedded UNet knows them
CROP = 32  # latent pixels, 64 px
BORDER_SHARE = 0.5
BATCH_SIZE = 16
HELD_OUT_SEED = 77
LEARNING_RATE = 1e-3  # peak
STEP_COUNTS = (1, 2, 4, 8, 20, 50)
SHOWN = (("before", 4), ("before", 50), ("after", 1), ("after", 4), ("after", 50))  # columns of fills.png
FEW = 4  # steps, of the targets
MAX_LOSS_DB = 0.2  # of FEW steps, behind the best of any number
MAX_TEXTURE_CHANGE = 0.1  # of FEW steps, relative to the most steps
MIN_TEXTURE = 0.6  # of the most steps
METRICS = {
    "psnr_db": "hole PSNR, dB",
    "gradient_energy_ratio": "hole gradient energy / truth's",
    "ssim": "SSIM around holes",
}
Spacing = Literal["leading", "trailing"]
COLORS = {"before, leading": (150, 150, 150), "before": (200, 70, 40), "after": (20, 110, 190)}


@dataclass(frozen=True)
class Size:
    """How much is rendered and trained."""

    scenes: int = 2048
    teacher_training_steps: int = 2000
    student_scenes: int = 512  # of the same scenes; also their pictures are kept for these
    student_training_steps: int = 800
    held_out_scenes: int = 32


SMOKE = Size(scenes=4, teacher_training_steps=2, student_scenes=4, student_training_steps=2, held_out_scenes=2)


class NoiseUNet(UNet2DConditionModel):
    """The embedded architecture, with its noisy input added to what it predicts; so it begins as "all is noise"."""

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        """Return the predicted noise [B,c,h,w] in a tuple, whatever `return_dict` says."""
        prediction = super().forward(sample, *args, **{**kwargs, "return_dict": False})[0]
        return (sample[:, : self.config.out_channels] + prediction,)


def make_noise_unet() -> NoiseUNet:
    """Load the embedded weights, with a last layer of zeros, which will predict something else now."""
    unet = prepare_for_training(NoiseUNet.from_pretrained(DEFAULT_WEIGHTS / "unet", torch_dtype=torch.float32))
    for parameter in unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return unet


def make_scheduler(spacing: Spacing) -> DDIMScheduler:
    """Give the noise schedule of Stable Diffusion 2; "leading" is how its repositories configure DDIM."""
    published = {"steps_offset": 1, "set_alpha_to_one": False} if spacing == "leading" else {}
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing=spacing,
        **published,
    )


# --- training ---


def train_before(latents: list[Tensor], steps: int, path: Path) -> NoiseUNet:
    """Train by the paper's loss."""
    unet, scheduler = make_noise_unet(), make_scheduler("trailing")

    def loss_of_step(generator: torch.Generator) -> Tensor:
        batch = draw_crops(latents, BATCH_SIZE, CROP, BORDER_SHARE, generator)
        with torch.autocast("cpu", torch.bfloat16):
            return inpainting_loss(unet, scheduler, batch, generator, known_weight=1.0, hole_weight=0.0)

    train_resumably(unet, loss_of_step, path=path, steps=steps, peak_learning_rate=LEARNING_RATE, seed=1)
    return unet


def train_after(before: NoiseUNet, vae: AutoencoderTiny, planes: list[Tensor], steps: int, path: Path) -> NoiseUNet:
    """Train a copy by the few-step loss; planes: latents as before, and the pictures."""
    unet, scheduler = make_noise_unet(), make_scheduler("trailing")
    unet.load_state_dict(before.state_dict())
    vae.requires_grad_(False)

    def loss_of_step(generator: torch.Generator) -> Tensor:
        target, masked, mask, pictures = cut_squares(planes, BATCH_SIZE, CROP, BORDER_SHARE, generator)
        batch = InpaintingBatch(target, masked, mask, EMPTY_PROMPT.expand(BATCH_SIZE, -1, -1))
        truth = Pictures(unfold(pictures), lambda latents: decode_latents(vae, latents))
        with torch.autocast("cpu", torch.bfloat16):
            return few_step_loss(unet, None, scheduler, batch, generator, pictures=truth)

    train_resumably(unet, loss_of_step, path=path, steps=steps, peak_learning_rate=LEARNING_RATE, seed=3)
    return unet


# --- curves ---


def fill(unet: NoiseUNet, vae: AutoencoderTiny, spacing: Spacing, warp: WarpResult, steps: int) -> Tensor:
    """Fill warped views [N,3,H,W] by the pipeline; the noise of view i depends on i alone."""
    pipe = ZeroStereoPipeline(
        unet,
        vae,
        make_scheduler(spacing),
        masked_fill=MASKED_FILL,
        latent_mask_reduction=LATENT_MASK,
        empty_prompt_embeds=EMPTY_PROMPT[0].tolist(),
    )
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(warp.right_image), 8):
        some = WarpResult(*(plane[start : start + 8] for plane in warp))
        noise = [torch.Generator().manual_seed(start + i) for i in range(len(some.right_image))]
        parts.append(
            pipe.inpaint(
                some.right_image,
                some.right_hole_mask,
                some.right_disparity,
                num_inference_steps=steps,
                generator=noise,
            )
        )
    return torch.cat(parts)


def measure(filled: Tensor, truth: Tensor, holes: Tensor) -> dict[str, float]:
    """Return the figures of fills [N,3,H,W] over all holes."""
    score = FillScore("", classical=False)
    score.add(filled, truth, holes)
    return {metric: score.figures()[metric] for metric in METRICS}


def judge(curves: dict[str, dict[int, dict[str, float]]]) -> list[tuple[str, bool]]:
    """Return each target in words, and whether it is met."""
    after, most = curves["after"], max(STEP_COUNTS)
    best = max(one["psnr_db"] for one in after.values())
    best_before = max(one["psnr_db"] for name, curve in curves.items() if name != "after" for one in curve.values())
    loss = max(best, best_before) - after[FEW]["psnr_db"]
    texture, texture_of_most = (after[steps]["gradient_energy_ratio"] for steps in (FEW, most))
    change = texture / texture_of_most - 1
    return [
        (
            f"{FEW} steps after: {loss:.2f} dB behind the best of any steps, after {best:.2f} dB, before "
            f"{best_before:.2f} dB; target at most {MAX_LOSS_DB}",
            loss <= MAX_LOSS_DB,
        ),
        (
            f"{FEW} steps after: texture {texture:.2f}, {change:+.1%} beside {most} steps; target within "
            f"{MAX_TEXTURE_CHANGE:.0%}",
            abs(change) <= MAX_TEXTURE_CHANGE,
        ),
        (f"{most} steps after: texture {texture_of_most:.2f}; target {MIN_TEXTURE}", texture_of_most >= MIN_TEXTURE),
    ]


def table(curves: dict[str, dict[int, dict[str, float]]]) -> str:
    """Return the Markdown table: PSNR / texture / SSIM for each curve and number of steps."""
    lines = [
        f"| PSNR, dB / texture / SSIM | {' | '.join(f'{steps} steps' for steps in STEP_COUNTS)} |",
        "| --- |" + " ---: |" * len(STEP_COUNTS),
    ]
    for name, curve in curves.items():
        cells = [
            f"{curve[n]['psnr_db']:.2f} / {curve[n]['gradient_energy_ratio']:.2f} / {curve[n]['ssim']:.3f}"
            for n in STEP_COUNTS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(curves: dict[str, dict[int, dict[str, float]]], width: int = 330, height: int = 260) -> PIL.Image.Image:
    """Draw a panel for each metric: value over the number of steps, equally spaced."""
    margin, below, top = 46, 40, 28
    sheet = PIL.Image.new("RGB", (width * len(METRICS), height + 24), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(12)
    for panel, (metric, title) in enumerate(METRICS.items()):
        values = [curve[steps][metric] for curve in curves.values() for steps in STEP_COUNTS]
        if metric == "gradient_energy_ratio":
            values = [min(value, 2.0) for value in values]  # noise may have any energy; what matters is near 1
        low, high = min(values), max(values)
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9
        left, right = panel * width + margin, (panel + 1) * width - 12

        def place(number: int, value: float, left=left, right=right, low=low, high=high) -> tuple[float, float]:
            share = (min(max(value, low), high) - low) / (high - low)
            return left + number * (right - left) / (len(STEP_COUNTS) - 1), height - below - share * (
                height - below - top
            )

        draw.text((left, 4), title, fill="black", font=font)
        for i in range(5):
            value = low + i * (high - low) / 4
            y = place(0, value)[1]
            draw.line((left, y, right, y), fill=(225, 225, 225))
            draw.text((left - 4, y), f"{value:.2f}", fill="black", font=font, anchor="rm")
        for number, steps in enumerate(STEP_COUNTS):
            draw.text((place(number, low)[0], height - below + 5), str(steps), fill="black", font=font, anchor="mt")
        for name, curve in curves.items():
            points = [place(number, curve[steps][metric]) for number, steps in enumerate(STEP_COUNTS)]
            draw.line(points, fill=COLORS[name], width=2)
            for x, y in points:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLORS[name])
    x = margin
    for name in curves:
        draw.line((x, height + 6, x + 22, height + 6), fill=COLORS[name], width=3)
        draw.text((x + 28, height + 6), name, fill="black", font=font, anchor="lm")
        x += 60 + int(draw.textlength(name, font=font))
    draw.text((x, height + 6), "over denoising steps", fill=(90, 90, 90), font=font, anchor="lm")
    return sheet


def save_picture(picture: PIL.Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name, then rename."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    picture.save(partial, optimize=True)
    partial.replace(path)


# --- the whole ---


def train_both(work: Path, size: Size, vae: AutoencoderTiny) -> dict[str, NoiseUNet]:
    """Train before and after, or load what is finished."""
    latents = load_or_make(
        work / f"scenes-{size.scenes}.pt",
        lambda: scene_latents(
            vae,
            seed=TRAINING_SEED,
            scenes=size.scenes,
            height=HEIGHT,
            width=WIDTH,
            masked_fill=MASKED_FILL,
            latent_mask_reduction=LATENT_MASK,
        ),
    )
    before = train_before(latents, size.teacher_training_steps, work / "before.pt")
    pictures = load_or_make(
        work / f"pictures-{size.student_scenes}.pt",
        lambda: scene_pictures(seed=TRAINING_SEED, scenes=size.student_scenes, height=HEIGHT, width=WIDTH),
    )
    planes = [*(plane[: size.student_scenes] for plane in latents), pictures]
    after = train_after(before, vae, planes, size.student_training_steps, work / "after.pt")
    return {"before": before, "after": after}


def measure_curves(
    work: Path, size: Size, vae: AutoencoderTiny, networks: dict[str, NoiseUNet]
) -> dict[str, dict[int, dict[str, float]]]:
    """Fill the held-out scenes with every number of steps, and keep each result."""
    scenes = render_scene_batch(HELD_OUT_SEED, 0, size.held_out_scenes, HEIGHT, WIDTH)
    warp = forward_warp(scenes.left_image, scenes.left_disparity)
    rows: dict[tuple[str, int], Tensor] = {}
    curves: dict[str, dict[int, dict[str, float]]] = {}
    for name in COLORS:
        network = networks[name.split(",")[0]]
        spacing: Spacing = "leading" if "leading" in name else "trailing"
        for steps in STEP_COUNTS:
            filled = load_or_make(
                work / "fills" / f"{name.replace(', ', '-')}-{steps}.pt",
                lambda network=network, spacing=spacing, steps=steps: fill(network, vae, spacing, warp, steps),
            )
            rows[name, steps] = filled
            curves.setdefault(name, {})[steps] = measure(filled, scenes.right_image, warp.right_hole_mask)
    chosen = range(min(6, size.held_out_scenes))
    columns = [warp.right_image, *(rows[one] for one in SHOWN), scenes.right_image]
    save_picture(picture_grid([[column[i] for column in columns] for i in chosen]), work / "fills.png")
    save_picture(plot(curves), work / "curves.png")
    return curves


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="what is finished is kept here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--smoke", action="store_true", help="two steps of training: figures mean nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, print; the exit code is 1 if a target is missed."""
    options = parse_arguments(arguments)
    size = SMOKE if options.smoke else Size()
    vae = AutoencoderTiny.from_pretrained(DEFAULT_WEIGHTS / "vae", torch_dtype=torch.float32)
    curves = measure_curves(options.work, size, vae, train_both(options.work, size, vae))
    print(f"\n{size.held_out_scenes} held-out scenes of {WIDTH}x{HEIGHT}, seed {HELD_OUT_SEED}\n\n{table(curves)}\n")
    targets = [] if options.smoke else judge(curves)
    for words, met in targets:
        print(f"- {words}: {'met' if met else 'MISSED'}")
    if options.json:
        record = {"size": asdict(size), "versions": versions(), "curves": curves, "targets": dict(targets)}
        write_text_atomically(options.json, json.dumps(finite_or_none(record), indent=1, allow_nan=False) + "\n")
    return 0 if all(met for _, met in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
