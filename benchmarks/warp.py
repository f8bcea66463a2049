# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of the warp and of the edge sharpening, on one CPU thread, beside what they replace.

    python -m benchmarks.warp                       # about two minutes; prints a Markdown table
    python -m benchmarks.warp --json out/warp.json  # and writes the figures of every run
    python -m benchmarks.warp --smoke               # small images, a few seconds: does it still run?

Rows:
    forward_warp beside one bilinear `grid_sample` of the same image in the same run (target: at most 12 times), and
        beside the loop of tests/reference.py, timed on one row of full width and multiplied by the rows;
    extra memory of forward_warp at 3840x2160, above the inputs, in a fresh process (target: under 1.5 GiB);
    sharpen_disparity, complete, beside scipy's nearest `griddata` alone (target: at least 30 times faster), and beside
        a KD-tree which is asked for the edge pixels only.

The disparity map is a scene of overlapping objects with soft borders, as a depth network predicts them; the table
states how many of its pixels are edges, because the cost of sharpening depends on it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from scipy.interpolate import NearestNDInterpolator, griddata
from scipy.ndimage import generate_binary_structure, grey_dilation
from skimage.filters import sobel

from pipeline_zerostereo import SHARPEN_THRESHOLD, fill_from_background, forward_warp, sharpen_disparity
from tests.reference import forward_warp_loop

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = 14
BLUR_SIGMA_SHARE = 1 / 640  # of the width: 3 px at 1920
MAX_WARP_TO_GRID_SAMPLE = 12
MAX_EXTRA_MEMORY_GIB = 1.5
MIN_GRIDDATA_TO_SHARPEN = 30


@dataclass
class Row:
    """One line of the table."""

    what: str
    size: str
    seconds: list[float] = field(default_factory=list)  # one per run; empty for memory
    memory_gib: float | None = None
    compared_with: str = ""
    ratio: float | None = None  # how many times as long as, or as fast as, the other: `compared_with` says which
    target: str = ""
    met: bool | None = None

    def as_markdown(self) -> str:
        """Return the cells between bars."""
        measured = "" if self.memory_gib is None else f"{self.memory_gib:.2f} GiB"
        if self.seconds:
            median = statistics.median(self.seconds)
            measured = f"{median:.4g} s"
            if len(self.seconds) > 1:
                measured += f" ({min(self.seconds):.4g} to {max(self.seconds):.4g})"
        compared = f"{self.ratio:.4g} times {self.compared_with}" if self.ratio is not None else self.compared_with
        target = self.target + ({True: ": met", False: ": MISSED", None: ""}[self.met])
        return f"| {self.what} | {self.size} | {measured} | {compared} | {target} |"


