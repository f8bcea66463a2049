# SPDX-License-Identifier: Apache-2.0
"""Assemble a publishable pipeline folder, from published weights or from parts that you trained.

Published weights, pinned to a commit each (needs the Hugging Face Hub, or local folders of the same layout):

    python -m training.export_pipeline --base Windsrain/ZeroStereo --output runs/zerostereo
    python -m training.export_pipeline --base Windsrain/ZeroStereo --output runs/zerostereo-large \
        --depth-model depth-anything/Depth-Anything-V2-Large-hf            # the paper's; not for commercial use
    python -m training.export_pipeline --base sd2-community/stable-diffusion-2-inpainting --output runs/untuned

What the depth model wants is read from its files; a kind of model that is not known is refused. The folder carries the
embedding of the empty prompt in place of the text encoder (--with-text-encoder keeps it), and a card.

Parts that you trained (as weights/zerostereo-tiny was assembled, with the flags on its card):

    python -m training.export_pipeline --unet runs/inpainting/unet --scheduler runs/inpainting/scheduler \
        --vae runs/autoencoder/vae --depth-estimator runs/depth/depth_estimator --output weights/my-pipeline

--push-to-hub uploads the folder. Other people's weights whose licence is not stated are not uploaded unless you have
their permission; --card-only makes (and may upload) a folder without weights whose card tells the command above.
CPU, seconds, beside the download.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from huggingface_hub.utils import httpx
from transformers import AutoModelForDepthEstimation, CLIPTextModel, CLIPTokenizer

from pipeline_zerostereo import DEPTH_PREDICTIONS
from training.base_model import load_as_ddim, load_vae
from training.export_card import export_card, parts_that_forbid_pushing, plain_card
from training.pipeline_folder import (
    PIPELINE_SETTINGS,
    embed_empty_prompt,
    render_card,
    write_card_folder,
    write_pipeline_folder,
)
from training.public_parts import (
    DEFAULT_DEPTH_MODEL,
    INPAINTING_BASE,
    STEREOGEN,
    DepthSettings,
    Part,
    fetch_base,
    fetch_depth_model,
    push_folder,
    read_depth_settings,
    resolve_part,
)

SETTINGS = ("latent_mask_reduction", "masked_fill", "empty_prompt_embeds")
TRAINED_PARTS = ("unet", "scheduler", "vae", "depth_estimator")
TRAINED_ONLY = (*TRAINED_PARTS, "settings", "card", "link")
PUBLISHED_ONLY = ("base_revision", "depth_model", "depth_revision", "with_text_encoder", "card_only")
OFFICIAL_STEPS = 50  # of the paper and of the official code
OFFICIAL_INPAINT_RESOLUTION = 1024  # the official code fills at a short side of 1000 to 1999 px: here its lower end
TILE_SIZE = 512  # px, what Stable Diffusion 2 inpainting was tuned on
TRAINED_STEPS, TRAINED_SIZE_MULTIPLE = 4, 14  # of the networks that this repository trains


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; flags of one way of working are refused in the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    published = parser.add_argument_group("published weights")
    published.add_argument("--base", metavar="ID_OR_FOLDER", help=f"{STEREOGEN}, {INPAINTING_BASE} or of their layout")
    published.add_argument("--base-revision", metavar="REVISION", help="default: the pinned one, else main of today")
    published.add_argument("--depth-model", metavar="ID_OR_FOLDER", help=f"default: {DEFAULT_DEPTH_MODEL}")
    published.add_argument("--depth-revision", metavar="REVISION", help="default: main of today")
    published.add_argument(
        "--with-text-encoder", action="store_true", help="keep text encoder and tokenizer, store no embedding"
    )
    published.add_argument("--card-only", action="store_true", help="no weights, but code and a card with the command")
    trained = parser.add_argument_group("parts that you trained")
    trained.add_argument("--unet", type=Path, help="folder of the UNet")
    trained.add_argument("--scheduler", type=Path, help="folder of the scheduler's configuration")
    trained.add_argument("--vae", type=Path, help="folder of the autoencoder")
    trained.add_argument("--depth-estimator", type=Path, help="folder of the depth model")
    trained.add_argument(
        "--settings",
        type=Path,
        metavar="JSON",
        help=f"{', '.join(SETTINGS)} that the UNet was trained with; default: {PIPELINE_SETTINGS} beside --unet",
    )
    trained.add_argument("--card", type=Path, metavar="JSON", help="values of model_card.md: the folder's README.md")
    trained.add_argument("--link", action="store_true", help="link the pipeline file of this checkout, do not copy it")
    common = parser.add_argument_group("both")
    common.add_argument(
        "--depth-prediction", choices=DEPTH_PREDICTIONS, help="default: read from --depth-model; else inverse_depth"
    )
    common.add_argument(
        "--steps", type=int, help=f"of a call; default: {OFFICIAL_STEPS} published, {TRAINED_STEPS} trained"
    )
    common.add_argument(
        "--depth-resolution",
        type=int,
        help="short side in px the depth model likes, 0 = any; default: read from --depth-model, else 0",
    )
    common.add_argument(
        "--depth-size-multiple", type=int, help=f"default: read from --depth-model, else {TRAINED_SIZE_MULTIPLE}"
    )
    common.add_argument(
        "--inpaint-resolution",
        type=int,
        help="upper bound of the short side in px that the UNet works at, 0 = none; "
        f"default: {OFFICIAL_INPAINT_RESOLUTION} published, 0 trained",
    )
    common.add_argument("--tile-size", type=int, help=f'side of the tiles of fill="tiled" in px; default: {TILE_SIZE}')
    common.add_argument("--full-precision", action="store_true", help="store float32 instead of float16")
    common.add_argument("--push-to-hub", metavar="REPO", help="upload the folder to this repository of the Hub")
    common.add_argument("--private", action="store_true", help="make that repository private")
    common.add_argument(
        "--i-have-permission", action="store_true", help="upload weights whose licence their authors do not state"
    )
    options = parser.parse_args(arguments)
    _check_ways(parser, options)
    return options


def _check_ways(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message where the flags belong to two ways of working, or to none."""
    given = {name: getattr(options, name) for name in (*TRAINED_ONLY, *PUBLISHED_ONLY)}
    wrong = TRAINED_ONLY if options.base else PUBLISHED_ONLY
    mixed = [_flag(name) for name in wrong if given[name]]
    missing = [] if options.base else [_flag(name) for name in TRAINED_PARTS if not given[name]]
    if mixed:
        parser.error(f"{', '.join(mixed)} {'does' if len(mixed) == 1 else 'do'} not go with {_way(options)}")
    if missing:
        parser.error(f"give --base for published weights, or your parts; missing: {', '.join(missing)}")
    if (options.private or options.i_have_permission) and not options.push_to_hub:
        parser.error("--private and --i-have-permission say how to --push-to-hub; that is missing")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _way(options: argparse.Namespace) -> str:
    return "--base" if options.base else "parts that you trained"


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


