# SPDX-License-Identifier: Apache-2.0
"""A data set built in peace, and the same one killed at random moments and resumed: are the bytes equal?

    python -m benchmarks.interrupted_build                                # 216 photographs, 10 kills, minutes
    python -m benchmarks.interrupted_build --json out/interrupted.json
    python -m benchmarks.interrupted_build --photos 12 --kills 2          # CPU smoke

The photographs are crops of several sizes, cut from the pictures of examples/ and of scikit-image, stored as JPEG and
PNG. Both builds run `datasets_builder.generate_pairs` with the embedded weights in processes of their own; the second
is killed with SIGKILL, which a process cannot see coming, at moments drawn anew from between its start and its
end. Compared are all shards and the manifest, byte by byte. Exit code 1 if one differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import skimage.data

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((192, 128), (160, 160), (128, 192), (256, 144))  # width, height
PAIRS_PER_SHARD = 16
NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def write_crops(folder: Path, count: int, seed: int = 0) -> None:
    """Write so many crops of photographs, all different: JPEG and PNG by turns."""
    generator = np.random.default_rng(seed)
    pictures = [PIL.Image.fromarray(np.asarray(getattr(skimage.data, name)())[..., :3]) for name in NAMES]
    folder.mkdir(parents=True)
    for number in range(count):
        picture, (width, height) = pictures[number % len(pictures)], SIZES[number % 7 % len(SIZES)]
        left = int(generator.integers(picture.width - width + 1))
        top = int(generator.integers(picture.height - height + 1))
        crop = picture.crop((left, top, left + width, top + height))
        crop.save(folder / f"{number:04d}.{'jpg' if number % 2 else 'png'}", quality=92)


def start_build(photos: Path, output: Path) -> subprocess.Popen:
    """Start a build in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "datasets_builder.generate_pairs",
        "--photos",
        str(photos),
        "--output",
        str(output),
    ]
    return subprocess.Popen(
        [*command, "--pairs-per-shard", str(PAIRS_PER_SHARD), "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def whole_build(photos: Path, output: Path) -> float:
    """Build without disturbance; returns the seconds."""
    started = time.monotonic()
    if start_build(photos, output).wait() != 0:
        raise RuntimeError(f"the build of {photos} failed")
    return time.monotonic() - started


def killed_build(photos: Path, output: Path, kills: int, seconds: float, seed: int) -> list[float]:
    """Build, killed so many times at random moments; returns after how many seconds of its life each process died.

    A moment is drawn from up to the time that an equal share of the whole build may take, start included, so that
    kills fall into planning, into shards and between them. A process that ends first is not counted as killed.
    """
    draws = random.Random(seed)
    start_up = 0.35 * seconds / (kills + 1) + 4.0  # import and loading of weights
    lives = []
    while len(lives) < kills:
        process = start_build(photos, output)
        life = draws.uniform(0.0, start_up + seconds / (kills + 1))
        try:
            process.wait(timeout=life)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            lives.append(life)
            continue
        break
    whole_build(photos, output)
    return lives


def compare(first: Path, second: Path) -> list[str]:
    """Return the names of the published files that differ or are missing on one side."""
    names = {path.relative_to(folder).as_posix() for folder in (first, second) for path in folder.glob("data/*")}
    names |= {"manifest.json", "rejected.jsonl"}

    def content(folder: Path, name: str) -> bytes | None:
        return (folder / name).read_bytes() if (folder / name).is_file() else None

    return sorted(name for name in names if content(first, name) != content(second, name))


def measure(photos: int, kills: int, seed: int) -> dict[str, Any]:
    """Build both and compare."""
    with tempfile.TemporaryDirectory() as folder:
        source, whole, killed = (Path(folder) / name for name in ("photos", "whole", "killed"))
        write_crops(source, photos)
        seconds = whole_build(source, whole)
        print(f"undisturbed: {seconds:.0f} s", file=sys.stderr, flush=True)
        lives = killed_build(source, killed, kills, seconds, seed)
        manifest = json.loads((whole / "manifest.json").read_text())
        return {
            "photos": photos,
            "shards": len(manifest["shards"]),
            "pairs": manifest["counts"]["pairs"],
            "seconds_undisturbed": seconds,
            "killed_after_s": lives,
            "differing_files": compare(whole, killed),
            "leftovers": sorted(path.name for path in (killed / ".build" / "unfinished").iterdir()),
        }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; exit code 1 if a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=216, help="(default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    figures = measure(options.photos, options.kills, options.seed)
    moments = ", ".join(f"{life:.1f}" for life in figures["killed_after_s"])
    print(f"{figures['pairs']} pairs of {figures['photos']} photographs in {figures['shards']} shards")
    print(f"killed {len(figures['killed_after_s'])} times, after {moments} s of a process's life")
    print(f"differing files: {', '.join(figures['differing_files']) or 'none'}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(json.dumps(figures, indent=2) + "\n")
        os.replace(partial, options.json)
    return 1 if figures["differing_files"] or figures["leftovers"] else 0


if __name__ == "__main__":
    sys.exit(main())
