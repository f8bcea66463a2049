# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of RAFT-Stereo and IGEV-Stereo, by stage, beside their convolutions and matrix products alone.

    python -m benchmarks.stereo_networks                        # CPU, one thread, some minutes; prints Markdown tables
    python -m benchmarks.stereo_networks --json out/nets.json   # and writes the figures
    python -m benchmarks.stereo_networks --memory               # peak memory at 3840x2160, one refinement, on the fly
    python -m benchmarks.stereo_networks --device cuda          # float32, fp16 and bf16, plain and compiled
    python -m benchmarks.stereo_networks --smoke                # small pictures, few refinements: does it still run?

On a CPU each network estimates one pair of 375x1242 with 32 refinements. Every convolution and every product of
matrices that it calls is noted with the shapes and the memory layout of its arguments; afterwards each kind is run
alone, on random numbers, and its time multiplied by how often it was called. The time of the network divided by their
sum is the figure with a target: at most 1.6. Times are processor time of one thread, so that other programs on the
machine count less than they would in seconds on the wall.

On a GPU: milliseconds per pair and peak memory in float32 and under autocast to fp16 and bf16, plain and compiled. For
comparison, ZeroStereo (arXiv 2501.08654) states 164 ms for Zero-RAFT-Stereo on an RTX 3090.

Weights are random: no figure depends on them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.layers import UPSAMPLING
from training.stereo_networks.raft_stereo import RAFTStereo
from training.stereo_networks.recurrent_stereo import SIZE_MULTIPLE, RecurrentStereo

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"raft": RAFTStereo, "igev": IGEVStereo}
FULL_SIZE = (375, 1242)  # KITTI
LARGE_SIZE = (2160, 3840)
SMOKE_SIZE = (40, 70)
MAX_RATIO = 1.6
PRODUCTS = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
)
STAGES = ("prepare", "look up", "refine", "enlarge")


class TensorKind(NamedTuple):
    """All that the time of a product depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Measured(NamedTuple):
    """One run of a network on a CPU, in seconds of processor time."""

    total: float
    stages: dict[str, float]
    products: float


def describe(argument: Any) -> Any:
    """Replace tensors by their kind, lists by tuples: something that can be counted."""
    if isinstance(argument, Tensor):
        return TensorKind(tuple(argument.shape), argument.stride(), argument.dtype)
    return tuple(describe(entry) for entry in argument) if isinstance(argument, (list, tuple)) else argument


def rebuild(description: Any) -> Any:
    """Make random tensors of the kinds that `describe` noted."""
    if isinstance(description, TensorKind):
        shape, stride, dtype = description
        return torch.empty_strided(shape, stride, dtype=dtype).normal_()
    return [rebuild(entry) for entry in description] if isinstance(description, tuple) else description


class ProductCounter(TorchDispatchMode):
    """Counts the convolutions and products of matrices that run inside it, by kind."""

    def __init__(self):
        super().__init__()
        self.calls: Counter[tuple] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call and run it."""
        if function in PRODUCTS:
            self.calls[function, describe(args)] += 1
        return function(*args, **(kwargs or {}))


def seconds_of(function: Callable[[], object]) -> float:
    """Run once and return the seconds of processor time it took."""
    start = time.process_time()
    function()
    return time.process_time() - start


def time_products(calls: Counter[tuple], runs: int) -> float:
    """Return the seconds that all calls take by themselves: of each kind the fastest of some runs, times its calls."""
    total = 0.0
    for (function, description), count in calls.items():
        arguments = rebuild(description)
        function(*arguments)
        total += count * min(seconds_of(lambda f=function, a=arguments: f(*a)) for _ in range(runs))
    return total


