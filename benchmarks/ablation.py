# SPDX-License-Identifier: Apache-2.0
"""The paper's ablation in small: which part of the method helps a stereo network, at a budget that two cores can pay.

    python -m benchmarks.ablation --work out/ablation --json benchmarks/results/ablation.json    # once per core
    python -m benchmarks.ablation --work out/ablation --picture docs/pictures/motorcycle.jpg    # of its networks
    python -m benchmarks.ablation --work out/ablation --max-pairs 64,256,1k --json out/scale.json
    python -m benchmarks.ablation --work out/smoke --smoke                          # a minute: does it run?

Every run trains one small RAFT-Stereo (under a million parameters, pictures of 128x256, 8 refinements) from random
weights, on pairs made of the same pictures (benchmarks/ablation_pairs.py), with the same draws of pictures for each
seed. Rows differ in one thing from the row they are compared with:
    Baseline                 uniform strength, holes filled from another picture, L1 loss: after MfS-Stereo
    + ADS                    adaptive disparity selection                                  against Baseline
    + inpainting             holes inpainted by the embedded pipeline                      against Baseline
    + ADS + inpainting       both                                                          against Baseline
    + TCG                    both, the L1 loss weighted by the depth network's confidence  against + ADS + inpainting
    + ZeroStereo loss, 255   and the photometric term on pictures in 0..255, as published  against + TCG
    + ZeroStereo loss, 1     the same on pictures in 0..1                                  against + TCG
There is no augmentation. The paper's ablation trains IGEV-Stereo on photographs, at its full budget: expect the ideas
to carry over, not the figures.

Tested on procedural pairs with exact disparity of a seed of their own, and on the real Motorcycle pair at half size
(beside it, never decisive: one pair). Differences are paired: the same seed in both rows. A row is called better or
worse only beyond two standard errors over the seeds, otherwise "not resolved at this budget". A network must have at
most half the error of the best constant disparity, or its row is inconclusive. `--max-pairs` trains the last-but-one
row on the first pairs only, at the same number of steps, and compares each size with the one before.

Finished runs and chunks of pairs are files in --work: an interrupted benchmark goes on where it stopped, and processes
that are started with the same --work share the runs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ablation_pairs import (
    DISPARITY_STEPS,
    HEIGHT,
    WIDTH,
    Pairs,
    claimed,
    make_pairs,
    pairs_are_made,
    read_pairs,
)
from benchmarks.embedded_quality import versions
from benchmarks.small_training import DEFAULT_WEIGHTS, load_or_make, train_resumably
from pipeline_zerostereo import ZeroStereoPipeline
from training.disparity_files import write_whole
from training.disparity_pictures import paint_disparity, paint_error
from training.procedural_scenes import render_scenes, scene_generator
from training.run import write_text_atomically
from training.stereo_loss import PHOTOMETRIC_WEIGHT, zerostereo_loss
from training.stereo_metrics import StereoErrors, average_images, join_errors, measure_errors
from training.stereo_networks.raft_stereo import RAFTStereo

NETWORK = {"trunk_channels": (16, 16, 32), "feature_channels": 48, "hidden_channels": 32, "correlation_levels": 3}
REFINEMENTS = 8
MAX_DISPARITY_PX = 700.0  # RAFT-Stereo's, as published
PEAK_LEARNING_RATE = 1e-3
TEST_SEED = 62_001  # of the held-out pairs
TEST_CHUNK = 16
OUTLIER_PX = 3.0
GAP, TITLE = 8, 28  # px, of the picture
STANDARD_ERRORS = 2.0  # a difference must be larger than so many to be called one
NEEDED_SHARE = 0.5  # of the best constant disparity's error
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Row:
    """One way to make pairs and to learn from them."""

    name: str
    strength: str
    fill: str
    confidence: bool = False  # weigh the disparity's loss by it
    photometric_range: int | None = None  # None: no photometric term
    against: str | None = None  # the row it is compared with


ROWS = (
    Row("Baseline", "uniform", "background"),
    Row("+ ADS", "ads", "background", against="Baseline"),
    Row("+ inpainting", "uniform", "inpainting", against="Baseline"),
    Row("+ ADS + inpainting", "ads", "inpainting", against="Baseline"),
    Row("+ TCG", "ads", "inpainting", confidence=True, against="+ ADS + inpainting"),
    Row("+ ZeroStereo loss, 255", "ads", "inpainting", True, 255, against="+ TCG"),
    Row("+ ZeroStereo loss, 1", "ads", "inpainting", True, 1, against="+ TCG"),
)
SCALE_ROW = ROWS[5]
# ZeroStereo (arXiv 2501.08654), Tab. 1: IGEV-Stereo, end-point error on the Middlebury training set, px.
PAPER_ERROR_PX = {
    "Baseline": 2.71,
    "+ ADS": 2.28,
    "+ inpainting": 2.34,
    "+ ADS + inpainting": 2.26,
    "+ TCG": 2.18,
    "+ ZeroStereo loss, 255": 2.09,
}


@dataclass(frozen=True)
class Size:
    """How much is made, trained and tested."""

    seeds: int = 3
    steps: int = 600
    batch_size: int = 1
    pictures: int = 1024
    test_pairs: int = 64


SMOKE = Size(seeds=2, steps=2, pictures=32, test_pairs=16)


class TestPairs(NamedTuple):
    """What networks are measured on. Images [N,3,H,W] in 0..255; true disparity and its validity [N,1,H,W]."""

    left_image: Tensor
    right_image: Tensor
    disparity: Tensor
    valid_mask: Tensor


# --- what is tested on ---


def held_out_pairs(work: Path, count: int) -> TestPairs:
    """Render the procedural test pairs, or read them."""

    def render() -> list[Tensor]:
        scenes = [
            render_scenes(TEST_CHUNK, HEIGHT, WIDTH, generator=scene_generator(TEST_SEED, i))
            for i in range(-(-count // TEST_CHUNK))
        ]
        fields = ("left_image", "right_image", "left_disparity")
        return [torch.cat([getattr(batch, name) for batch in scenes])[:count] for name in fields]

    left, right, disparity = load_or_make(work / f"test-{count}.pt", render)
    return TestPairs(255 * left, 255 * right, disparity, torch.ones_like(disparity, dtype=torch.bool))


def motorcycle() -> TestPairs:
    """Load the Middlebury 2014 pair that scikit-image ships, at half size: 250x370, disparities 3.6 to 30 px."""
    left, right, disparity = skimage.data.stereo_motorcycle()
    images = [
        F.interpolate(torch.from_numpy(x).movedim(-1, 0)[None].float(), scale_factor=0.5, mode="area")
        for x in (left, right)
    ]
    h, w = images[0].shape[-2:]
    known = torch.from_numpy(disparity)[None, None].float()[..., : 2 * h : 2, : 2 * w : 2] / 2
    return TestPairs(images[0], images[1], torch.where(known.isfinite(), known, 0), known.isfinite())


def best_constant(pairs: TestPairs) -> float:
    """Return the end-point error, px, of the constant disparity that has the smallest one over all valid pixels."""
    valid = pairs.disparity[pairs.valid_mask]
    return float((valid - valid.median()).abs().mean())


@torch.no_grad()
def test(network: Any, pairs: TestPairs, device: str) -> dict[str, float]:
    """Measure a network; averages over images."""
    errors: list[StereoErrors] = []
    network.eval()
    for left, right, disparity, valid in zip(*(plane.split(TEST_CHUNK) for plane in pairs), strict=True):
        found = network(left.to(device), right.to(device), REFINEMENTS).disparity.cpu()
        errors.append(measure_errors(found, disparity, valid, thresholds_px=(OUTLIER_PX,)))
    figures = average_images(join_errors(errors))
    return {"error_px": figures.end_point_error_px, "bad_percent": figures.bad_percent[OUTLIER_PX]}


# --- one run ---


def batch_loss(network: Any, pairs: Pairs, row: Row, chosen: Tensor, device: str) -> Tensor:
    """Compute the loss of a row on the chosen pairs."""
    left, right, steps, confidence, visible, holes = (plane[chosen].to(device) for plane in pairs)
    left, right, disparity = left.float(), right.float(), steps.float() / DISPARITY_STEPS
    predictions = network(left, right, REFINEMENTS).refinements
    photometric = row.photometric_range is not None
    return zerostereo_loss(
        predictions,
        left_image=left,
        right_image=right,
        disparity=disparity,
        confidence=confidence.float() / 255 if row.confidence else None,
        valid_disparity_mask=disparity > 0,
        left_visible_mask=visible,
        right_hole_mask=holes,
        max_disparity_px=MAX_DISPARITY_PX,
        variant="zerostereo" if row.confidence else "supervised",
        photometric_range=row.photometric_range or 255,
        photometric_weight=PHOTOMETRIC_WEIGHT if photometric else 0.0,
    ).total


def train(pairs: Pairs, row: Row, size: Size, seed: int, path: Path, device: str) -> Any:
    """Train a network from random weights, or go on from `path`. First weights and draws depend on the seed alone."""
    torch.manual_seed(seed)
    network: Any = RAFTStereo(**NETWORK)
    network.to(device)

    def loss_of_step(generator: torch.Generator) -> Tensor:
        network.freeze_batch_norm()
        chosen = torch.randint(len(pairs.disparity), (size.batch_size,), generator=generator)
        return batch_loss(network, pairs, row, chosen, device)

    train_resumably(
        network, loss_of_step, path=path, steps=size.steps, peak_learning_rate=PEAK_LEARNING_RATE, seed=seed
    )
    return network


def run_path(work: Path, row: Row, size: Size, seed: int) -> Path:
    """Name the file of a run's figures."""
    stem = "".join(c if c.isalnum() else "-" for c in row.name.lower()).strip("-")
    return work / "runs" / f"{stem}-{size.pictures}pairs-{size.steps}x{size.batch_size}-seed{seed}.json"


