# SPDX-License-Identifier: Apache-2.0
"""Measure a stereo network on public benchmarks.

    python -m training.evaluate_stereo --network raftstereo-sceneflow.pth --output out/raft \\
        --data kitti2015:/data/KITTI/2015 middlebury-h:/data/MiddEval3 eth3d:/data/ETH3D
    python -m training.evaluate_stereo --network weights/raft-stereo --output out/try --data eth3d:/data/ETH3D \\
        --limit 2 --iterations 4 --device cpu                                                    (CPU, a minute)
    python -m training.evaluate_stereo --network USER/ZERO-RAFT --output out/server --submission --method ZeroRAFT \\
        --data kitti2015:/data/KITTI/2015

The protocol is ZeroStereo's unless an option changes it: pictures at full size, 32 iterations, float32, every pixel
whose true disparity is known. Each set is described, with the folders that it needs, by its class in
stereo_datasets.py. In --output:

    results.json, results.md          the report: protocol, network, every figure by region and average; published rows
    NAME/per_image.csv                figures of each pair
    NAME/pictures/                    disparity, true disparity and error of the first --pictures pairs
    NAME/submission/                  with --submission: what the benchmark's server wants, test pairs too
    NAME/images/, NAME/server/        counts of each pair, by which a killed run goes on where it stopped
    NAME/settings.json                what made them; a run with other options is refused

Give all sets in one command to have them in one report; what is finished is not measured again.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from training.disparity_files import TRAINING_PAIRS_TOO, check_method, submission_files, write_whole
from training.disparity_pictures import paint_disparity, paint_error
from training.stereo_benchmarks import BENCHMARKS, PUBLISHED_DTYPE, PUBLISHED_ITERATIONS
from training.stereo_datasets import PicturePairs, StereoDataset
from training.stereo_evaluation import ImageResult, find_regions, measure_image, result_from_json, result_to_json
from training.stereo_inference import DTYPES, describe_network, estimate_disparity, load_stereo_network
from training.stereo_networks.recurrent_stereo import CORRELATIONS, RecurrentStereo
from training.stereo_tables import REPORT_VERSION, make_report, markdown_report, per_image_csv, report_benchmark

SETTINGS_FILE = "settings.json"
SHOWN_PICTURES = 10  # default of --pictures


class Task(NamedTuple):
    """One benchmark of the command."""

    name: str
    dataset: StereoDataset
    server_pairs: PicturePairs | None  # with --submission
    folder: Path


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", required=True, metavar="FOLDER_HUB_ID_OR_FILE", help="what is measured")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub id; default: its newest")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="NAME:ROOT",
        help=f"benchmarks and their folders; names: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--iterations", type=int, default=PUBLISHED_ITERATIONS, metavar="N", help="refinements (%(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=PUBLISHED_DTYPE, help="autocast if not %(default)s")
    parser.add_argument(
        "--correlation", choices=CORRELATIONS, default=CORRELATIONS[0], help="on_the_fly: for large pictures"
    )
    parser.add_argument(
        "--max-disparity-px",
        type=float,
        metavar="PX",
        help="leave out pixels of this true disparity and more; default: none is left out",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N pairs of each set only")
    parser.add_argument(
        "--pictures", type=int, default=SHOWN_PICTURES, metavar="N", help="draw the first N pairs (%(default)s)"
    )
    parser.add_argument("--submission", action="store_true", help="write files for the benchmarks' servers")
    parser.add_argument("--method", default="ZeroStereo", metavar="NAME", help="in these files' names (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        options.data = read_data(options.data)
        check_options(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def read_data(words: list[str]) -> dict[str, Path]:
    """Read NAME:ROOT of each benchmark.

    Raises:
        ValueError: another form, an unknown name, or a name twice.
    """
    roots: dict[str, Path] = {}
    for word in words:
        name, colon, root = word.partition(":")
        if not colon or not root or name not in BENCHMARKS:
            raise ValueError(f"`data` must be NAME:ROOT, with a name of {', '.join(BENCHMARKS)}; got {word!r}.")
        if name in roots:
            raise ValueError(f"`data` must name each benchmark once; got {name} twice.")
        roots[name] = Path(root).resolve()
    return roots


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that make no sense, before any work.

    Raises:
        ValueError: see the messages.
    """
    least = {"iterations": 1, "limit": 1, "pictures": 0}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise ValueError(f"`{name}` must be at least {lowest}; got {value}.")
    if options.max_disparity_px is not None and not options.max_disparity_px > 0:
        raise ValueError(f"`max_disparity_px` must be above 0; got {options.max_disparity_px}.")
    check_method(options.method)
    without = [name for name in options.data if options.submission and BENCHMARKS[name].submission is None]
    if without:
        raise ValueError(
            f"`submission` must be of benchmarks with a server known here; {', '.join(without)} has none."
        )
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"`device` must be there; got {options.device}, and this torch sees no CUDA device.")