@contextmanager
def timed_stages(network: RecurrentStereo) -> Iterator[dict[str, float]]:
    """Give a table of seconds that fills up while the network runs inside."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, function: Callable) -> Callable:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            result = function(*arguments)
            seconds[stage] += time.process_time() - start
            return result

        return run

    prepare = timed("prepare", network.prepare)

    def prepare_and_watch(*arguments: Any) -> Any:
        state = prepare(*arguments)
        return state._replace(look_up=timed("look up", state.look_up))

    replaced = {"prepare": prepare_and_watch} | {
        name: timed(name, getattr(network, name)) for name in ("refine", "enlarge")
    }
    for name, function in replaced.items():
        object.__setattr__(network, name, function)
    try:
        yield seconds
    finally:
        for name in replaced:
            object.__delattr__(network, name)


def random_pair(size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return two random pictures, [1,3,H,W], 0..255."""
    generator = torch.Generator().manual_seed(0)
    left, right = 255 * torch.rand(2, 1, 3, *size, generator=generator)
    return left.to(device), right.to(device)


@torch.no_grad()
def measure_on_cpu(
    network: RecurrentStereo, size: tuple[int, int], iterations: int, runs: int, correlation: str
) -> Measured:
    """Time one network and its products; of several runs, the fastest."""
    pair = random_pair(size, "cpu")
    network(*pair, 1, correlation=correlation)  # first calls allocate and choose kernels
    fastest: tuple[float, dict[str, float]] | None = None
    for _ in range(runs):
        with timed_stages(network) as stages:
            total = seconds_of(lambda: network(*pair, iterations, correlation=correlation))
        if fastest is None or total < fastest[0]:
            fastest = total, stages
    assert fastest is not None
    with ProductCounter() as counter:
        network(*pair, 2, correlation=correlation)
        two = Counter(counter.calls)
        network(*pair, 1, correlation=correlation)
    one = counter.calls - two
    per_iteration = two - one
    calls = one + Counter({kind: (iterations - 1) * count for kind, count in per_iteration.items()})
    return Measured(fastest[0], fastest[1], time_products(calls, runs=3))


def cpu_table(names: list[str], size: tuple[int, int], iterations: int, runs: int, smoke: bool) -> list[dict]:
    """Measure and print one row for each network and way to look up."""
    print(f"| Network, {size[0]}x{size[1]}, {iterations} refinements | " + " | ".join(STAGES) + " | total |", end=" ")
    print("products alone | ratio | target |\n|" + " --- |" * (len(STAGES) + 5), flush=True)
    rows = []
    for name in names:
        network = NETWORKS[name]().eval()
        measured = measure_on_cpu(network, size, iterations, runs, "all_pairs")
        ratio = measured.total / measured.products
        met = ratio <= MAX_RATIO
        stages = " | ".join(f"{measured.stages[stage]:.3g} s" for stage in STAGES)
        target = "" if smoke else f"at most {MAX_RATIO}: {'met' if met else 'MISSED'}"
        print(
            f"| {name} | {stages} | {measured.total:.3g} s | {measured.products:.3g} s | {ratio:.2f} | {target} |",
            flush=True,
        )
        row = {"network": name, "size": size, "iterations": iterations, "ratio": ratio, "met": smoke or met}
        rows.append({**row, **measured._asdict()})
    return rows


@torch.no_grad()
def measure_on_gpu(
    network: RecurrentStereo, size: tuple[int, int], iterations: int, runs: int, dtype: torch.dtype, compiled: bool
) -> tuple[float, float]:
    """Return (milliseconds per pair, median of the runs; peak memory in GiB, weights included)."""
    pair = random_pair(size, "cuda")
    forward = torch.compile(network.forward) if compiled else network.forward

    def run() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            forward(*pair, iterations)
        torch.cuda.synchronize()

    for _ in range(3):
        run()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2], torch.cuda.max_memory_allocated() / 2**30


