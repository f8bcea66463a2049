# SPDX-License-Identifier: Apache-2.0
"""Fill a pool of procedural stereo scenes; can be stopped at any moment and started again.

python -m training.render_scenes --pool pool --scenes 24000 --seed 0
python -m training.render_scenes --pool pool --scenes 24000 --seed 0 --worker 1 --workers 2   # one of two processes
python -m training.render_scenes --pool scenes/render-smoke --scenes 8 --height 48 --width 64   # CPU, seconds
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from training.scene_pool import ScenePool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True, help="folder to fill")
    parser.add_argument("--scenes", type=int, required=True, help="number of scenes of the whole pool")
    parser.add_argument("--seed", type=int, default=0, help="decides the scenes (default: %(default)s)")
    parser.add_argument("--height", type=int, default=192, help="pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--scenes-per-chunk", type=int, default=64, help="scenes in a file (default: %(default)s)")
    parser.add_argument("--worker", type=int, default=0, help="number of this process, from 0 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to render (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile first: a minute more, then faster")
    parsed = parser.parse_args(arguments)
    if not 0 <= parsed.worker < parsed.workers:
        parser.error(f"`--worker` must be in 0 ... {parsed.workers - 1}; got {parsed.worker}.")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Render every missing chunk of this worker's share."""
    options = parse_arguments(arguments)
    pool = ScenePool(
        options.pool,
        seed=options.seed,
        scenes=options.scenes,
        height=options.height,
        width=options.width,
        scenes_per_chunk=options.scenes_per_chunk,
        compiled=options.compile,
        device=options.device,
    )
    share = range(options.worker, pool.chunk_count, options.workers)
    with pool.renderer_at_work():
        for chunk in tqdm(share, desc=f"worker {options.worker}", unit="chunk"):
            pool.render_chunk(chunk)


if __name__ == "__main__":
    main()
