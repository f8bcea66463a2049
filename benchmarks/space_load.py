# SPDX-License-Identifier: Apache-2.0
"""The web page under load: first answer, latency, many requests at once, cancelling, memory after many requests.

    python -m benchmarks.space_load --json benchmarks/results/space_load.json     # several minutes on two cores
    python -m benchmarks.space_load --quick                                       # a smoke; no target

The page is served in a process of its own, with the embedded weights, and called through gradio_client. A request is
`/stereo_pair`: it makes the pair and writes every file of it, the video and the archive too; a visitor of the page
sees the pair before that. Photographs are cut from an example, each another one, so that the depth network runs.

- Start: from the start of the process until it answers, and until the first pair is there.
- At once: requests of as many clients as asked for, each with another seed. Each must answer with its own seed and
  the very pixels that the pipeline gives when it is called directly, with as many threads, or say that the queue is
  full.
- Memory: resident size of the server after blocks of requests by two users at the same time, mixed sizes, some
  cancelled while they run. After a cancel, the time until the device is free is measured.

Targets: every answer right or refused for a full queue; memory after all blocks at most 5 % above that
after the first.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from gradio_client import Client, handle_file

from benchmarks.embedded_quality import finite_or_none, versions
from pipeline_zerostereo import ZeroStereoPipeline
from tests.space_server import ROOT, WEIGHTS, ServedSpace, served_space
from training.run import write_text_atomically

PHOTO = ROOT / "examples" / "coffee.png"
WARM_SIZE = (600, 400)  # width, height in px
PARALLEL_SIZE = (192, 128)
MIXED_SIZES = ((160, 120), (320, 240), (240, 320), (480, 360), (640, 480))
CANCELLED_STEPS = 100  # enough to be running still when it is cancelled
MAX_GROWTH = 0.05
FULL = "queue is full"
FREE = "Cancelled"


@dataclass(frozen=True)
class Load:
    """How much is asked of the page.

    Attributes:
        warm: requests one after the other.
        parallel: requests at once.
        blocks: after each of which memory is read.
        block: requests of a block, by two users in turn.
        cancel_every: one in so many requests of a block is cancelled.
    """

    warm: int = 8
    parallel: int = 50
    blocks: int = 10
    block: int = 20
    cancel_every: int = 7


QUICK = Load(warm=1, parallel=2, blocks=2, block=2, cancel_every=2)


def cut_photo(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Cut a photograph of a size (width, height) from the example, at a place of its own; returns the PNG file."""
    path = folder / f"photo_{number}_{size[0]}x{size[1]}.png"
    with PIL.Image.open(PHOTO) as photo:
        left, top = 7 * number % 60, 5 * number % 40
        cut = photo.convert("RGB").crop((left, top, photo.width - 60 + left, photo.height - 40 + top))
        cut.resize(size, PIL.Image.Resampling.LANCZOS).save(path)
    return path