def gpu_table(names: list[str], size: tuple[int, int], iterations: int, runs: int) -> list[dict]:
    """Measure and print one row for each network, precision, and plain or compiled."""
    print(f"{torch.cuda.get_device_name()}; {size[0]}x{size[1]}, {iterations} refinements\n")
    print(
        "| Network | Precision | Compiled | ms per pair | Peak memory |\n| --- | --- | --- | ---: | ---: |", flush=True
    )
    rows = []
    for name in names:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for compiled in (False, True):
                torch.compiler.reset()
                network = NETWORKS[name]().eval().to("cuda")
                milliseconds, memory = measure_on_gpu(network, size, iterations, runs, dtype, compiled)
                precision = str(dtype).removeprefix("torch.")
                print(f"| {name} | {precision} | {compiled} | {milliseconds:.1f} | {memory:.2f} GiB |", flush=True)
                row = {"network": name, "precision": precision, "compiled": compiled, "size": size}
                rows.append({**row, "iterations": iterations, "ms_per_pair": milliseconds, "peak_gib": memory})
    return rows


@torch.no_grad()
def probe_memory(name: str, height: int, width: int) -> None:
    """Print, as JSON, the peak memory of one estimate above the start of a process of its own."""
    network = NETWORKS[name]().eval()
    network(*random_pair(SMOKE_SIZE, "cpu"), 1)  # lazily loaded code is not the estimate's memory
    pair = random_pair((height, width), "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = seconds_of(lambda: network(*pair, 1, correlation="on_the_fly"))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # Linux counts KiB
    print(json.dumps({"network": name, "size": [height, width], "extra_gib": extra, "seconds": seconds}))


def memory_table(names: list[str], size: tuple[int, int]) -> list[dict]:
    """Probe each network in a fresh process and print one row for it."""
    print(f"| Network, {size[0]}x{size[1]}, one refinement | peak memory | all pairs alone would take | seconds |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    rows = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.stereo_networks", "--memory-probe", name, *map(str, size)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        h, w = (-(-length // SIZE_MULTIPLE) * SIZE_MULTIPLE // UPSAMPLING for length in size)
        levels = NETWORKS[name]().config.correlation_levels
        all_pairs = 4 * h * w * sum(w // 2**level + 2 for level in range(levels)) / 2**30
        print(f"| {name} | {row['extra_gib']:.2f} GiB | {all_pairs:.2f} GiB | {row['seconds']:.0f} |", flush=True)
        rows.append({**row, "all_pairs_gib": all_pairs})
    return rows


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=[*NETWORKS, "both"], default="both", help="which (default: both)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--iterations", type=int, default=32, help="refinements (default: 32)")
    parser.add_argument("--runs", type=int, default=1, help="timed runs (default: 1; more on a GPU)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--memory", action="store_true", help="measure memory on a large picture instead of time")
    parser.add_argument("--memory-probe", nargs=3, metavar=("NETWORK", "HEIGHT", "WIDTH"), help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="small pictures: checks the script, not the target")
    arguments = parser.parse_args()
    for name in ("iterations", "runs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(arguments, name)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and torch sees none")
    return arguments


def main() -> None:
    """Measure, print tables, and exit with 1 if the target is missed."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.memory_probe:
        name, height, width = arguments.memory_probe
        probe_memory(name, int(height), int(width))
        return
    size = SMOKE_SIZE if arguments.smoke else FULL_SIZE
    iterations = min(arguments.iterations, 3) if arguments.smoke else arguments.iterations
    names = list(NETWORKS) if arguments.network == "both" else [arguments.network]
    if arguments.memory:
        rows = memory_table(names, SMOKE_SIZE if arguments.smoke else LARGE_SIZE)
    elif arguments.device == "cuda":
        rows = gpu_table(names, size, iterations, arguments.runs)
    else:
        rows = cpu_table(names, size, iterations, arguments.runs, arguments.smoke)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.json.with_name(arguments.json.name + ".partial")
        partial.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=2) + "\n")
        os.replace(partial, arguments.json)
    if not all(row.get("met", True) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