def open_tasks(options: argparse.Namespace) -> list[Task]:
    """Find the files of every benchmark.

    Raises:
        FileNotFoundError, ValueError: see `StereoDataset`; or --submission, and there are no test pairs.
    """
    tasks = []
    for name, root in options.data.items():
        benchmark = BENCHMARKS[name]
        dataset = benchmark.dataset(root)
        pairs = None
        if options.submission and benchmark.server_pairs is not None:
            pairs = PicturePairs(root, *benchmark.server_pairs)
            if not len(pairs):
                raise FileNotFoundError(
                    f"`submission` needs the test pairs of {benchmark.title}; {root} has 0 files of "
                    f"{', '.join(benchmark.server_pairs)}."
                )
        tasks.append(Task(name, dataset, pairs, options.output / name))
    return tasks


# ---------------------------------------------------------------------------------------------------------------------
# What is kept between runs
# ---------------------------------------------------------------------------------------------------------------------


def make_settings(task: Task, network: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides a pair's results."""
    return {
        "report_version": REPORT_VERSION,
        "weights_sha256": network["weights_sha256"],
        "root": str(task.dataset.root),
        "iterations": options.iterations,
        "dtype": options.dtype,
        "correlation": options.correlation,
        "max_disparity_px": options.max_disparity_px,
        "device": torch.device(options.device).type,
        "pictures": options.pictures,
        "submission": options.submission,
        "method": options.method,
    }


def keep_settings(task: Task, settings: dict[str, Any]) -> None:
    """Write the settings of a new run, or see that those of an earlier one are the same.

    Raises:
        ValueError: they differ; or the folder holds other things.
    """
    path = task.folder / SETTINGS_FILE
    if not path.is_file():
        if task.folder.exists() and any(task.folder.iterdir()):
            raise ValueError(f"`output` must hold results of this command or nothing; got {task.folder}.")
        write_json(path, settings)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in settings if found.get(name) != settings[name]]
    if differing:
        raise ValueError(
            f"`output` must not hold results made otherwise; {task.folder} differs in {differing}: "
            f"{[found.get(name) for name in differing]} there, {[settings[name] for name in differing]} now. "
            "Choose another folder."
        )


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def record_of(folder: Path, part: str, name: str) -> Path:
    """Return where the counts of a pair are kept."""
    return folder / part / PurePosixPath(name).with_suffix(".json")


def pair_names(task: Task, limit: int | None) -> Iterator[tuple[str, int, str]]:
    """Go through what has to be done: part ("images" or "server"), index and name of each pair."""
    for part, pairs in (("images", task.dataset), ("server", task.server_pairs)):
        if pairs is not None:
            for index in range(len(pairs) if limit is None else min(limit, len(pairs))):
                yield part, index, pairs.files[index][0]


# ---------------------------------------------------------------------------------------------------------------------
# One pair
# ---------------------------------------------------------------------------------------------------------------------


def measure_pair(network: RecurrentStereo, task: Task, index: int, options: argparse.Namespace) -> ImageResult:
    """Measure one pair with a known disparity; write its pictures and files, and its counts last."""
    sample = task.dataset[index]
    estimate = _estimate(network, sample, options)
    truth, valid = sample["left_disparity"][None], sample["valid_disparity_mask"][None]  # [1,1,H,W]
    visible = sample["left_visible_mask"][None] if "left_visible_mask" in sample else None
    regions = find_regions(truth, valid, visible, max_disparity_px=options.max_disparity_px)
    result = measure_image(sample["name"], estimate.seconds, estimate.disparity[None, None], truth, regions)
    disparity = estimate.disparity.numpy()
    if index < options.pictures:
        write_pictures(task.folder / "pictures", sample["name"], disparity, truth[0, 0].numpy(), valid[0, 0].numpy())
    if options.submission and BENCHMARKS[task.name].submission in TRAINING_PAIRS_TOO:
        write_submission(task, sample["name"], disparity, estimate.seconds, options.method)
    write_json(record_of(task.folder, "images", sample["name"]), result_to_json(result))
    return result


