# SPDX-License-Identifier: Apache-2.0
"""Results that a script measured -> the evaluation metadata and the table of a card. Takes no figure from elsewhere.

A result is a JSON object, wherever it stands in a JSON file (alone, in a list, below other names):

    {
      "network": "raft-stereo-mine",              # name of the folder, or id of the repository
      "data_set": "KITTI 2015, training",
      "protocol": "error > 3 px, all pixels, mean of the images",
      "figures": {"EPE, px": 1.25, "noc": {"> 3 px": 0.0625}},      # names may be nested; null = not measured
      "script": "python -m benchmarks.embedded_quality",    # what made it; default: training.evaluate_stereo
      "weights": {"diffusion_pytorch_model.safetensors": "<sha256>"}    # of the weights that it was made with
    }

`script` and `weights` may stand once, further up in the file. The report of training.evaluate_stereo (network,
protocol, benchmarks) is read too: of each benchmark the region and threshold that are usually quoted, by both
averages. Only results of the very weights that a card is for are used: by checksum where the file has checksums, else
by the network's name. So neither figures of other weights nor those of a paper get onto a card.

The metadata is the `model-index` of the front matter (`ModelCardData.eval_results`). The Hub's newer files in
`.eval_results/` are for benchmarks that are registered on the Hub, of which these are none.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from safetensors.torch import load_file

REQUIRED = ("network", "data_set", "protocol", "figures")
REPORT = {"network", "protocol", "benchmarks"}  # names in a report of training.evaluate_stereo
DEFAULT_SCRIPT = "python -m training.evaluate_stereo"  # whose files need not say it
OWN_SCRIPT = re.compile(r"python -m (training|benchmarks|datasets_builder)\.\w+( .*)?")
HASHED_BYTES = 1 << 20  # at a time


@dataclass(frozen=True)
class Result:
    """What one script measured of one network on one data set.

    Attributes:
        network: name of the folder or id of the repository that was measured.
        data_set: name, for people.
        protocol: which pixels and images, and how they are averaged.
        script: command that made it.
        figures: finite numbers by name.
        weights: sha256 by path inside the folder of the network; None where the file has none.
        tensors: sha256 of the names and values of all tensors, as `tensor_digest`; None where the file has none.
    """

    network: str
    data_set: str
    protocol: str
    script: str
    figures: dict[str, float]
    weights: dict[str, str] | None = None
    tensors: str | None = None


def read_results(file: Path) -> list[Result]:
    """Read the results of a JSON file, wherever in it they stand, in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, no result in it, or one that is not of the form above.
    """
    if not file.is_file():
        raise FileNotFoundError(f"`--results` must be a JSON file that a benchmark wrote; got {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`--results` must be a JSON file; got {file}: {error}.") from error
    found = [_read_result(entry, inherited, file) for entry, inherited in _walk(content, {})]
    if not found:
        raise ValueError(f"`--results` must hold objects with {list(REQUIRED)}; {file} has none.")
    return found


def _walk(value: Any, inherited: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each object that has figures and a data set, with the script and checksums that hold for it."""
    if isinstance(value, list):
        for one in value:
            yield from _walk(one, inherited)
    elif isinstance(value, dict) and REPORT <= set(value):
        yield from _walk_report(value)
    elif isinstance(value, dict):
        inherited = inherited | {name: value[name] for name in ("script", "weights") if name in value}
        if {"data_set", "figures"} <= set(value):
            yield value, inherited
        else:
            for one in value.values():
                yield from _walk(one, inherited)