def finish_run(work: Path, row: Row, size: Size, seed: int, tests: dict[str, TestPairs], device: str) -> None:
    """Train and test once, and write the figures."""
    path = run_path(work, row, size, seed)
    pairs = read_pairs(work, size.pictures, row.strength, row.fill)
    start = time.process_time()
    network = train(pairs, row, size, seed, path.with_suffix(".pt"), device)
    found: dict = {name: test(network, pairs, device) for name, pairs in tests.items()}
    found["processor_seconds"] = time.process_time() - start  # of the last process, if the run was interrupted
    network.save_pretrained(path.with_suffix(""))
    write_text_atomically(path, json.dumps(found) + "\n")
    path.with_suffix(".pt").unlink()


def run_all(work: Path, plan: list[tuple[Row, Size, int]], tests: dict[str, TestPairs], device: str) -> None:
    """Do every run of the plan that no other process has done or is doing; return when all are done."""
    while open_runs := [run for run in plan if not run_path(work, *run).exists()]:
        worked = False
        for run in open_runs:
            path = run_path(work, *run)
            with claimed(path) as mine:
                if mine and not path.exists():
                    finish_run(work, *run, tests, device)
                    worked = True
        if not worked:
            time.sleep(POLL_SECONDS)


# --- report ---


class Difference(NamedTuple):
    """A paired difference over seeds."""

    mean: float
    standard_error: float  # nan for a single seed

    @property
    def verdict(self) -> str:
        """Say which is better; smaller is better."""
        if not abs(self.mean) > STANDARD_ERRORS * self.standard_error:
            return "not resolved at this budget"
        return "better" if self.mean < 0 else "worse"