def resident_mib(process_id: int) -> float:
    """Return the resident memory of a process in MiB, as Linux tells it."""
    pages = Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def pixels_checksum(image: PIL.Image.Image) -> str:
    """Return the SHA-256 of the decoded pixels."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def make_client(served: ServedSpace, folder: Path) -> Client:
    """Connect a client of its own session; what it downloads goes below `folder`."""
    return Client(served.url, verbose=False, download_files=str(folder))


def ask(client: Client, photo: Path, **arguments: Any) -> tuple:
    """Ask for a pair and all its files."""
    return client.predict(handle_file(str(photo)), api_name="/stereo_pair", **arguments)


def timed(function: Callable[[], Any]) -> float:
    """Return how long a call takes, in s."""
    started = time.monotonic()
    function()
    return time.monotonic() - started


def run_all(functions: list[Callable[[], Any]]) -> None:
    """Run functions at once, each in its thread, and wait for all.

    Raises:
        RuntimeError: one of them raised, with its error as the cause.
    """
    errors: list[Exception] = []

    def guard(function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(functions)} threads failed.") from errors[0]


def measure_latency(served: ServedSpace, folder: Path, warm: int) -> dict[str, float]:
    """Measure the first answer and the following ones, in s."""
    client = make_client(served, folder)
    first = timed(lambda: ask(client, cut_photo(folder, 0, WARM_SIZE)))
    new = [timed(lambda n=n: ask(client, cut_photo(folder, n, WARM_SIZE))) for n in range(1, warm + 1)]
    same_photo = cut_photo(folder, warm, WARM_SIZE)
    again = [timed(lambda n=n: ask(client, same_photo, strength_percent=3 + n / 10)) for n in range(warm)]
    pictures = [
        timed(lambda n=n: client.predict("dubois", n, api_name="/anaglyph"))  # no network runs
        for n in range(warm)
    ]
    client.close()
    return {
        "start_s": served.start_s,
        "start_to_first_pair_s": served.start_s + first,
        "new_photograph_s": statistics.median(new),
        "same_photograph_other_strength_s": statistics.median(again),
        "anaglyph_of_last_pair_s": statistics.median(pictures),
    }


def expected_checksums(photo: Path, count: int) -> list[str]:
    """Call the pipeline directly, once for each seed from 0, and return the checksums of the right views."""
    pipe: Any = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    with PIL.Image.open(photo) as image:
        depth, _ = pipe.estimate_inverse_depth(image)
        return [
            pixels_checksum(
                pipe(
                    image,
                    inverse_depth=depth[0, 0].cpu().numpy(),
                    disparity_scale=0.06,
                    num_inference_steps=1,
                    generator=torch.Generator().manual_seed(seed),
                ).right_image[0]
            )
            for seed in range(count)
        ]


def measure_parallel(served: ServedSpace, folder: Path, count: int) -> dict[str, float]:
    """Ask for pairs at once, each as a user of its own, and count the outcomes."""
    photo = cut_photo(folder, 0, PARALLEL_SIZE)
    expected = expected_checksums(photo, count)
    clients = [make_client(served, folder / f"client_{number}") for number in range(count)]
    outcomes: Counter[str] = Counter()

    def ask_one(seed: int) -> None:
        try:
            _, right, _, _, parameters = ask(clients[seed], photo, seed=seed)
        except Exception as error:  # the client's errors have no class of their own; others are counted as wrong
            outcomes["full" if FULL in str(error).lower() else f"failed: {error}"] += 1
            return
        with PIL.Image.open(right) as image:
            is_right = parameters["seed"] == seed and pixels_checksum(image) == expected[seed]
        outcomes["right" if is_right else "wrong"] += 1

    elapsed = timed(lambda: run_all([lambda seed=seed: ask_one(seed) for seed in range(count)]))
    for client in clients:
        client.close()
    bad = count - outcomes["right"] - outcomes["full"]
    for outcome, times in outcomes.items():
        if outcome not in ("right", "full"):
            print(f"  {times} times {outcome}", flush=True)
    return {
        "requests": count,
        "right": outcomes["right"],
        "queue_full": outcomes["full"],
        "bad": bad,
        "elapsed_s": elapsed,
    }


def cancel_one(client: Client, photo: Path) -> float:
    """Ask for a long run, cancel it while it runs, and return the time from there until it ended, in s.

    Raises:
        RuntimeError: it was answered, or failed for another reason.
    """
    job = client.submit(handle_file(str(photo)), steps=CANCELLED_STEPS, api_name="/stereo_pair")
    while not job.done() and client.predict(api_name="/cancel") != "Cancelled.":
        time.sleep(0.05)  # it waits in the queue
    started = time.monotonic()
    error = job.exception()
    if error is None or FREE not in str(error):
        raise RuntimeError("A request that was cancelled was not.") from error
    return time.monotonic() - started


def measure_memory(served: ServedSpace, folder: Path, load: Load) -> dict[str, Any]:
    """Read the server's memory after each block of requests of two users; returns MiB, and s until cancelled."""
    users = [make_client(served, folder / name) for name in ("ann", "bob")]
    memory: list[float] = []
    cancelled: list[float] = []

    def work(user: int, numbers: range) -> None:
        for number in numbers:
            photo = cut_photo(folder, number, MIXED_SIZES[number % len(MIXED_SIZES)])
            if number % load.cancel_every == load.cancel_every - 1:
                cancelled.append(cancel_one(users[user], photo))
            else:
                ask(users[user], photo, seed=number, target_view=("right", "left", "both")[number % 3])

    for block in range(load.blocks):
        numbers = range(block * load.block, (block + 1) * load.block)
        run_all([lambda user=user, numbers=numbers: work(user, numbers[user::2]) for user in range(len(users))])
        memory.append(resident_mib(served.process_id))
        print(f"  after {numbers.stop} requests: {memory[-1]:.0f} MiB", flush=True)
    for client in users:
        client.close()
    return {
        "requests_per_block": load.block,
        "mib_after_blocks": memory,
        "growth": memory[-1] / memory[0] - 1,
        "cancelled": len(cancelled),
        "cancelled_longest_s": max(cancelled),
    }


