# SPDX-License-Identifier: Apache-2.0
"""How fast procedural stereo pairs are rendered, plain and compiled, and whether both are the same pictures.

python -m benchmarks.scene_rendering
python -m benchmarks.scene_rendering --pairs 4 --height 48 --width 64 --no-compile   # CPU, seconds
"""

import argparse
import time

import torch

from training.procedural_scenes import SceneBatch, render_scenes, scene_generator


def timed(pairs: int, height: int, width: int, device: str, compiled: bool) -> tuple[SceneBatch, float, float]:
    """Render once to warm up (and compile) and once for the clock: the pictures, wall seconds, processor seconds."""
    render_scenes(8, height, width, generator=scene_generator(0, 0, device), compiled=compiled)
    wall, processor = time.perf_counter(), time.process_time()
    batch = render_scenes(pairs, height, width, generator=scene_generator(0, 1, device), compiled=compiled)
    batch.left_image.cpu()  # waits for a GPU
    return batch, time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Print pairs per second and the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64, help="pairs to render (default: %(default)s)")
    parser.add_argument("--height", type=int, default=192, help="pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to render (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled run out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batches = []
    for compiled in [False] if options.no_compile else [False, True]:
        batch, wall, processor = timed(options.pairs, options.height, options.width, options.device, compiled)
        batches.append(batch)
        name = "compiled" if compiled else "plain"
        rates = f"{options.pairs / wall:.1f} pairs/s of wall time, {options.pairs / processor:.1f} of processor time"
        print(f"{name:9} {options.height}x{options.width}, {options.threads} thread(s): {rates}")
    if len(batches) == 2:
        for name, plain, compiled in zip(SceneBatch._fields, *batches, strict=True):
            difference = (plain - compiled).abs()
            print(f"{name:16} mean difference {difference.mean():.2e}, largest {difference.max():.2e}")


if __name__ == "__main__":
    main()
