# SPDX-License-Identifier: Apache-2.0
"""How fast the fine-tuning of the inpainting UNet is, and what it waits for.

    python -m benchmarks.training                                  # CPU, two minutes: a whole run on data on disk
    python -m benchmarks.training --steps 4 --size 64 --workers 0  # CPU smoke, half a minute
    python -m benchmarks.training --device cuda                    # and the full-size UNet; about 30 GB of GPU memory

The whole run: `training.train_inpainting` fine-tunes the embedded weights on pictures that are written for the purpose
in the layout and at the size of Virtual KITTI 2 (375x1242, JPEG and 16-bit PNG). Samples a second and the share of the
time that the loop waited for data are the means of the run's own log, without its first line (start of the loaders).

The full-size UNet (--device cuda): Stable Diffusion 2's inpainting UNet and autoencoder from their configurations,
random weights, 512x512, bfloat16 autocast, AdamW fused. Shares are of the rate that a large matrix product reaches on
the same device in the same minute, at 2.4 TFLOP a sample for forward and backward of the UNet, and 2.2 more for
encoding two pictures. Peak memory is of the whole step, full at the batch size asked for and with a LoRA of rank 16 at
batch 1 with gradient checkpointing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from training.fine_tuning import FineTuningConfig
from training.inpainting_loss import InpaintingBatch, WarpedPair, encode_pair, inpainting_loss
from training.lora import ATTENTION_TARGETS, add_lora
from training.procedural_scenes import render_scenes, scene_generator
from training.run import learning_parameters, step_generator, write_text_atomically
from training.train_inpainting import train

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
VKITTI_SIZE = (375, 1242)  # px
VKITTI_FOCAL_TIMES_BASELINE = 725.0087 * 0.532725  # px m
UNET_TFLOP, ENCODING_TFLOP = 2.4, 2.2  # a sample of 512x512: forward and backward; two pictures
LORA_RANK = 16
MATMUL_SIDE = 8192
TARGETS = "targets: waiting under 5 %, UNet step at least 30 % of the matrix rate, LoRA under 8 GB"
UNET_CONFIG = {
    "sample_size": 64,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE_CONFIG = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


def write_data_set(root: Path, count: int, size: tuple[int, int]) -> None:
    """Write rendered scenes as a data set in the layout of Virtual KITTI 2."""
    scenes = render_scenes(count, *size, generator=scene_generator(0, 0))
    frames = root / "Scene01" / "clone" / "frames"
    for camera in (0, 1):
        (frames / "rgb" / f"Camera_{camera}").mkdir(parents=True)
    (frames / "depth" / "Camera_0").mkdir(parents=True)
    for i in range(count):
        for camera, image in enumerate((scenes.left_image[i], scenes.right_image[i])):
            picture = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy())
            picture.save(frames / "rgb" / f"Camera_{camera}" / f"rgb_{i:05d}.jpg", quality=95)
        depth_cm = 100 * VKITTI_FOCAL_TIMES_BASELINE / scenes.left_disparity[i, 0].clamp_min(0.6)
        depth = Image.fromarray(depth_cm.numpy().round().clip(1, 65535).astype(np.uint16))
        depth.save(frames / "depth" / "Camera_0" / f"depth_{i:05d}.png")


def measure_run(steps: int, size: int, batch_size: int, workers: int) -> dict[str, float]:
    """Fine-tune the embedded weights for some steps and read the run's log.

    Returns:
        samples_per_s and data_wait_share, means over the lines of the log but the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data_set(root / "data", 4, VKITTI_SIZE)
        train(
            FineTuningConfig(
                base=str(WEIGHTS),
                data=(f"vkitti2:{root / 'data'}:1",),
                output=root / "run",
                crop_size=size,
                batch_size=batch_size,
                workers=workers,
                max_steps=steps,
                log_every_steps=max(1, steps // 4),
                tracker="none",
            )
        )
        lines = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line][1:]
    return {name: statistics.fmean(line[name] for line in lines) for name in ("samples_per_s", "data_wait_share")}