def check_permission(parts: list[Part], options: argparse.Namespace) -> None:
    """Refuse to upload other people's weights whose licence is not stated.

    Raises:
        ValueError: so it is, and nobody said that there is permission.
    """
    blocked = parts_that_forbid_pushing(parts)
    if options.push_to_hub and blocked and not options.card_only and not options.i_have_permission:
        reasons = "; ".join(f"{part.name} ({part.note})" for part in blocked)
        raise ValueError(
            f"`--push-to-hub` needs weights whose authors state a licence; got {reasons}. Pass --i-have-permission if "
            "they allowed you to publish them, or --card-only to publish a card that tells how to make the folder."
        )


def export_published(options: argparse.Namespace) -> Path:
    """Assemble a folder from published weights, or the card that tells how to."""
    base = resolve_part("--base", options.base, options.base_revision)
    depth_part = resolve_part("--depth-model", options.depth_model or DEFAULT_DEPTH_MODEL, options.depth_revision)
    parts = {"base": base, "depth model": depth_part}
    check_permission(list(parts.values()), options)
    depth_folder = fetch_depth_model("--depth-model", depth_part, weights=not options.card_only)
    depth = read_depth_settings(
        depth_folder, options.depth_prediction, options.depth_resolution, options.depth_size_multiple
    )
    settings: dict[str, Any] = {
        "latent_mask_reduction": "nearest",
        "masked_fill": "zero",
        "default_num_inference_steps": OFFICIAL_STEPS if options.steps is None else options.steps,
        **working_sizes(options, OFFICIAL_INPAINT_RESOLUTION),
        **{name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(depth).items()},
    }
    card = {
        "title": options.push_to_hub or options.output.name,
        "repo_id": options.push_to_hub if options.push_to_hub and not options.card_only else str(options.output),
        "parts": parts,
        "command": export_command(options, base, depth_part, depth),
    }
    if options.card_only:
        values = export_card(**card, settings=settings, with_weights=False)
        return write_card_folder(options.output, render_card(values))

    folder = fetch_base("--base", base)
    dtype = torch.float32 if options.full_precision else torch.float16
    text_encoder: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    prefix = "StereoGen/" if folder.name == "StereoGen" else ""
    settings["empty_prompt_embeds"] = (
        None
        if options.with_text_encoder
        else embed_empty_prompt(text_encoder, tokenizer, dtype, f"{base.name}/{prefix}text_encoder", base.revision)
    )
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    return write_pipeline_folder(
        options.output,
        unet=unet,
        vae=load_vae(folder / "vae"),
        scheduler=load_as_ddim(folder / "scheduler"),
        depth_estimator=AutoModelForDepthEstimation.from_pretrained(depth_folder, dtype=torch.float32),
        text_encoder=text_encoder if options.with_text_encoder else None,
        tokenizer=tokenizer if options.with_text_encoder else None,
        dtype=dtype,
        sources={
            **dict.fromkeys(("unet", "vae", "text_encoder"), f"{base.name}@{base.revision}"),
            "depth_estimator": f"{depth_part.name}@{depth_part.revision}",
        },
        card=render_card(export_card(**card, settings=settings, with_weights=True)),
        **settings,
    )