def soft_edged_disparity(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a ground plane with ellipses and boxes before it, blurred. [1,1,H,W], px, up to a tenth of the width."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    disparity = (0.005 + 0.03 * y).expand(height, width)  # shares of the width
    for number in range(OBJECTS):
        center_x, center_y, size_x, size_y, kind = torch.rand(5, generator=generator).tolist()
        across = (x - center_x).abs() / (0.02 + 0.08 * size_x)
        down = (y - center_y).abs() / (0.05 + 0.2 * size_y)
        inside = torch.maximum(across, down) < 1 if kind < 0.4 else across**2 + down**2 < 1
        disparity = torch.where(inside, 0.02 + 0.08 * (number + 1) / OBJECTS, disparity)
    sigma = width * BLUR_SIGMA_SHARE
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    soft = functional.pad((disparity * width)[None, None], (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(soft, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def edges_of(disparity: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (dilated map, edge mask), [H,W] each, as the KD-tree methods need them, from scipy and scikit-image."""
    dilated = grey_dilation(disparity[0, 0].numpy(), footprint=generate_binary_structure(2, 1))
    return dilated, sobel(dilated) > SHARPEN_THRESHOLD


def seconds_of(function: Callable[[], object]) -> float:
    """Run once and return the seconds it took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(runs: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    """Warm each function up once, then time them in turn, so that a busy machine slows all of them alike."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            times[name].append(seconds_of(function))
    return times


def measure_warp(height: int, width: int, runs: int, generator: torch.Generator) -> list[Row]:
    """Time forward_warp, grid_sample of the same image, filling, and one row of the loop."""
    size = f"{width}x{height}"
    image = torch.rand(1, 3, height, width, generator=generator)
    disparity = sharpen_disparity(soft_edged_disparity(height, width, generator))
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([x + disparity[0, 0] * 2 / (width - 1), y], dim=-1)[None]
    warped = forward_warp(image, disparity)
    times = interleaved(
        runs,
        grid_sample=lambda: functional.grid_sample(image, grid, mode="bilinear", align_corners=True),
        warp=lambda: forward_warp(image, disparity),
        fill=lambda: fill_from_background(warped.right_image, warped.right_hole_mask, warped.right_disparity),
    )
    middle = slice(height // 2, height // 2 + 1)
    one_row = seconds_of(lambda: forward_warp_loop(image[0, :, middle].numpy(), disparity[0, 0, middle].numpy()))
    median = {name: statistics.median(values) for name, values in times.items()}
    ratio = median["warp"] / median["grid_sample"]
    return [
        Row("grid_sample, bilinear", size, times["grid_sample"]),
        Row(
            "forward_warp",
            size,
            times["warp"],
            compared_with="grid_sample",
            ratio=ratio,
            target=f"at most {MAX_WARP_TO_GRID_SAMPLE}",
            met=ratio <= MAX_WARP_TO_GRID_SAMPLE,
        ),
        Row(
            f"loop of tests/reference.py, one row times {height}",
            size,
            [one_row * height],
            compared_with="forward_warp",
            ratio=one_row * height / median["warp"],
        ),
        Row(
            f"fill_from_background, {warped.right_hole_mask.float().mean():.1%} holes",
            size,
            times["fill"],
            compared_with="grid_sample",
            ratio=median["fill"] / median["grid_sample"],
        ),
    ]


def measure_sharpening(height: int, width: int, runs: int, generator: torch.Generator) -> list[Row]:
    """Time the whole of sharpen_disparity, and only the interpolation of the two KD-tree ways."""
    size = f"{width}x{height}"
    disparity = soft_edged_disparity(height, width, generator)
    dilated, edge = edges_of(disparity)
    calm_places, calm_values = np.argwhere(~edge), dilated[~edge]
    all_places = np.argwhere(np.ones_like(edge))
    edge_places = np.argwhere(edge)

    def with_griddata() -> np.ndarray:
        return griddata(calm_places, calm_values, all_places, method="nearest")

    def with_tree_for_edges_only() -> np.ndarray:
        return NearestNDInterpolator(calm_places, calm_values)(edge_places)

    expected = with_griddata().reshape(height, width)
    differing = (sharpen_disparity(disparity)[0, 0].numpy() != expected) & edge
    ours = interleaved(runs, ours=lambda: sharpen_disparity(disparity))["ours"]
    others = interleaved(max(1, runs // 2), griddata=with_griddata, edges_only=with_tree_for_edges_only)
    ours += interleaved(runs, ours=lambda: sharpen_disparity(disparity))["ours"]  # before and after: same conditions
    ratio = statistics.median(others["griddata"]) / statistics.median(ours)
    edges = f"{edge.mean():.1%} edges"
    return [
        Row(
            f"sharpen_disparity, {edges}, {differing.sum() / edge.sum():.0%} of them another of equal sources",
            size,
            ours,
        ),
        Row(
            f"scipy griddata nearest, {edges}",
            size,
            others["griddata"],
            compared_with="sharpen_disparity",
            ratio=ratio,
            target=f"at least {MIN_GRIDDATA_TO_SHARPEN}",
            met=ratio >= MIN_GRIDDATA_TO_SHARPEN,
        ),
        Row(
            "KD-tree asked for edge pixels only",
            size,
            others["edges_only"],
            compared_with="sharpen_disparity",
            ratio=statistics.median(others["edges_only"]) / statistics.median(ours),
        ),
    ]


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far.

    Linux keeps it for the program itself (VmHWM); what `getrusage` says there starts at the size of the process that
    started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def probe_memory(height: int, width: int) -> None:
    """Print, as JSON, what one warp needs above its inputs and how long it took; runs in a process of its own."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    forward_warp(torch.rand(1, 3, 8, 16), torch.ones(1, 1, 8, 16))  # lazily loaded code is not the warp's memory
    image = torch.rand(1, 3, height, width, generator=generator)
    disparity = torch.rand(1, 1, height, width, generator=generator).mul_(width / 10)
    before = peak_memory_bytes()
    seconds = seconds_of(lambda: forward_warp(image, disparity))
    print(json.dumps({"extra_gib": (peak_memory_bytes() - before) / 2**30, "seconds": seconds}))


def measure_memory(height: int, width: int, runs: int, generator: torch.Generator) -> list[Row]:
    """Run the probe in fresh processes. Must come first: a child inherits the peak of a parent that was larger."""
    command = [sys.executable, "-m", "benchmarks.warp", "--memory-probe", str(height), str(width)]
    answers = []
    for _ in range(runs):
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    extra = statistics.median(answer["extra_gib"] for answer in answers)
    seconds = [answer["seconds"] for answer in answers]
    image, disparity = torch.rand(3, 1, width, generator=generator), torch.rand(1, width, generator=generator)
    one_row = seconds_of(lambda: forward_warp_loop(image.numpy(), (disparity * width / 10).numpy()))
    size = f"{width}x{height}"
    return [
        Row(
            "forward_warp, peak memory above its inputs",
            size,
            memory_gib=extra,
            compared_with="results included",
            target=f"under {MAX_EXTRA_MEMORY_GIB} GiB",
            met=extra < MAX_EXTRA_MEMORY_GIB,
        ),
        Row("forward_warp, random disparity, first call of a process", size, seconds),
        Row(
            f"loop of tests/reference.py, one row times {height}",
            size,
            [one_row * height],
            compared_with="forward_warp",
            ratio=one_row * height / statistics.median(seconds),
        ),
    ]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each function (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every run here")
    parser.add_argument("--smoke", action="store_true", help="small images: checks the script, not the targets")
    parser.add_argument("--memory-probe", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1; got {arguments.runs}")
    return arguments


def main() -> None:
    """Measure, print a table, and exit with 1 if a target is missed."""
    arguments = parse_arguments()
    if arguments.memory_probe:
        probe_memory(*arguments.memory_probe)
        return
    torch.set_num_threads(1)
    runs = 1 if arguments.smoke else arguments.runs
    full_hd, ultra_hd = ((54, 96), (108, 192)) if arguments.smoke else ((1080, 1920), (2160, 3840))
    steps = [
        ("memory", measure_memory, ultra_hd, min(runs, 3)),
        ("warp", measure_warp, full_hd, runs),
        ("sharpening", measure_sharpening, full_hd, runs),
    ]
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    print("| What | Size | Median (range) | Compared | Target |\n| --- | --- | --- | --- | --- |", flush=True)
    for number, (name, measure, size, step_runs) in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {name} at {size[1]}x{size[0]} ...", file=sys.stderr, flush=True)
        for row in measure(*size, step_runs, generator):
            if arguments.smoke:
                row.target, row.met = "", None  # the targets are for the full sizes
            rows.append(row)
            print(row.as_markdown(), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.json.with_name(arguments.json.name + ".partial")
        record = {"torch": torch.__version__, "threads": 1, "runs": runs, "rows": [asdict(row) for row in rows]}
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, arguments.json)
    if any(row.met is False for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