def judge(figures: dict[str, Any]) -> dict[str, bool]:
    """Return the targets and whether each is met."""
    return {
        "every answer right, or refused for a full queue": figures["parallel"]["bad"] == 0,
        f"memory grows by at most {MAX_GROWTH:.0%}": figures["memory"]["growth"] <= MAX_GROWTH,
    }


def table(figures: dict[str, Any]) -> str:
    """Write the figures as a table."""
    latency, parallel, memory = figures["latency"], figures["parallel"], figures["memory"]
    sizes, count = memory["mib_after_blocks"], memory["requests_per_block"]
    rows = (
        ("start until the page answers", f"{latency['start_s']:.1f} s"),
        ("start until the first pair with all files", f"{latency['start_to_first_pair_s']:.1f} s"),
        ("pair with all files, new photograph", f"{latency['new_photograph_s']:.2f} s"),
        ("pair with all files, other strength", f"{latency['same_photograph_other_strength_s']:.2f} s"),
        ("other anaglyph of the last pair", f"{latency['anaglyph_of_last_pair_s']:.2f} s"),
        (
            f"{parallel['requests']} requests at once",
            f"{parallel['right']} right, {parallel['queue_full']} told that the queue is full, "
            f"{parallel['bad']} bad, {parallel['elapsed_s']:.0f} s",
        ),
        (f"memory after {count} requests", f"{sizes[0]:.0f} MiB"),
        (f"memory after {count * len(sizes)} requests", f"{sizes[-1]:.0f} MiB ({memory['growth']:+.1%})"),
        (f"longest of {memory['cancelled']} cancels", f"{memory['cancelled_longest_s']:.2f} s"),
    )
    return "\n".join(f"| {name:<44} | {value} |" for name, value in rows)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--quick", action="store_true", help="a few requests: figures mean nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serve, measure, print; the exit code is 1 if a target is missed."""
    options = parse_arguments(arguments)
    load = QUICK if options.quick else Load()
    load_average = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as name,
        served_space(Path(name), OMP_NUM_THREADS=str(torch.get_num_threads())) as served,
    ):
        folder = Path(name)
        figures: dict[str, Any] = {}
        for name, measure in (
            ("latency", lambda: measure_latency(served, folder, load.warm)),
            ("parallel", lambda: measure_parallel(served, folder, load.parallel)),
            ("memory", lambda: measure_memory(served, folder, load)),
        ):
            figures[name] = measure()
            print(f"{name}: {figures[name]}", flush=True)
    machine = {"cores": os.cpu_count(), "load_before": load_average, "photograph": WARM_SIZE}
    targets = judge(figures)
    print(f"\n{machine['cores']} cores, load {load_average:.1f} before; photograph {WARM_SIZE[0]}x{WARM_SIZE[1]}\n")
    print(f"{table(figures)}\n")
    for words, met in targets.items():
        print(f"- {words}: {'met' if met else 'MISSED'}")
    if options.json:
        record = {"load": asdict(load), "machine": machine, "versions": versions(), **figures, "targets": targets}
        write_text_atomically(options.json, json.dumps(finite_or_none(record), indent=1, allow_nan=False) + "\n")
    return 0 if options.quick or all(targets.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
