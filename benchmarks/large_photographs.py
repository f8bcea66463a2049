# SPDX-License-Identifier: Apache-2.0
"""Large photographs: time, memory and quality of each way to fill the holes, beside filling without a bound.

    python -m benchmarks.large_photographs                                    # 3840x2160, 2 scenes, CPU, many minutes
    python -m benchmarks.large_photographs --json out/large.json              # and writes every figure
    python -m benchmarks.large_photographs --height 270 --width 480 --scenes 1    # CPU smoke, a minute; no target

The photograph is the left view of a held-out procedural scene, so the true right view is known. Quality: the scene is
warped by its true disparity and its holes are filled, each way with the same noise generator; the figures are those
of benchmarks/embedded_quality.py, over the hole pixels of all scenes together. Each way of each scene runs in its own
process, because peak memory (largest resident size, libraries included) cannot be told apart within one; there the
photograph goes through the whole call, from the PIL image to the PIL images of the pair.

Seams: the mean absolute difference of two neighbouring pixels, both in holes, with a tile's border between them, over
the same mean without a border. 1 is no seam. What is in a hole differs more from place to place than a seam adds, so
"near" compares with pairs at most 32 px from that border; "all" with every other pair. Borders are those of
`fill="tiled"`; the other ways at the same places tell what chance gives.

Targets: under 3 GiB for "whole" and "tiled"; seams of "tiled" at most 1.2.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.embedded_quality import HELD_OUT_SEED, FillScore
from benchmarks.warp import peak_memory_bytes
from pipeline_zerostereo import StereoImageProcessor, ZeroStereoPipeline, forward_warp, pad_to_multiple, place_tiles
from training.procedural_scenes import SceneBatch, render_scenes, scene_generator
from training.run import write_text_atomically

ROOT = Path(__file__).resolve().parent.parent
WAYS: dict[str, dict[str, Any]] = {
    "background": {"fill": "background"},
    "whole (default)": {"fill": "whole"},
    "tiled": {"fill": "tiled"},
    "whole, unbounded": {"fill": "whole", "inpaint_resolution": 0},
}
BOUNDED = ("whole (default)", "tiled")  # the ways whose memory has a target
MAX_MEMORY_GIB = 3.0
MAX_SEAM = 1.2
NEAR_PX = 32
DISPARITY_SCALE = 0.06
THREADS = 2


class Means:
    """Sum and number of some values."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Add values of any shape."""
        self.total += float(values.double().sum())
        self.count += values.numel()

    def over(self, other: "Means") -> float:
        """Return the ratio of the two means; NaN where there is none."""
        if not self.count or not other.count or not other.total:
            return math.nan
        return (self.total / self.count) / (other.total / other.count)


class SeamScore:
    """Absolute differences of neighbouring hole pixels: across tile borders, near them, and everywhere else."""

    def __init__(self):
        self.across, self.near, self.elsewhere = Means(), Means(), Means()

    def add(self, filled: Tensor, holes: Tensor, rows: list[int], columns: list[int]) -> None:
        """Add views [B,C,H,W] with holes [B,1,H,W]; a border lies before each of the rows and columns."""
        for axis, borders in ((-2, rows), (-1, columns)):
            length = filled.shape[axis] - 1
            one, two = (filled.narrow(axis, start, length) for start in (0, 1))
            difference = (one - two).abs().mean(1, keepdim=True)
            both = holes.narrow(axis, 0, length) & holes.narrow(axis, 1, length)
            at_border, near = torch.zeros_like(both), torch.zeros_like(both)
            for border in borders:
                start, end = max(0, border - 1 - NEAR_PX), min(length, border + NEAR_PX)
                near.narrow(axis, start, end - start).fill_(True)
            for border in borders:
                at_border.narrow(axis, border - 1, 1).fill_(True)
            self.across.add(difference[both & at_border])
            self.near.add(difference[both & near & ~at_border])
            self.elsewhere.add(difference[both & ~at_border])