def seconds_of(work: Callable[[], Any], device: str, repeats: int = 5) -> float:
    """Return the median wall time of some work, after running it twice without the clock."""
    times = []
    for i in range(2 + repeats):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def matmul_rate(device: str, side: int = MATMUL_SIDE) -> float:
    """Return the TFLOP/s of a bfloat16 product of two square matrices."""
    a, b = torch.randn((2, side, side), device=device, dtype=torch.bfloat16)
    return 2 * side**3 / seconds_of(lambda: a @ b, device) / 1e12


def make_pair(batch_size: int, size: int, device: str) -> WarpedPair:
    """Random pictures [-1,1] with a hole of a tenth of the width at the right."""
    right, masked = 2 * torch.rand((2, batch_size, 3, size, size), device=device) - 1
    hole = torch.zeros((batch_size, 1, size, size), dtype=torch.bool, device=device)
    hole[..., -size // 10 :] = True
    return WarpedPair(right, masked.masked_fill(hole, 0.0), hole)


class Step:
    """One optimiser step of a UNet as the training takes it, without data loading.

    Args:
        unet: parameters that do not learn are frozen already.
        vae: encodes.
        batch_size: samples.
        size: height and width of a picture, px.
        device: "cuda" or "cpu".
    """

    def __init__(self, unet: Any, vae: Any, batch_size: int, size: int, device: str):
        self.unet, self.vae, self.device = unet.to(device).train(), vae.to(device).requires_grad_(False), device
        self.pair = make_pair(batch_size, size, device)
        self.optimizer = torch.optim.AdamW(learning_parameters(unet), lr=1e-5, fused=True)
        self.scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        self.prompt = torch.zeros(1, 2, unet.config.cross_attention_dim, device=device)
        self.kept = self.encode()

    def encode(self) -> InpaintingBatch:
        """Encode the pair."""
        with torch.autocast(self.device, torch.bfloat16):
            return encode_pair(self.vae, self.pair, "nearest", self.prompt)

    def learn(self, batch: InpaintingBatch) -> Tensor:
        """Forward, backward, optimiser."""
        generator = step_generator(0, 0, 0)
        with torch.autocast(self.device, torch.bfloat16):
            loss = inpainting_loss(self.unet, self.scheduler, batch, generator, known_weight=1.0, hole_weight=0.0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def unet_seconds(self) -> float:
        """Time the step on latents that are there already."""
        return seconds_of(lambda: self.learn(self.kept), self.device)

    def whole_seconds(self) -> float:
        """Time the step with encoding."""
        return seconds_of(lambda: self.learn(self.encode()), self.device)


def measure_full_size(batch_size: int, device: str) -> dict[str, float]:
    """Measure Stable Diffusion 2's inpainting UNet on a GPU: rates, shares of the matrix rate, peak memory in GB."""
    rate = matmul_rate(device)
    vae = AutoencoderKL(**VAE_CONFIG)
    torch.cuda.reset_peak_memory_stats()
    full = Step(UNet2DConditionModel(**UNET_CONFIG), vae, batch_size, 512, device)
    unet_s, whole_s = full.unet_seconds(), full.whole_seconds()
    figures = {
        "matmul_tflops": rate,
        "unet_samples_per_s": batch_size / unet_s,
        "unet_share": batch_size * UNET_TFLOP / unet_s / rate,
        "whole_samples_per_s": batch_size / whole_s,
        "whole_share": batch_size * (UNET_TFLOP + ENCODING_TFLOP) / whole_s / rate,
        "full_peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    del full
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    unet = UNet2DConditionModel(**UNET_CONFIG)
    add_lora(unet, LORA_RANK, LORA_RANK, ATTENTION_TARGETS)
    unet.enable_gradient_checkpointing()
    figures["lora_samples_per_s"] = 1 / Step(unet, vae, 1, 512, device).whole_seconds()
    return {**figures, "lora_peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def main(arguments: list[str] | None = None) -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="of the whole run (default: %(default)s)")
    parser.add_argument("--size", type=int, default=192, help="of its crops, px (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of the run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda adds the full-size UNet")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures = {"run": measure_run(options.steps, options.size, options.batch_size, options.workers)}
    if options.device == "cuda":
        figures["full_size"] = measure_full_size(options.batch_size, options.device)
    for part, values in figures.items():
        print(f"{part:10}", ", ".join(f"{name} {value:.3g}" for name, value in values.items()))
    print(TARGETS)
    if options.json:
        write_text_atomically(options.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
