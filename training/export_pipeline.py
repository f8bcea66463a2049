# SPDX-License-Identifier: Apache-2.0
"""Assemble a publishable pipeline folder from trained components.

    python -m training.export_pipeline --unet runs/inpainting/unet --scheduler runs/inpainting/scheduler \
        --vae runs/autoencoder/vae --depth-estimator runs/depth/depth_estimator --output weights/my-pipeline

The same command assembled weights/zerostereo-tiny, with the flags in that folder's README. CPU, seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import AutoModelForDepthEstimation

from pipeline_zerostereo import DEPTH_PREDICTIONS
from training.pipeline_folder import PIPELINE_SETTINGS, render_card, write_pipeline_folder

SETTINGS = ("latent_mask_reduction", "masked_fill", "empty_prompt_embeds")
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", required=True, type=Path, help="folder of the UNet")
    parser.add_argument("--scheduler", required=True, type=Path, help="folder of the scheduler's configuration")
    parser.add_argument("--vae", required=True, type=Path, help="folder of the autoencoder")
    parser.add_argument("--depth-estimator", required=True, type=Path, help="folder of the depth model")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="JSON",
        help=f"{', '.join(SETTINGS)} that the UNet was trained with; default: {PIPELINE_SETTINGS} beside --unet",
    )
    parser.add_argument("--depth-prediction", choices=DEPTH_PREDICTIONS, default="inverse_depth")
    parser.add_argument("--steps", type=int, default=4, help="default denoising steps (%(default)s)")
    parser.add_argument(
        "--depth-resolution", type=int, default=0, help="short side in px the depth model likes; 0 = any"
    )
    parser.add_argument("--depth-size-multiple", type=int, default=14, help="of the depth model (%(default)s)")
    parser.add_argument(
        "--card", type=Path, metavar="JSON", help="values of model_card.md: writes the folder's README.md"
    )
    parser.add_argument("--full-precision", action="store_true", help="store float32 instead of float16")
    parser.add_argument("--link", action="store_true", help="link the pipeline file of this checkout, do not copy it")
    return parser.parse_args(arguments)


def load_vae(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    """Load an autoencoder of either class.

    Raises:
        ValueError: another class.
    """
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    if name not in VAE_CLASSES:
        raise ValueError(f"`--vae` must be of class {' or '.join(VAE_CLASSES)}; got {name}.")
    return VAE_CLASSES[name].from_pretrained(folder)


def read_settings(file: Path) -> dict[str, Any]:
    """Read what training decided; nothing is guessed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other names in it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"`--settings` must be a file with {list(SETTINGS)}; got {file}.")
    settings = json.loads(file.read_text(encoding="utf-8"))
    if set(settings) != set(SETTINGS):
        raise ValueError(f"`--settings` must hold {list(SETTINGS)}; got {sorted(settings)} in {file}.")
    return settings


def main(arguments: list[str] | None = None) -> None:
    """Load the components and write the folder."""
    options = parse_arguments(arguments)
    unet: Any = UNet2DConditionModel.from_pretrained(options.unet)
    scheduler: Any = DDIMScheduler.from_pretrained(options.scheduler)
    folder = write_pipeline_folder(
        options.output,
        unet=unet,
        vae=load_vae(options.vae),
        scheduler=scheduler,
        depth_estimator=AutoModelForDepthEstimation.from_pretrained(options.depth_estimator),
        dtype=torch.float32 if options.full_precision else torch.float16,
        link_pipeline_file=options.link,
        default_num_inference_steps=options.steps,
        default_depth_resolution=options.depth_resolution,
        depth_prediction=options.depth_prediction,
        depth_size_multiple=options.depth_size_multiple,
        **read_settings(options.settings or options.unet.resolve().parent / PIPELINE_SETTINGS),
    )
    if options.card is not None:
        values = json.loads(options.card.read_text(encoding="utf-8"))
        (folder / "README.md").write_text(render_card(values), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"{folder}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
