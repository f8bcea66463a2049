# SPDX-License-Identifier: Apache-2.0
"""Quality of the embedded weights on procedural scenes that no training saw, beside classical fills.

    python -m benchmarks.embedded_quality                                # 200 scenes, CPU, minutes; prints Markdown
    python -m benchmarks.embedded_quality --json out/quality.json        # and writes every figure
    python -m benchmarks.embedded_quality --weights DIR --motorcycle     # and the one real pair; see below
    python -m benchmarks.embedded_quality --scenes 8                     # CPU smoke: does it run? judges no target

Holes: the left view of each scene is warped by its true disparity with `forward_warp`, and every fill gets the same
warped view and hole mask. Each row of the table is computed over the hole pixels of all scenes together:
    PSNR      10 log10(1 / mean squared error), dB, over the hole pixels and their three channels;
    interior  the same without the run of holes that touches the right frame in its row: there the content was never
              in the left view, elsewhere a nearer surface hid it;
    SSIM      the map of scikit-image's `structural_similarity` (window 7x7, channels averaged) between the filled view
              and the true right view, averaged over the hole pixels: windows reach into the known pixels around;
    texture   gradient energy in the holes, relative to that of the true view: the sum of squared differences of
              horizontally and vertically adjacent pixels, all channels, over the pairs of which both pixels are holes.
              1 is as much texture as there should be, less is blur (which PSNR favours), more is noise.
The random photograph is the left view of the scene before, which is a random other one because scenes are independent.

Depth: Pearson correlation of `estimate_inverse_depth` with the true disparity of the left view, scene by scene, beside
that of a vertical ramp (the row index). Scenes of constant disparity have none and are left out and counted.

Scene i depends on (seed, i) only, the noise of its inpainting on i only. The default seed belongs to this benchmark:
no training script uses it, neither for training nor for validation.

--motorcycle adds the Motorcycle pair of scikit-image (Middlebury 2014), unknown disparity filled with the nearest
known one for the warp and left out of the correlation. It is reported once for the weights that are landed and never
used to choose between weights, settings or training runs.
"""

import argparse
import hashlib
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import torch.nn.functional as functional
from scipy.ndimage import distance_transform_edt
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.fills import (
    fill_by_fast_marching,
    fill_by_navier_stokes,
    fill_from_background,
    fill_from_photograph,
)
from pipeline_zerostereo import WarpResult, ZeroStereoPipeline, forward_warp
from training.procedural_scenes import SceneBatch, render_scenes, scene_generator
from training.run import write_text_atomically

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
HELD_OUT_SEED = 1_000_003
SCENES = 200
HEIGHT, WIDTH = 192, 256
SCENES_PER_BATCH = 8
COMPARED_STEPS = (1, 4)  # denoising steps that are shown beside the default
MIN_GAIN_DB = 0.5  # of ours over the best classical fill
MIN_DEPTH_CORRELATION = 0.60

Fill = Callable[[WarpResult, Tensor, list[torch.Generator]], Tensor]  # (warped, donor, noise of each image) -> view


# --- numbers ---


def interior_holes(right_hole_mask: Tensor) -> Tensor:
    """Return the holes [B,1,H,W] without those connected along their row to the right frame."""
    touches_frame = right_hole_mask.flip(-1).to(torch.uint8).cumprod(-1).flip(-1).bool()
    return right_hole_mask & ~touches_frame


def psnr(squared_error: float, values: int) -> float:
    """Return 10 log10(1 / mean squared error) in dB; infinite without error, NaN without values."""
    if values == 0:
        return math.nan
    return math.inf if squared_error == 0 else -10 * math.log10(squared_error / values)


