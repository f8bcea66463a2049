# SPDX-License-Identifier: Apache-2.0
"""Does training on photographs alone help on a photograph that was never seen? Leave one out of four, three seeds.

    python -m benchmarks.photographs_alone --work out/photographs_alone --json out/embedded.json   # 27 runs
    python -m benchmarks.photographs_alone --work out/photographs_alone --json out/random.json --start random
    python -m benchmarks.photographs_alone --work out/smoke --smoke      # CPU smoke, a minute: does it run?

Every run trains the same tiny UNet in the latent space of the embedded autoencoder, from the embedded weights (which
learned from scenes alone) or from random ones, for the same number of steps of the same size. Only the samples differ:
    photographs   crops of three photographs, each taken as the new view (training/photograph_pairs.py);
    scenes        crops of procedural scenes, warped from the left to the right view;
    half and half every batch, one half of each.
The photograph left out is the test: holes are the pixels that its other eye cannot see, at fixed disparity scales, as
it is and mirrored, and its own pixels are the truth. PSNR, SSIM and texture as in embedded_quality.py, over the holes
of a photograph together, filled in one step by the pipeline. Scenes do not depend on what is left out: those three
runs are tested on all four photographs. Beside them stand the row fill and the embedded weights as they are.

Depth comes from the embedded network, once a photograph. Runs that are finished are files in --work and are not
repeated, so an interrupted benchmark goes on where it stopped. The table is printed as it comes out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import skimage.data
import torch
import torch.nn.functional as functional
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.embedded_quality import FillScore, finite_or_none, versions
from benchmarks.small_training import (
    DEFAULT_WEIGHTS,
    EMPTY_PROMPT,
    HEIGHT,
    TRAINING_SEED,
    WIDTH,
    draw_crops,
    embedded_unet,
    encode_in_parts,
    load_or_make,
    scene_latents,
    train_resumably,
)
from pipeline_zerostereo import (
    ADS_CENTER,
    ADS_RADIUS,
    WarpResult,
    ZeroStereoPipeline,
    fill_from_background,
    forward_warp,
    sharpen_disparity,
)
from training.inpainting_from_scratch import make_scheduler, make_unet
from training.inpainting_loss import InpaintingBatch, inpainting_loss
from training.photograph_depth import PhotographDepth, depth_model_key
from training.photograph_pairs import photograph_pair, see_from_other_eye, select_photograph_disparity
from training.run import write_text_atomically

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")  # of skimage.data, in the installed package
SHORT_SIDE = 128  # px, of the photographs as they are trained on and tested
CROP = 32  # latent pixels, 64 px
BORDER_SHARE = 0.5
BATCH_SIZE = 8
PEAK_LEARNING_RATES = {"embedded": 2e-4, "random": 1e-3}
LAST_TIMESTEP_SHARE = 0.3
TEST_SCALES = (ADS_CENTER - ADS_RADIUS, ADS_CENTER, ADS_CENTER + ADS_RADIUS)
CONDITIONS = ("photographs", "scenes", "half and half")


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    seeds: int = 3
    steps: int = 120
    scenes: int = 2048
    strengths: int = 32  # disparity scales drawn for each photograph, as it is and mirrored


SMOKE = Size(seeds=1, steps=2, scenes=4, strengths=2)


@dataclass(frozen=True)
class Photo:
    """A photograph and what the depth network says of it, both at the size that is trained on."""

    name: str
    image: Tensor  # [1,3,h,w] in [0,1]; h and w even, the factor of the autoencoder
    inverse_depth: Tensor  # [1,1,h,w] in [0,1]


# --- photographs ---


def load_photos(work: Path, pipe: ZeroStereoPipeline) -> list[Photo]:
    """Write the photographs to files, estimate their depth once, and bring both to the working size."""
    paths = []
    for name in PHOTOS:
        path = work / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(getattr(skimage.data, name)()).convert("RGB").save(path)
        paths.append(path)
    depth = PhotographDepth(work / "depth", depth_model_key(pipe))
    depth.fill(paths, lambda image: pipe.estimate_inverse_depth(image)[0])
    photos = []
    for path in paths:
        image = torch.from_numpy(np.array(PIL.Image.open(path))).movedim(-1, 0)[None].float() / 255
        H, W = image.shape[-2:]
        size = tuple(2 * round(side * SHORT_SIDE / min(H, W) / 2) for side in (H, W))
        small, near = (
            functional.interpolate(x, size, mode="bilinear", antialias=True).clamp(0, 1)
            for x in (image, depth.read(path)[None])
        )
        photos.append(Photo(path.stem, small, near))
    return photos


def photograph_latents(vae: torch.nn.Module, photo: Photo, strengths: int, seed: int) -> list[Tensor]:
    """Encode a photograph at many strengths, as it is and mirrored, as `encode_in_parts` returns them."""
    image, inverse_depth = (
        torch.cat([x, x.flip(-1)]).repeat(strengths, 1, 1, 1) for x in (photo.image, photo.inverse_depth)
    )
    generator = torch.Generator().manual_seed(seed)
    disparity = select_photograph_disparity(inverse_depth, image.shape[-1], generator=generator)
    return encode_in_parts(vae, photograph_pair(image, disparity, "background"), "max")


def held_out_views(photo: Photo) -> tuple[Tensor, WarpResult]:
    """Return the truth [N,3,h,w] and its way over the other eye, at each test scale, as it is and mirrored."""
    image, inverse_depth = (torch.cat([x, x.flip(-1)]) for x in (photo.image, photo.inverse_depth))
    truth = image.repeat(len(TEST_SCALES), 1, 1, 1)
    disparity = torch.cat([sharpen_disparity(inverse_depth * scale * image.shape[-1]) for scale in TEST_SCALES])
    eye = see_from_other_eye(truth, disparity)
    return truth, forward_warp(eye.left_image, eye.left_disparity)


# --- one run ---


def draw_batch(pools: list[list[list[Tensor]]], generator: torch.Generator) -> InpaintingBatch:
    """Draw one batch: equal parts from each of the pools, and from each of a pool's pictures by turns of chance.

    Args:
        pools: of each kind of sample, a list of latents of equal size, as `encode_in_parts` returns them.
        generator: every draw comes from it.
    """
    parts = []
    for pool in pools:
        share = BATCH_SIZE // len(pools)
        chosen = torch.randint(len(pool), (share,), generator=generator).bincount(minlength=len(pool)).tolist()
        parts += [
            draw_crops(latents, count, CROP, BORDER_SHARE, generator)
            for latents, count in zip(pool, chosen, strict=True)
            if count
        ]
    return InpaintingBatch(*(torch.cat(planes) for planes in zip(*parts, strict=True)))


def train(pools: list[list[list[Tensor]]], start: str, seed: int, steps: int, path: Path) -> UNet2DConditionModel:
    """Train a UNet on the pools; random weights, crops, noise and timesteps depend on the seed."""
    torch.manual_seed(seed)
    scheduler = make_scheduler("sample")
    unet = embedded_unet() if start == "embedded" else make_unet(8, (32, 64, 96, 96))

    def loss_of_step(generator: torch.Generator) -> Tensor:
        batch = draw_batch(pools, generator)
        with torch.autocast("cpu", torch.bfloat16):
            return inpainting_loss(unet, scheduler, batch, generator, last_timestep_share=LAST_TIMESTEP_SHARE)

    rate = PEAK_LEARNING_RATES[start]
    train_resumably(unet, loss_of_step, path=path, steps=steps, peak_learning_rate=rate, seed=seed)
    return unet


def score(
    name: str, truth: Tensor, views: WarpResult, unet: UNet2DConditionModel | None, pipe: ZeroStereoPipeline
) -> dict:
    """Fill the holes of the test views, by the row fill without a UNet, and return the figures."""
    if unet is None:
        filled = fill_from_background(views.right_image, views.right_hole_mask, views.right_disparity)
    else:
        own = ZeroStereoPipeline(
            unet,
            pipe.vae,
            make_scheduler("sample"),
            masked_fill="background",
            latent_mask_reduction="max",
            empty_prompt_embeds=EMPTY_PROMPT[0].tolist(),
        )
        own.set_progress_bar_config(disable=True)
        noise = [torch.Generator().manual_seed(i) for i in range(len(truth))]
        filled = own.inpaint(
            views.right_image, views.right_hole_mask, views.right_disparity, num_inference_steps=1, generator=noise
        )
    one = FillScore(name, classical=unet is None)
    one.add(filled, truth, views.right_hole_mask)
    return one.figures()


def plan(photos: list[str], seeds: int) -> list[tuple[str, str | None, int]]:
    """List the runs: condition, photograph left out (None: all are tested), seed."""
    runs: list[tuple[str, str | None, int]] = []
    for seed in range(seeds):  # whole seeds first, so that an early look compares like with like
        runs.append(("scenes", None, seed))
        runs += [(kind, left_out, seed) for left_out in photos for kind in ("photographs", "half and half")]
    return runs


def run_all(work: Path, size: Size, start: str, pipe: ZeroStereoPipeline) -> tuple[dict, dict]:
    """Do every run from these first weights that is not a file yet.

    Returns:
        figures by (condition, photograph, seed) of the runs, and by (fill, photograph) of what needs no training.
    """
    photos = load_photos(work, pipe)
    scenes = load_or_make(
        work / f"scenes-{size.scenes}.pt",
        lambda: scene_latents(
            pipe.vae,
            seed=TRAINING_SEED,
            scenes=size.scenes,
            height=HEIGHT,
            width=WIDTH,
            masked_fill="background",
            latent_mask_reduction="max",
        ),
    )
    latents = {
        photo.name: load_or_make(
            work / f"{photo.name}-{size.strengths}.pt",
            lambda photo=photo: photograph_latents(pipe.vae, photo, size.strengths, seed=TRAINING_SEED),
        )
        for photo in photos
    }
    tests = {photo.name: held_out_views(photo) for photo in photos}
    untrained = {}
    for name, (truth, views) in tests.items():
        untrained["row fill", name] = score("row fill", truth, views, None, pipe)
        untrained["embedded weights", name] = score("embedded weights", truth, views, pipe.unet, pipe)
        untrained["holes", name] = {"share": float(views.right_hole_mask.float().mean())}

    figures = {}
    for kind, left_out, seed in plan(list(tests), size.seeds):
        stem = f"{start}-{size.steps}-{kind.replace(' ', '_')}-{left_out or 'none'}-seed{seed}"
        result = work / f"{stem}.json"
        if not result.exists():
            others = [latents[name] for name in tests if name != left_out]
            pools = {"photographs": [others], "scenes": [[scenes]], "half and half": [others, [scenes]]}[kind]
            unet = train(pools, start, seed, size.steps, work / f"{stem}.pt")
            tested = [left_out] if left_out else list(tests)
            found = {name: score(kind, *tests[name], unet, pipe) for name in tested}
            write_text_atomically(result, json.dumps(found) + "\n")
            (work / f"{stem}.pt").unlink()
        for name, one in json.loads(result.read_text()).items():
            figures[kind, name, seed] = one
    return figures, untrained


# --- report ---


def summarize(figures: dict, untrained: dict) -> list[dict]:
    """Return a row for each condition: mean over seeds for each photograph, mean and spread over seeds of their mean.

    The spread is the standard deviation over the seeds of the mean over the photographs.
    """
    names = list(dict.fromkeys(name for _, name, _ in figures))
    seeds = sorted({seed for _, _, seed in figures})
    rows = []
    for kind in CONDITIONS:
        row: dict = {"condition": kind, "photographs": {}}
        for metric in ("psnr_db", "ssim", "gradient_energy_ratio"):
            of_seed = [statistics.fmean(figures[kind, name, seed][metric] for name in names) for seed in seeds]
            row[metric] = statistics.fmean(of_seed)
            row[f"{metric}_spread"] = statistics.stdev(of_seed) if len(seeds) > 1 else 0.0
        for name in names:
            values = [figures[kind, name, seed]["psnr_db"] for seed in seeds]
            spread = statistics.stdev(values) if len(seeds) > 1 else 0.0
            row["photographs"][name] = {"psnr_db": statistics.fmean(values), "psnr_db_spread": spread}
        rows.append(row)
    for fill in ("row fill", "embedded weights"):
        row = {
            "condition": fill,
            "photographs": {name: {"psnr_db": untrained[fill, name]["psnr_db"]} for name in names},
        }
        for metric in ("psnr_db", "ssim", "gradient_energy_ratio"):
            row[metric] = statistics.fmean(untrained[fill, name][metric] for name in names)
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Return the Markdown table."""
    names = list(rows[0]["photographs"])
    lines = [
        f"| Trained on | {' | '.join(names)} | PSNR, dB, mean | SSIM | texture |",
        "| --- |" + " ---: |" * (len(names) + 3),
    ]

    def number(row: dict, metric: str, digits: int) -> str:
        spread = row.get(f"{metric}_spread")
        return f"{row[metric]:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")

    for row in rows:
        cells = [number(row["photographs"][name], "psnr_db", 2) for name in names]
        cells += [number(row, "psnr_db", 2), number(row, "ssim", 3), number(row, "gradient_energy_ratio", 2)]
        lines.append(f"| {row['condition']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="what is finished is kept here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument(
        "--start", default="embedded", choices=list(PEAK_LEARNING_RATES), help="first weights (%(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="two steps, one seed: figures mean nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, measure and print."""
    options = parse_arguments(arguments)
    size = SMOKE if options.smoke else Size()
    pipe = ZeroStereoPipeline.from_pretrained(DEFAULT_WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    figures, untrained = run_all(options.work, size, options.start, pipe)
    rows = summarize(figures, untrained)
    crops = f"{BATCH_SIZE} crops of {2 * CROP} px"
    print(f"\n{size.seeds} seeds, {size.steps} steps of {crops}, from {options.start} weights")
    print(f"\n{table(rows)}\n")
    if options.json:
        record = {
            "start": options.start,
            "size": asdict(size),
            "versions": versions(),
            "rows": rows,
            "runs": [{"condition": k, "photograph": n, "seed": s, **one} for (k, n, s), one in figures.items()],
            "without_training": [{"fill": k, "photograph": n, **one} for (k, n), one in untrained.items()],
        }
        write_text_atomically(options.json, json.dumps(finite_or_none(record), indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