def tile_borders(pipe: ZeroStereoPipeline, height: int, width: int) -> tuple[list[int], list[int]]:
    """Return the rows and columns of the picture before which a tile of `fill="tiled"` begins or ends."""
    factor = pipe.vae_scale_factor
    padded, padding = pad_to_multiple(torch.zeros(1, 1, height, width), factor)
    latent_height, latent_width = (length // factor for length in padded.shape[-2:])
    tiles = place_tiles(latent_height, latent_width, max(1, pipe.config.tile_size // factor))
    rows = {factor * edge - padding.top for tile in tiles for edge in (tile.top, tile.bottom)}
    columns = {factor * edge - padding.left for tile in tiles for edge in (tile.left, tile.right)}
    return sorted(row for row in rows if 0 < row < height), sorted(x for x in columns if 0 < x < width)


def probe(way: str, scene_file: str, index: int, weights: str) -> None:
    """Fill one scene one way in this process, and print time, memory and the filled view's file."""
    torch.set_num_threads(THREADS)
    scene = SceneBatch(*torch.load(scene_file, weights_only=True))
    photo = StereoImageProcessor.postprocess(scene.left_image, "pil")[0]
    pipe = ZeroStereoPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(index)
    kept = scene.left_image, scene.left_disparity
    del scene
    start = time.perf_counter()
    pipe(photo, disparity_scale=DISPARITY_SCALE, generator=generator, **WAYS[way])
    seconds, peak = time.perf_counter() - start, peak_memory_bytes() / 2**30
    warp = forward_warp(*kept)
    filled = pipe.inpaint(
        warp.right_image,
        warp.right_hole_mask,
        warp.right_disparity,
        generator=torch.Generator().manual_seed(index),
        **WAYS[way],
    )
    file = str(Path(scene_file).with_name("filled.pt"))
    torch.save((filled.half(), warp.right_hole_mask), file)
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "file": file}))


def run_probe(way: str, scene_file: Path, index: int, weights: Path) -> dict[str, Any]:
    """Fill one scene one way in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.large_photographs", "--weights", str(weights)]
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [*command, "--probe", way, str(scene_file), str(index)],
        cwd=ROOT,
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        return {"seconds": math.nan, "peak_gib": math.inf, "file": None, "exit_code": done.returncode}
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Fill every scene every way and return the figures of each way."""
    pipe = ZeroStereoPipeline.from_pretrained(options.weights)
    rows, columns = tile_borders(pipe, options.height, options.width)
    scores = {way: (FillScore(way, classical=False), SeamScore()) for way in WAYS}
    answers: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        scene_file = Path(folder) / "scene.pt"
        for index in range(options.scenes):
            scene = render_scenes(1, options.height, options.width, generator=scene_generator(HELD_OUT_SEED, index))
            torch.save(tuple(scene), scene_file)
            for way in WAYS:
                print(f"[{index + 1}/{options.scenes}] {way} ...", file=sys.stderr, flush=True)
                answer = run_probe(way, scene_file, index, options.weights)
                answers[way].append(answer)
                if answer["file"] is None:
                    continue
                filled, holes = torch.load(answer.pop("file"), weights_only=True)
                scores[way][0].add(filled.float(), scene.right_image, holes)
                scores[way][1].add(filled.float(), holes, rows, columns)
    return {
        way: {
            **score.figures(),
            "seam_near": seam.across.over(seam.near),
            "seam_all": seam.across.over(seam.elsewhere),
            "seam_pairs": seam.across.count,
            "seconds": sum(answer["seconds"] for answer in answers[way]) / options.scenes,
            "peak_gib": max(answer["peak_gib"] for answer in answers[way]),
            "runs": answers[way],
        }
        for way, (score, seam) in scores.items()
    }


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| Fill | Peak memory | Seconds | Holes, PSNR | SSIM | Texture | Seams, near | all |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, row in figures.items():
        cells = [
            f"{row['peak_gib']:.2f} GiB",
            f"{row['seconds']:.1f}",
            f"{row['psnr_db']:.2f} dB",
            f"{row['ssim']:.3f}",
        ]
        cells += [f"{row[name]:.2f}" for name in ("gradient_energy_ratio", "seam_near", "seam_all")]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(figures: dict[str, dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return each target and whether it is met."""
    targets = [(f"{way}: under {MAX_MEMORY_GIB:g} GiB", figures[way]["peak_gib"] < MAX_MEMORY_GIB) for way in BOUNDED]
    return [*targets, (f"tiled: seams at most {MAX_SEAM}", figures["tiled"]["seam_near"] <= MAX_SEAM)]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=2160, help="px (default: %(default)s)")
    parser.add_argument("--width", type=int, default=3840, help="px (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=2, help="photographs (default: %(default)s)")
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "weights" / "zerostereo-tiny", metavar="DIR", help="pipeline folder"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--probe", nargs=3, metavar=("WAY", "SCENE", "INDEX"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("height", "width", "scenes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(options, name)}")
    if not options.weights.is_dir():
        parser.error(f"--weights must be a pipeline folder; got {options.weights}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table; the exit code is 1 if a target is missed."""
    options = parse_arguments(arguments)
    options.weights = options.weights.resolve()
    if options.probe:
        way, scene_file, index = options.probe
        probe(way, scene_file, int(index), str(options.weights))
        return 0
    figures = measure(options)
    print(f"{options.width}x{options.height}, {options.scenes} scene(s), {THREADS} threads\n\n{table(figures)}\n")
    targets = judge(figures)
    print("\n".join(f"{'met' if met else 'MISSED'}: {target}" for target, met in targets))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(options.json, json.dumps(figures, indent=2) + "\n")
    return 0 if all(met for _, met in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