def gradient_energy(image: Tensor, mask: Tensor) -> float:
    """Sum the squared differences of adjacent pixels over pairs inside the mask; image [B,C,H,W], mask [B,1,H,W]."""
    image = image.double()
    across = (image[..., 1:] - image[..., :-1]).square() * (mask[..., 1:] & mask[..., :-1])
    down = (image[..., 1:, :] - image[..., :-1, :]).square() * (mask[..., 1:, :] & mask[..., :-1, :])
    return float(across.sum() + down.sum())


def similarity_sum(image: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Sum the SSIM map of [B,C,H,W] images in [0,1] over the pixels of the mask, channels averaged."""
    total = 0.0
    for one, true, inside in zip(image.movedim(1, -1), truth.movedim(1, -1), mask[:, 0], strict=True):
        _, similarity = structural_similarity(
            one.numpy(), true.numpy(), data_range=1.0, channel_axis=-1, full=True
        )  # [H,W,C]
        total += float(similarity.mean(-1)[inside.numpy()].sum(dtype=np.float64))
    return total


def correlation(prediction: Tensor, truth: Tensor, known: Tensor | None = None) -> list[float]:
    """Return Pearson's correlation of each image of two [B,1,H,W] maps, over the known pixels.

    NaN where the truth is constant; 0 where only the prediction is.
    """
    known = torch.ones_like(truth, dtype=torch.bool) if known is None else known
    found = []
    for one, true, inside in zip(prediction.double(), truth.double(), known, strict=True):
        one, true = one[inside], true[inside]
        if true.numel() == 0 or true.min() == true.max():
            found.append(math.nan)
        elif one.min() == one.max():
            found.append(0.0)
        else:
            found.append(float(torch.corrcoef(torch.stack([one, true]))[0, 1]))
    return found


@dataclass
class FillScore:
    """Sums over the hole pixels of every scene so far, for one fill."""

    name: str
    classical: bool
    pixels: int = 0
    interior_pixels: int = 0
    squared_error: float = 0.0
    interior_squared_error: float = 0.0
    similarity: float = 0.0
    gradient: float = 0.0
    true_gradient: float = 0.0

    def add(self, filled: Tensor, truth: Tensor, holes: Tensor) -> None:
        """Add filled views [B,3,H,W] beside the true ones; holes [B,1,H,W]."""
        error = (filled.double() - truth.double()).square().sum(1, keepdim=True)  # [B,1,H,W]
        interior = interior_holes(holes)
        self.pixels += int(holes.sum())
        self.interior_pixels += int(interior.sum())
        self.squared_error += float(error[holes].sum())
        self.interior_squared_error += float(error[interior].sum())
        self.similarity += similarity_sum(filled, truth, holes)
        self.gradient += gradient_energy(filled, holes)
        self.true_gradient += gradient_energy(truth, holes)

    def figures(self) -> dict[str, float]:
        """Return what the table shows."""
        return {
            "psnr_db": psnr(self.squared_error, 3 * self.pixels),
            "interior_psnr_db": psnr(self.interior_squared_error, 3 * self.interior_pixels),
            "ssim": self.similarity / self.pixels if self.pixels else math.nan,
            "gradient_energy_ratio": self.gradient / self.true_gradient if self.true_gradient else math.nan,
        }


@dataclass
class DepthScore:
    """One entry per scene; correlations are NaN where the true disparity is constant."""

    correlation: list[float] = field(default_factory=list)
    ramp_correlation: list[float] = field(default_factory=list)
    flip_agreement: list[float] = field(default_factory=list)

    def add(
        self, pipe: ZeroStereoPipeline, left_image: Tensor, disparity: Tensor, known: Tensor | None = None
    ) -> None:
        """Estimate the depth of left views [B,3,H,W] and compare it with their disparity [B,1,H,W]."""
        inverse_depth, flip = pipe.estimate_inverse_depth(left_image)  # [B,1,H,W]
        ramp = torch.arange(disparity.shape[-2], dtype=torch.float32).view(1, 1, -1, 1).expand_as(disparity)
        self.correlation += correlation(inverse_depth, disparity, known)
        self.ramp_correlation += correlation(ramp, disparity, known)
        self.flip_agreement += flip.agreement.mean((1, 2, 3)).tolist()

    def figures(self) -> dict[str, float]:
        """Return mean and median over the scenes that have a correlation."""
        ours, ramp = (
            [value for value in v if not math.isnan(value)] for v in (self.correlation, self.ramp_correlation)
        )
        return {
            "scenes": len(ours),
            "left_out": len(self.correlation) - len(ours),
            "mean": statistics.fmean(ours) if ours else math.nan,
            "median": statistics.median(ours) if ours else math.nan,
            "ramp_mean": statistics.fmean(ramp) if ramp else math.nan,
            "ramp_median": statistics.median(ramp) if ramp else math.nan,
            "flip_agreement": statistics.fmean(self.flip_agreement),
        }


# --- scenes and fills ---


def held_out_scene(seed: int, index: int) -> SceneBatch:
    """Render scene `index` alone, so that it depends on nothing but the seed and itself."""
    return render_scenes(1, HEIGHT, WIDTH, generator=scene_generator(seed, index))


def held_out_batches(seed: int, scenes: int) -> Iterator[tuple[list[int], SceneBatch, Tensor]]:
    """Yield (indices, their scenes, donor photographs [B,3,H,W]) until all scenes are rendered."""
    before = held_out_scene(seed, -1).left_image
    for first in range(0, scenes, SCENES_PER_BATCH):
        indices = list(range(first, min(first + SCENES_PER_BATCH, scenes)))
        parts = [held_out_scene(seed, index) for index in indices]
        batch = SceneBatch(*(torch.cat(planes) for planes in zip(*parts, strict=True)))
        yield indices, batch, torch.cat([before, batch.left_image[:-1]])
        before = batch.left_image[-1:]


def load_motorcycle() -> tuple[SceneBatch, Tensor, Tensor]:
    """Return the pair without right disparity (NaN), the mask of known left disparity, and a donor photograph."""
    left, right, disparity = skimage.data.stereo_motorcycle()
    known = np.isfinite(disparity)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    left, right, donor = (
        torch.from_numpy(np.array(picture[..., :3])).movedim(-1, 0)[None].float() / 255
        for picture in (left, right, skimage.data.coffee())
    )
    filled = torch.from_numpy(disparity[tuple(nearest)]).float()[None, None]
    donor = functional.interpolate(donor, left.shape[-2:], mode="bilinear", antialias=True)
    scene = SceneBatch(left, right, filled, torch.full_like(filled, math.nan))
    return scene, torch.from_numpy(known)[None, None], donor


def our_fill(pipe: ZeroStereoPipeline, steps: int) -> Fill:
    """Return the pipeline's inpainting with a number of denoising steps, in the form of the other fills."""
    return lambda warped, donor, noise: pipe.inpaint(
        warped.right_image,
        warped.right_hole_mask,
        warped.right_disparity,
        num_inference_steps=steps,
        generator=noise,
    )


def all_fills(pipe: ZeroStereoPipeline) -> list[tuple[FillScore, Fill]]:
    """Return an empty score and the function of each row, ours at the default number of steps first."""
    default = pipe.config.default_num_inference_steps
    rows: list[tuple[FillScore, Fill]] = []
    for steps in dict.fromkeys((default, *COMPARED_STEPS)):
        name = f"ours, {steps} step{'s' * (steps > 1)}{' (default)' * (steps == default)}"
        rows.append((FillScore(name, classical=False), our_fill(pipe, steps)))
    classical: dict[str, Fill] = {
        "background-side row": lambda warped, donor, noise: fill_from_background(
            warped.right_image, warped.right_hole_mask, warped.right_disparity
        ),
        "random photograph (MfS-Stereo)": lambda warped, donor, noise: fill_from_photograph(
            warped.right_image, warped.right_hole_mask, donor
        ),
        "OpenCV Telea": lambda warped, donor, noise: fill_by_fast_marching(warped.right_image, warped.right_hole_mask),
        "OpenCV Navier-Stokes": lambda warped, donor, noise: fill_by_navier_stokes(
            warped.right_image, warped.right_hole_mask
        ),
    }
    return rows + [(FillScore(name, classical=True), fill) for name, fill in classical.items()]


def score_fills(rows: list[tuple[FillScore, Fill]], scenes: SceneBatch, donor: Tensor, seeds: list[int]) -> int:
    """Warp the scenes, add every fill's figures to its score, and return the number of hole pixels."""
    warped = forward_warp(scenes.left_image, scenes.left_disparity)
    for score, fill in rows:
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        score.add(fill(warped, donor, noise), scenes.right_image, warped.right_hole_mask)
    return int(warped.right_hole_mask.sum())


# --- report ---


def fill_table(scores: list[FillScore]) -> str:
    """Return the Markdown table of the fills."""
    lines = ["| Fill | PSNR, dB | interior, dB | SSIM | texture |", "| --- | ---: | ---: | ---: | ---: |"]
    for score in scores:
        one = score.figures()
        lines.append(
            f"| {score.name} | {one['psnr_db']:.2f} | {one['interior_psnr_db']:.2f} | {one['ssim']:.3f} "
            f"| {one['gradient_energy_ratio']:.2f} |"
        )
    return "\n".join(lines)


def depth_table(figures: dict[str, float]) -> str:
    """Return the Markdown table of the depth."""
    return (
        "| Depth | correlation, mean | median |\n| --- | ---: | ---: |\n"
        f"| ours | {figures['mean']:.3f} | {figures['median']:.3f} |\n"
        f"| vertical ramp | {figures['ramp_mean']:.3f} | {figures['ramp_median']:.3f} |\n\n"
        f"{figures['scenes']} scenes; {figures['left_out']} of constant disparity left out. "
        f"Flip agreement, mean: {figures['flip_agreement']:.3f}."
    )


def card_result(network: str, title: str, record: dict[str, object]) -> dict[str, object]:
    """Return the figures of our default row as training/eval_results.py reads them for a card."""
    fills: Any = record["fills"]
    depth: Any = record["depth"]
    return {
        "network": network,
        "data_set": title,
        "protocol": "true disparity and our warp; over the hole pixels of all views together; depth by Pearson's "
        "correlation with the true disparity, mean of the images",
        "script": "python -m benchmarks.embedded_quality",
        "figures": {
            "hole PSNR, dB": fills[0]["psnr_db"],
            "hole SSIM": fills[0]["ssim"],
            "hole texture, share of the true gradient energy": fills[0]["gradient_energy_ratio"],
            "depth correlation": depth["mean"],
        },
    }


def judge(scores: list[FillScore], depth: dict[str, float]) -> list[tuple[str, bool]]:
    """Return each target in words, and whether it is met."""
    ours = scores[0].figures()["psnr_db"]
    best = max((score for score in scores if score.classical), key=lambda score: score.figures()["psnr_db"])
    gain, mean = ours - best.figures()["psnr_db"], depth["mean"]
    return [
        (f"{scores[0].name}: {gain:+.2f} dB on {best.name}; target +{MIN_GAIN_DB:.2f}", gain >= MIN_GAIN_DB),
        (
            f"depth: mean correlation {mean:.3f}; target above {MIN_DEPTH_CORRELATION:.2f}",
            mean > MIN_DEPTH_CORRELATION,
        ),
    ]


def versions() -> dict[str, str]:
    """Return the versions that the figures may depend on."""
    names = ("torch", "diffusers", "transformers", "numpy", "scikit-image", "opencv-python-headless")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def weight_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each safetensors file below a folder."""
    paths = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def finite_or_none(value: object) -> object:
    """Return a record with None for each number that JSON cannot hold: infinite or NaN."""
    if isinstance(value, dict):
        return {name: finite_or_none(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite_or_none(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, metavar="DIR", help="pipeline folder")
    parser.add_argument("--scenes", type=int, default=SCENES, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, metavar="N", help="of the scenes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--motorcycle", action="store_true", help="also the one real pair; for landed weights, once")
    options = parser.parse_args(arguments)
    if options.scenes < 1:
        parser.error(f"--scenes must be at least 1; got {options.scenes}")
    if not options.weights.is_dir():
        parser.error(f"--weights must be a pipeline folder; got {options.weights}")
    return options


def score_scenes(pipe: ZeroStereoPipeline, seed: int, scenes: int) -> tuple[list[FillScore], DepthScore, float]:
    """Return the scores on held-out scenes and the share of hole pixels."""
    rows, depth, holes = all_fills(pipe), DepthScore(), 0
    with tqdm(total=scenes, unit="scene", desc="held-out scenes") as progress_bar:
        for indices, batch, donor in held_out_batches(seed, scenes):
            holes += score_fills(rows, batch, donor, seeds=indices)
            depth.add(pipe, batch.left_image, batch.left_disparity)
            progress_bar.update(len(indices))
    return [score for score, _ in rows], depth, holes / (scenes * HEIGHT * WIDTH)


def score_motorcycle(pipe: ZeroStereoPipeline) -> tuple[list[FillScore], DepthScore, float]:
    """Return the scores on the Motorcycle pair and the share of hole pixels."""
    scene, known, donor = load_motorcycle()
    rows, depth = all_fills(pipe), DepthScore()
    holes = score_fills(rows, scene, donor, seeds=[0])
    depth.add(pipe, scene.left_image, scene.left_disparity, known)
    return [score for score, _ in rows], depth, holes / known.numel()


def report(title: str, scores: list[FillScore], depth: DepthScore, hole_share: float) -> dict[str, object]:
    """Print the tables under a title and return every figure."""
    figures = depth.figures()
    print(f"\n### {title}, {hole_share:.1%} holes\n\n{fill_table(scores)}\n\n{depth_table(figures)}\n")
    fills = [{**asdict(score), **score.figures()} for score in scores]
    return {"hole_share": hole_share, "fills": fills, "depth": {**figures, **asdict(depth)}}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit code is 1 if a target is missed."""
    options = parse_arguments(arguments)
    pipe = ZeroStereoPipeline.from_pretrained(options.weights)
    pipe.set_progress_bar_config(disable=True)
    record: dict[str, object] = {
        "seed": options.seed,
        "scenes": options.scenes,
        "size": [HEIGHT, WIDTH],
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "weights": weight_checksums(options.weights),
    }
    scores, depth, hole_share = score_scenes(pipe, options.seed, options.scenes)
    title = f"{options.scenes} held-out scenes of {WIDTH}x{HEIGHT}, seed {options.seed}"
    record["held_out"] = report(title, scores, depth, hole_share)
    targets = judge(scores, depth.figures()) if options.scenes >= SCENES else []
    if options.motorcycle:
        record["motorcycle"] = report("Motorcycle", *score_motorcycle(pipe))
    titles = {"held_out": f"procedural scenes, seed {options.seed}", "motorcycle": "Motorcycle (Middlebury 2014)"}
    parts: dict[str, Any] = {name: record[name] for name in titles if name in record}
    record["results"] = [card_result(options.weights.name, titles[name], parts[name]) for name in parts]
    for words, met in targets:
        print(f"- {words}: {'met' if met else 'MISSED'}")
    if not targets:
        print(f"Targets are judged on {SCENES} scenes or more.")
    if options.json:
        record["targets"] = dict(targets)
        write_text_atomically(options.json, json.dumps(finite_or_none(record), indent=2, allow_nan=False) + "\n")
    return 0 if all(met for _, met in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
