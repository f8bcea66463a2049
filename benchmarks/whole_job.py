# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the whole job: a photograph of 640x480 through synthesize.py, with its defaults, on two threads.

    python -m benchmarks.whole_job                            # three fresh processes, under a minute; prints Markdown
    python -m benchmarks.whole_job --json out/whole_job.json  # and writes the figures of every run
    python -m benchmarks.whole_job --runs 1                   # CPU smoke, seconds

Every run is a process of its own. Counted is what comes after the import of synthesize.py: load the weights, read the
photograph, run, write every file. The stages are timed inside that very run; "other" is what lies between them
(reading the photograph, the libraries that are imported while the weights load are part of "load"). Peak memory is
the largest resident size of the process, libraries included. The table shows the median of the runs. Seconds are those
of the clock: measure on a machine that does nothing else. Processor time beside them shows whether it did.

Targets: under 10 s after import, and under 2 GiB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import PIL.Image
import PIL.ImageOps

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples" / "coffee.png"
SIZE = (640, 480)
THREADS = 2
MAX_SECONDS = 10.0
MAX_MEMORY_GIB = 2.0
STAGES = ("load", "depth", "sharpen", "warp", "inpaint", "write")


def time_calls(owner: Any, name: str, stage: str, seconds: dict[str, float]) -> None:
    """Replace owner.name by itself with a stopwatch that adds to seconds[stage]; for one process's lifetime."""
    original: Callable = getattr(owner, name)

    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*arguments, **keywords)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

    setattr(owner, name, staticmethod(timed) if isinstance(original, MethodType) else timed)


def probe(photo: str, output: str, weights: str) -> None:
    """Do the job in this process and print its figures as JSON."""
    start = time.perf_counter()
    import torch

    import pipeline_zerostereo
    import synthesize
    from benchmarks.warp import peak_memory_bytes

    import_seconds = time.perf_counter() - start
    torch.set_num_threads(THREADS)
    seconds: dict[str, float] = {}
    pipeline_class = pipeline_zerostereo.ZeroStereoPipeline
    time_calls(pipeline_class, "from_pretrained", "load", seconds)
    time_calls(pipeline_class, "estimate_inverse_depth", "depth", seconds)
    time_calls(pipeline_class, "select_disparity", "sharpen", seconds)
    time_calls(pipeline_zerostereo, "forward_warp", "warp", seconds)
    time_calls(pipeline_class, "inpaint", "inpaint", seconds)
    time_calls(synthesize, "write_result", "write", seconds)
    start, processor_start = time.perf_counter(), time.process_time()
    exit_code = synthesize.main([photo, "--output", output, "--weights", weights, "--device", "cpu"])
    total, processor = time.perf_counter() - start, time.process_time() - processor_start
    if exit_code:
        sys.exit(exit_code)
    figures = {"import": import_seconds, "total": total, "processor": processor, **seconds}
    figures["other"] = total - sum(seconds.values())
    print(json.dumps({"seconds": figures, "peak_gib": peak_memory_bytes() / 2**30}))


def run_once(photo: Path, output: Path, weights: Path) -> dict[str, Any]:
    """Do the job in a fresh process and return its figures."""
    command = [sys.executable, "-m", "benchmarks.whole_job", "--probe", str(photo), str(output)]
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [*command, "--weights", str(weights)],
        cwd=ROOT,
        env={**os.environ, **threads},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(runs: int, weights: Path) -> list[dict[str, Any]]:
    """Bring the photograph to size in a temporary folder and do the job `runs` times."""
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / PHOTO.name
        with PIL.Image.open(PHOTO) as opened:
            PIL.ImageOps.fit(opened.convert("RGB"), SIZE).save(photo)
        for number in range(1, runs + 1):
            print(f"[{number}/{runs}] {photo.name} at {SIZE[0]}x{SIZE[1]} ...", file=sys.stderr, flush=True)
            answers.append(run_once(photo, Path(folder) / f"out{number}", weights))
    return answers


def medians(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median over the runs of each stage's seconds, and of the peak memory as `peak_gib`."""
    stages = [*STAGES, "other", "total", "processor", "import"]
    result = {stage: statistics.median(answer["seconds"].get(stage, 0.0) for answer in answers) for stage in stages}
    return {**result, "peak_gib": statistics.median(answer["peak_gib"] for answer in answers)}


def table(figures: dict[str, float]) -> str:
    """Return the Markdown table of the medians beside the targets."""
    lines = ["| Stage | Median | Target |", "| --- | ---: | --- |"]
    lines += [f"| {stage} | {figures[stage]:.2f} s | |" for stage in (*STAGES, "other")]
    for name, value, limit, unit in (
        ("whole job, after import", figures["total"], MAX_SECONDS, "s"),
        ("peak memory", figures["peak_gib"], MAX_MEMORY_GIB, "GiB"),
    ):
        lines.append(
            f"| {name} | {value:.2f} {unit} | under {limit:g} {unit}: {'met' if value < limit else 'MISSED'} |"
        )
    lines.append(f"| processor time of both threads, after import | {figures['processor']:.2f} s | |")
    return "\n".join([*lines, f"| import, not counted | {figures['import']:.2f} s | |"])


def targets_are_met(figures: dict[str, float]) -> bool:
    """Tell whether time and memory stay under their limits."""
    return figures["total"] < MAX_SECONDS and figures["peak_gib"] < MAX_MEMORY_GIB


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="fresh processes (default: %(default)s)")
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "weights" / "zerostereo-tiny", metavar="DIR", help="pipeline folder"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every run here")
    parser.add_argument("--probe", nargs=2, metavar=("PHOTO", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"--runs must be at least 1; got {options.runs}")
    if not options.weights.is_dir():
        parser.error(f"--weights must be a pipeline folder; got {options.weights}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table; the exit code is 1 if a target is missed."""
    options = parse_arguments(arguments)
    if options.probe:
        probe(*options.probe, str(options.weights))
        return 0
    answers = measure(options.runs, options.weights.resolve())
    figures = medians(answers)
    print(f"One photograph of {SIZE[0]}x{SIZE[1]}, {THREADS} threads, median of {options.runs}\n\n{table(figures)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        partial = options.json.with_name(options.json.name + ".partial")
        record = {"size": SIZE, "threads": THREADS, "median": figures, "runs": answers}
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, options.json)
    return 0 if targets_are_met(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