def answer_server(network: RecurrentStereo, task: Task, index: int, options: argparse.Namespace) -> None:
    """Estimate one test pair and write what the server wants of it."""
    assert task.server_pairs is not None
    sample = task.server_pairs[index]
    estimate = _estimate(network, sample, options)
    write_submission(task, sample["name"], estimate.disparity.numpy(), estimate.seconds, options.method)
    write_json(record_of(task.folder, "server", sample["name"]), {"name": sample["name"], "seconds": estimate.seconds})


def _estimate(network: RecurrentStereo, sample: dict[str, Any], options: argparse.Namespace) -> Any:
    return estimate_disparity(
        network,
        sample["left_image"],
        sample["right_image"],
        iterations=options.iterations,
        dtype=options.dtype,
        correlation=options.correlation,
    )


def write_pictures(folder: Path, name: str, disparity: np.ndarray, truth: np.ndarray, known: np.ndarray) -> None:
    """Draw a disparity, the true one in the same colours, and the error."""
    highest = float(truth[known].max()) if known.any() else None
    pictures = {
        "disparity": paint_disparity(disparity, highest_px=highest),
        "true": paint_disparity(truth, known, highest),
        "error": paint_error(disparity, truth, known),
    }
    for kind, picture in pictures.items():
        file = io.BytesIO()
        picture.save(file, "PNG")
        write_whole(folder / PurePosixPath(name).with_suffix(f".{kind}.png"), file.getvalue())


def write_submission(task: Task, name: str, disparity: np.ndarray, seconds: float, method: str) -> None:
    """Write the files that the benchmark's server wants of one pair."""
    kind = BENCHMARKS[task.name].submission
    assert kind is not None
    for path, content in submission_files(kind, name, disparity, seconds, method).items():
        write_whole(task.folder / "submission" / path, content)


# ---------------------------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------------------------


def evaluate(
    network: RecurrentStereo, identity: dict[str, Any], tasks: list[Task], options: argparse.Namespace
) -> str:
    """Measure what is not measured yet, write the report, and return it as Markdown.

    Args:
        network: on its device.
        identity: of `describe_network`.
        tasks: of `open_tasks`; their folders exist.
        options: of `parse_arguments`.

    Raises:
        ValueError: a pair cannot be read (`DataFileError`), or the network's disparity is not finite.
    """
    work = [(task, *pair) for task in tasks for pair in pair_names(task, options.limit)]
    finished = sum(record_of(task.folder, part, name).is_file() for task, part, _, name in work)
    results: dict[str, list[ImageResult]] = {task.name: [] for task in tasks}
    with tqdm(total=len(work), initial=finished, desc="evaluate", unit="pair") as bar:
        for task, part, index, name in work:
            record = record_of(task.folder, part, name)
            if part == "images" and record.is_file():
                results[task.name].append(result_from_json(json.loads(record.read_text(encoding="utf-8"))))
                continue
            if record.is_file():
                continue
            bar.set_postfix_str(f"{task.name} {name}", refresh=False)
            if part == "images":
                results[task.name].append(measure_pair(network, task, index, options))
            else:
                answer_server(network, task, index, options)
            bar.update()
    return write_report(identity, tasks, results, options)


def write_report(
    identity: dict[str, Any], tasks: list[Task], results: dict[str, list[ImageResult]], options: argparse.Namespace
) -> str:
    """Write results.json, results.md and each set's CSV."""
    protocol = {
        name: getattr(options, name) for name in ("iterations", "dtype", "correlation", "max_disparity_px", "device")
    }
    benchmarks = {name: report_benchmark(name, measured) for name, measured in results.items()}
    report = make_report(identity, protocol, benchmarks)
    markdown = markdown_report(report)
    for task in tasks:
        write_whole(task.folder / "per_image.csv", per_image_csv(results[task.name]).encode())
    write_json(options.output / "results.json", report)
    write_whole(options.output / "results.md", markdown.encode())
    return markdown


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        tasks = open_tasks(options)
        network = load_stereo_network(options.network, options.revision).to(options.device)
        identity = describe_network(network, options.network)
        for task in tasks:
            keep_settings(task, make_settings(task, identity, options))
        print(evaluate(network, identity, tasks, options))
    except (ValueError, OSError) as error:  # of options, files or the network; the message says which
        print(f"evaluate_stereo: {error}", file=sys.stderr)
        return 1
    print(f"Report: {options.output / 'results.md'}, {options.output / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