def _walk_report(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the benchmarks of a report of training.evaluate_stereo in the form above."""
    network, protocol = report["network"], report["protocol"]
    said = f"{protocol['iterations']} iterations, {protocol['dtype']}"
    for benchmark in report["benchmarks"].values():
        region, threshold = benchmark["quoted"]["region"], f"{benchmark['quoted']['threshold_px']:g}"
        figures = {
            average: {
                "EPE, px": one["end_point_error_px"],
                f"> {threshold} px, %": one["bad_percent"].get(threshold),
                "D1, %": one["d1_percent"],
            }
            for average, one in benchmark["figures"].get(region, {}).items()
        }
        pairs = f"{benchmark['pairs']} of {benchmark['pairs_of_the_set']} pairs"
        entry = {"network": network["name"], "data_set": benchmark["title"], "figures": figures}
        yield {**entry, "protocol": f"region {region}, {pairs}, {said}"}, {"tensors": network["weights_sha256"]}


def _read_result(entry: dict[str, Any], inherited: dict[str, Any], file: Path) -> Result:
    missing = [name for name in REQUIRED if not entry.get(name)]
    if missing:
        raise ValueError(f"`--results` must say {missing} of the figures on {entry.get('data_set')!r}; got {file}.")
    script = str(inherited.get("script", DEFAULT_SCRIPT))
    if not OWN_SCRIPT.fullmatch(script):
        raise ValueError(f"`script` must be a command of this project, `python -m ...`; got {script!r} in {file}.")
    figures = dict(_flatten(entry["figures"], (), file))
    if not figures:
        raise ValueError(f"`--results` must hold at least one number for {entry['data_set']!r}; got none in {file}.")
    weights = inherited.get("weights")
    checksums = {str(name): str(digest) for name, digest in weights.items()} if isinstance(weights, dict) else None
    network, data_set, protocol = (str(entry[name]) for name in ("network", "data_set", "protocol"))
    return Result(network, data_set, protocol, script, figures, checksums or None, inherited.get("tensors"))


def _flatten(value: Any, names: tuple[str, ...], file: Path) -> Iterator[tuple[str, float]]:
    """Yield each number with the names on the way to it; null is left out."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _flatten(one, (*names, str(name)), file)
    elif value is not None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"`figures` must be finite numbers or null; got {value!r} for {' '.join(names)} in {file}."
            )
        yield " ".join(names), float(value)


def weight_checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each safetensors file below a folder, by its path there."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(HASHED_BYTES):
                digest.update(part)
        found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of names, types, shapes and values of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensor_digest(folder: Path) -> str:
    """Return `digest_tensors` of the tensors in a network's folder."""
    files = sorted(folder.glob("*.safetensors"))
    return digest_tensors({name: value for path in files for name, value in load_file(path).items()})


def results_of(files: list[Path], folder: Path, repo_id: str) -> list[Result]:
    """Read results and make sure that each belongs to the weights of a folder.

    Args:
        files: JSON files of benchmarks.
        folder: of the network or pipeline.
        repo_id: where it is published.

    Returns:
        All results, in order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is not understood, or has figures of other weights.
    """
    results = [result for file in files for result in read_results(file)]
    for result in results:
        _check_owner(result, folder, repo_id)
    return results


def _check_owner(result: Result, folder: Path, repo_id: str) -> None:
    """Raise unless a result belongs to the weights in a folder."""
    if result.weights is not None:
        own = weight_checksums(folder)
        differ = sorted(name for name in {**own, **result.weights} if own.get(name) != result.weights.get(name))
    else:
        differ = ["tensors"] if result.tensors is not None and result.tensors != tensor_digest(folder) else []
    if differ:
        raise ValueError(
            f"`--results` must be of the weights in {folder}; the figures on {result.data_set!r} were made with "
            f"other files: {differ}."
        )
    is_nameless = result.weights is None and result.tensors is None
    if is_nameless and result.network != repo_id and Path(result.network).name != folder.resolve().name:
        raise ValueError(
            f"`--results` must be of {folder} or {repo_id}; the figures on {result.data_set!r} are of "
            f"{result.network!r}, and there are no checksums that would say more."
        )


def model_index(results: list[Result], model_name: str, task: str) -> list[dict[str, Any]]:
    """Return the `model-index` of a card's front matter; empty without results.

    Args:
        results: as read.
        model_name: of the card.
        task: a task of the Hub, such as "image-to-image".
    """
    entries = [
        EvalResult(
            task_type=task,
            dataset_type=_slug(result.data_set),
            dataset_name=result.data_set,
            metric_type=_slug(name),
            metric_name=name,
            metric_value=value,
            metric_args={"protocol": result.protocol, "script": result.script},
        )
        for result in results
        for name, value in result.figures.items()
    ]
    return eval_results_to_model_index(model_name, entries) if entries else []


def _slug(name: str) -> str:
    words = name.lower().replace("<", " below ").replace(">", " above ")
    return re.sub(r"[^a-z0-9.]+", "-", words).strip("-")


def figure_table(results: list[Result]) -> list[str]:
    """Return the lines of a table of all figures, each row with the script that made it."""
    lines = ["| Data set | Figure | Value | Protocol | Made by |", "| --- | --- | ---: | --- | --- |"]
    for result in results:
        lines += [
            f"| {result.data_set} | {name} | {value:.4g} | {result.protocol} | `{result.script}` |"
            for name, value in result.figures.items()
        ]
    return lines