def export_command(options: argparse.Namespace, base: Part, depth_part: Part, depth: DepthSettings) -> str:
    """Return the command that makes this folder again from the same commits, to be read on a card."""
    words = ["python", "-m", "training.export_pipeline"]
    for flag, part in (("base", base), ("depth", depth_part)):
        name = "--base" if flag == "base" else "--depth-model"
        words += [name, part.name if part.folder is None else part.folder.resolve().name]
        words += [] if part.folder is not None else [f"--{flag}-revision", part.revision]
    for name, value in (
        ("--depth-prediction", options.depth_prediction),
        ("--depth-resolution", None if options.depth_resolution is None else depth.default_depth_resolution),
        ("--depth-size-multiple", options.depth_size_multiple),
        ("--steps", options.steps),
        ("--inpaint-resolution", options.inpaint_resolution),
        ("--tile-size", options.tile_size),
    ):
        words += [] if value is None else [name, str(value)]
    words += [_flag(name) for name in ("with_text_encoder", "full_precision") if getattr(options, name)]
    return shlex.join([*words, "--output", str(options.output)])


def working_sizes(options: argparse.Namespace, inpaint_resolution: int) -> dict[str, int]:
    """Sizes that the UNet works at: as asked for, else the default."""
    return {
        "default_inpaint_resolution": (
            inpaint_resolution if options.inpaint_resolution is None else options.inpaint_resolution
        ),
        "tile_size": TILE_SIZE if options.tile_size is None else options.tile_size,
    }


def export_trained(options: argparse.Namespace) -> Path:
    """Assemble a folder from parts of this machine."""
    unet: Any = UNet2DConditionModel.from_pretrained(options.unet)
    scheduler: Any = DDIMScheduler.from_pretrained(options.scheduler)
    settings = {
        "default_num_inference_steps": TRAINED_STEPS if options.steps is None else options.steps,
        "default_depth_resolution": options.depth_resolution or 0,
        **working_sizes(options, 0),
        "depth_prediction": options.depth_prediction or "inverse_depth",
        "depth_size_multiple": options.depth_size_multiple or TRAINED_SIZE_MULTIPLE,
        **read_settings(options.settings or options.unet.resolve().parent / PIPELINE_SETTINGS),
    }
    if options.card is None:
        repo_id = options.push_to_hub or str(options.output)
        values = plain_card(title=options.output.name, repo_id=repo_id, settings=settings)
    else:
        values = json.loads(options.card.read_text(encoding="utf-8"))
    return write_pipeline_folder(
        options.output,
        unet=unet,
        vae=load_vae(options.vae),
        scheduler=scheduler,
        depth_estimator=AutoModelForDepthEstimation.from_pretrained(options.depth_estimator),
        dtype=torch.float32 if options.full_precision else torch.float16,
        link_pipeline_file=options.link,
        card=render_card(values),
        **settings,
    )


def main(arguments: list[str] | None = None) -> None:
    """Assemble the folder, upload it where asked; end with one line and status 1 where that is not possible."""
    options = parse_arguments(arguments)
    try:
        if options.output.exists():
            raise FileExistsError(f"`--output` must not exist yet; got {options.output}.")
        folder = export_published(options) if options.base else export_trained(options)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        print(f"{folder}: {size / 1e6:.1f} MB of weights")
        if options.push_to_hub:
            print(push_folder(folder, options.push_to_hub, options.private, message="Export of ZeroStereoPipeline"))
    except (OSError, ValueError, httpx.HTTPError) as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise SystemExit(f"export_pipeline: error: {line}") from error


if __name__ == "__main__":
    main()