def paired_difference(values: list[float], others: list[float]) -> Difference:
    """Subtract seed by seed, values - others."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    return Difference(statistics.fmean(differences), error)


def summarize(
    figures: dict[str, list[dict]], against: dict[str, str | None], constants: dict[str, float]
) -> list[dict]:
    """Return a line for each row.

    Args:
        figures: row -> what each seed's network had, in the order of the seeds.
        against: row -> the row it is compared with, if any.
        constants: test set -> error of the best constant disparity, px; the first is the one that decides.
    """
    decisive = next(iter(constants))
    lines = []
    for name, of_seeds in figures.items():
        errors = [one[decisive]["error_px"] for one in of_seeds]
        line: dict = {"row": name, "against": against[name], "seeds": of_seeds}
        for place in constants:
            for metric in ("error_px", "bad_percent"):
                line[f"{place} {metric}"] = statistics.fmean(one[place][metric] for one in of_seeds)
        line["learned"] = max(errors) <= NEEDED_SHARE * constants[decisive]
        other = against[name]
        if other is not None:
            difference = paired_difference(errors, [one[decisive]["error_px"] for one in figures[other]])
            both_learned = line["learned"] and next(x["learned"] for x in lines if x["row"] == other)
            line |= {"difference_px": difference.mean, "standard_error_px": difference.standard_error}
            line["verdict"] = difference.verdict if both_learned else "inconclusive"
        else:
            line["verdict"] = "" if line["learned"] else "inconclusive"
        lines.append(line)
    return lines


def table(lines: list[dict], constants: dict[str, float], first_column: str = "Row") -> str:
    """Return the Markdown table; the last row is the best constant disparity."""
    places = list(constants)
    header = [first_column]
    for place in places:
        header += [f"{place}: EPE, px", f">{OUTLIER_PX:g} px, %"]
    header += ["difference of EPE ± standard error", "verdict"]
    text = [f"| {' | '.join(header)} |", "| --- |" + " ---: |" * (2 * len(places) + 1) + " --- |"]
    for line in lines:
        cells = [line["row"]]
        for place in places:
            cells += [f"{line[f'{place} error_px']:.2f}", f"{line[f'{place} bad_percent']:.1f}"]
        if line["against"] is None:
            cells.append("")
        else:
            cells.append(f"{line['difference_px']:+.2f} ± {line['standard_error_px']:.2f} to {line['against']}")
        cells.append(line["verdict"])
        text.append(f"| {' | '.join(cells)} |")
    constant = "".join(f" {constants[place]:.2f} | |" for place in places)
    text.append(f"| best constant disparity |{constant} | |")
    return "\n".join(text)


def compare_with_paper(lines: list[dict]) -> str:
    """Say which order the paper has, which one is here, and where resolved differences contradict it."""
    errors = {line["row"]: line[next(k for k in line if k.endswith("error_px"))] for line in lines}
    shared = [name for name in PAPER_ERROR_PX if name in errors]
    paper = sorted(shared, key=lambda name: PAPER_ERROR_PX[name])
    here = sorted(shared, key=lambda name: errors[name])
    contradicted = [
        f"{line['row']} is {line['verdict']} than {line['against']}"
        for line in lines
        if line["row"] in shared
        and line["verdict"] in ("better", "worse")
        and (line["verdict"] == "better") != (PAPER_ERROR_PX[line["row"]] < PAPER_ERROR_PX[line["against"]])
    ]
    return "\n".join(
        [
            "Best first, paper (Tab. 1, IGEV-Stereo, Middlebury EPE): " + "; ".join(paper) + ".",
            "Best first, here: " + "; ".join(here) + ".",
            "Resolved against the paper: " + ("; ".join(contradicted) or "none") + ".",
        ]
    )


# --- picture ---


def draw_motorcycle(work: Path, names: list[str], size: Size, seed: int, device: str) -> PIL.Image.Image:
    """Draw the Motorcycle pair, its true disparity, and what the networks of some rows find: disparity and error.

    Args:
        work: where the runs are.
        names: of rows.
        size: of the runs.
        seed: whose networks.
        device: to run them on.
    """
    pairs = motorcycle()
    truth, known = pairs.disparity[0, 0].numpy(), pairs.valid_mask[0, 0].numpy()
    views = [PIL.Image.fromarray(image[0].movedim(0, -1).byte().numpy()) for image in pairs[:2]]
    columns = [("left and right view", *views)]
    columns.append(("true disparity", paint_disparity(truth, known), PIL.Image.new("RGB", views[0].size, "white")))
    for row in ROWS:
        if row.name in names:
            network: Any = RAFTStereo.from_pretrained(run_path(work, row, size, seed).with_suffix(""))
            network.to(device).eval()
            with torch.no_grad():
                output = network(pairs.left_image.to(device), pairs.right_image.to(device), REFINEMENTS)
            found = output.disparity[0, 0].cpu().numpy()
            painted = paint_disparity(found, highest_px=float(truth[known].max()))
            columns.append((row.name, painted, paint_error(found, truth, known)))
    width, height = (max(panel[axis] for c in columns for panel in (c[1].size, c[2].size)) for axis in (0, 1))
    sheet = PIL.Image.new("RGB", (len(columns) * (width + GAP) + GAP, 2 * (height + GAP) + TITLE), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(TITLE - 12)
    for i, (title, upper, lower) in enumerate(columns):
        x = GAP + i * (width + GAP)
        draw.text((x, 4), title, "black", font)
        sheet.paste(upper, (x, TITLE))
        sheet.paste(lower, (x, TITLE + height + GAP))
    return sheet


# --- command ---


def parse_count(text: str) -> int:
    """Read "512" or "2k" (thousands of 1024)."""
    number, factor = (text[:-1], 1024) if text.endswith("k") else (text, 1)
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f'must be numbers of at least 1, such as 512 or 2k; got "{text}"')
    return int(number) * factor


def parse_counts(text: str) -> list[int]:
    """Read "1k,2k,4k", growing."""
    counts = [parse_count(part) for part in text.split(",")]
    if sorted(set(counts)) != counts or len(counts) < 2:
        raise argparse.ArgumentTypeError(f'must be at least two growing numbers; got "{text}"')
    return counts


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="what is finished is kept here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw what networks of the first seed find on Motorcycle"
    )
    parser.add_argument(
        "--max-pairs", type=parse_counts, metavar="N,N,...", help="data-scale curve instead of the rows; 1k = 1024"
    )
    parser.add_argument("--steps", type=int, metavar="N", help=f"of each run ({Size.steps})")
    parser.add_argument("--batch-size", type=int, metavar="N", help=f"pairs of a step ({Size.batch_size})")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="two steps, two seeds: figures mean nothing")
    options = parser.parse_args(arguments)
    if options.picture and options.max_pairs:
        parser.error("--picture shows rows, and --max-pairs trains other networks: leave one out")
    for name in ("steps", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none")
    return options


def choose_size(options: argparse.Namespace) -> Size:
    """Return the size that the options ask for."""
    size = SMOKE if options.smoke else Size()
    changed = {name: getattr(options, name) for name in ("steps", "batch_size") if getattr(options, name) is not None}
    return replace(size, **changed)


def main(arguments: list[str] | None = None) -> int:
    """Make pairs, train, test and print."""
    options = parse_arguments(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)  # a process per core is faster than a run on two
    size = choose_size(options)
    sizes = [replace(size, pictures=count) for count in options.max_pairs or [size.pictures]]
    rows = [SCALE_ROW] if options.max_pairs else list(ROWS)
    pipe = ZeroStereoPipeline.from_pretrained(DEFAULT_WEIGHTS).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    make_pairs(options.work, pipe, sizes[-1].pictures)
    while not pairs_are_made(options.work, sizes[-1].pictures):  # another process is at some of them
        time.sleep(POLL_SECONDS)
        make_pairs(options.work, pipe, sizes[-1].pictures)
    tests = {"procedural": held_out_pairs(options.work, size.test_pairs), "Motorcycle": motorcycle()}
    plan = [(row, one, seed) for seed in range(size.seeds) for one in sizes for row in rows]  # whole seeds first
    run_all(options.work, plan, tests, options.device)

    constants = {name: best_constant(pairs) for name, pairs in tests.items()}
    names = [f"{one.pictures} pairs" for one in sizes] if options.max_pairs else [row.name for row in rows]
    figures: dict[str, list[dict]] = {name: [] for name in names}
    for row, one, seed in plan:
        name = f"{one.pictures} pairs" if options.max_pairs else row.name
        figures[name].append(json.loads(run_path(options.work, row, one, seed).read_text()))
    against = {name: row.against for name, row in zip(names, rows, strict=False)}
    if options.max_pairs:
        against = dict(zip(names, [None, *names[:-1]], strict=True))
    lines = summarize(figures, against, constants)
    print(f"\n{size.seeds} seeds, {size.steps} steps of {size.batch_size} pairs of {HEIGHT}x{WIDTH}\n")
    print(table(lines, constants, "Pairs" if options.max_pairs else "Row"))
    comparison = "" if options.max_pairs else compare_with_paper(lines)
    print(f"\n{comparison}")
    if options.picture:
        sheet = io.BytesIO()
        picture = draw_motorcycle(options.work, [ROWS[0].name, ROWS[-1].name], size, 0, options.device)
        picture.save(sheet, "PNG" if options.picture.suffix.lower() == ".png" else "JPEG", quality=90)
        write_whole(options.picture, sheet.getvalue())
    if options.json:
        record = {"size": asdict(size), "network": NETWORK, "refinements": REFINEMENTS, "constants_px": constants}
        record |= {"versions": versions(), "rows": lines, "comparison": comparison}
        write_text_atomically(options.json, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
