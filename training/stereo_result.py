# SPDX-License-Identifier: Apache-2.0
"""What a stereo training leaves: a folder that `from_pretrained` loads, with its card, and the same on the Hub.

The card holds the run's own options, data and figures, and nothing from elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from training.data_sources import DataSource
from training.pair_mixture import HUB
from training.run import TrainingRun, write_folder_atomically
from training.stereo_options import StereoConfig, StereoNetwork

FOLDER = "stereo_network"
PICTURE = "validation.png"
TAGS = ["stereo-matching", "disparity"]
LEFT_OUT = ("resume", "allow_changes", "stop_after_minutes", "output", "push_to_hub", "licence")
CARD = """# {title}

{kind} ({parameters:.2f} M parameters), trained by the scripts of the ZeroStereo project. It takes a rectified pair and
gives the disparity of the left view.

```python
from training.stereo_networks.{module} import {kind}

network = {kind}.from_pretrained("{repo_id}").eval()
disparity = network(left, right).disparity  # left, right [B,3,H,W] float in 0..255 -> [B,1,H,W], px, positive
```

## Training

{training}

## Data

{data}

## Figures

{figures}

**Judge these weights by figures on your own kind of pictures**: the ones above are all that is known of them.
"""


def save_result(run: TrainingRun) -> Path:
    """Write the network to be used, whole or not at all, with its card; every process takes part.

    Returns:
        the folder, which `from_pretrained` loads.
    """
    folder = run.config.output / FOLDER
    with run.network_to_save() as network:
        if run.accelerator.is_main_process:
            write_folder_atomically(folder, lambda partial: _fill(partial, run, network))
    run.accelerator.wait_for_everyone()
    return folder


def _fill(folder: Path, run: TrainingRun, network: StereoNetwork) -> None:
    network.save_pretrained(folder)
    pictures = sorted((run.config.output / "pictures").glob("step-*.png"))
    if pictures:
        shutil.copyfile(pictures[-1], folder / PICTURE)
    (folder / "README.md").write_text(make_card(run, network), encoding="utf-8")


def make_card(run: TrainingRun, network: StereoNetwork) -> str:
    """Write the card of a network: front matter, how to load it, options, data and figures of the run."""
    config: Any = run.config
    front: dict[str, Any] = {"license": config.licence} if config.licence else {}
    front |= {
        "library_name": "diffusers",
        "pipeline_tag": "depth-estimation",
        "tags": ["stereo-matching", "disparity"],
    }
    front |= {"base_model": config.base.partition("@")[0]} if is_repository(config.base) else {}
    front |= {"datasets": names} if (names := hub_names(config.sources())) else {}
    card = CARD.format(
        title=config.push_to_hub or config.output.name,
        kind=type(network).__name__,
        module=type(network).__module__.rpartition(".")[2],
        parameters=sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        repo_id=config.push_to_hub or str(Path(config.output.name) / FOLDER),
        training="\n".join(training_lines(run)),
        data="\n".join(data_lines(config.sources())),
        figures="\n".join(figure_lines(config.output)),
    )
    header = "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items())  # JSON is YAML
    return f"---\n{header}---\n\n{card}"


def is_repository(base: str | None) -> bool:
    """Tell whether a network came from the Hub rather than from a file or folder of this machine."""
    return base is not None and not Path(base).exists()


def hub_names(sources: list[DataSource]) -> list[str]:
    """Return the data sets of the Hub among the sources, without revisions."""
    return [str(source.root).partition("@")[0] for source in sources if source.kind == HUB]


def public_source(source: DataSource) -> str:
    """Write a source as on the command line; of a path, which is a machine's, only the name."""
    if source.root is None or source.kind == HUB:
        return str(source)
    return str(dataclasses.replace(source, root=Path(source.root).name))


def command_line(config: StereoConfig) -> str:
    """Return the command of a run: options that are not the defaults; of paths the names."""
    words = ["python", "-m", "training.train_stereo"]
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default or field.name in LEFT_OUT:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif field.name == "data":
            words += [word for source in config.sources() for word in (flag, public_source(source))]
        elif field.name == "base":
            words += [flag, value if is_repository(value) else Path(value).name]
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, "none" if value is None else str(value)]
    return shlex.join(words)


def training_lines(run: TrainingRun) -> list[str]:
    """Say how the run was made."""
    config: Any = run.config
    processes, device = run.accelerator.num_processes, run.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    losses = [line for line in read_log(config.output) if "loss" in line]
    start = "random weights" if config.base is None else f"`{public_name(config.base)}`"
    last = f", last logged loss {losses[-1]['loss']:.4g}" if losses else ""
    return [
        f"{run.completed} optimiser steps of {config.batch_size} x {run.micro_steps} pairs on {processes} "
        f"process{'es' if processes > 1 else ''} ({name}), from {start}{last}. Loss: {config.loss}"
        + ("." if config.loss == "supervised" else f", pictures compared in 0..{config.photometric_range}."),
        "",
        "```",
        command_line(config),
        "```",
    ]


def public_name(base: str) -> str:
    """Return how a card calls what a training started from."""
    return base if is_repository(base) else Path(base).name


def data_lines(sources: list[DataSource]) -> list[str]:
    """Make a table of what the network was trained on."""
    total = sum(source.weight for source in sources)
    rows = ["| Source | Kind | Share |", "| --- | --- | ---: |"]
    for source in sources:
        name = "procedural scenes of this project" if source.root is None else str(source.root)
        name = name if source.root is None or source.kind == HUB else Path(name).name
        rows.append(f"| {name} | {source.kind} | {100 * source.weight / total:.3g} % |")
    return rows


def read_log(output: Path) -> list[dict[str, float]]:
    """Read the log of a run, a dictionary for each line."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def figure_lines(output: Path) -> list[str]:
    """Put the figures of the last validation into a table."""
    validations = [line for line in read_log(output) if "validation_epe_px" in line]
    if not validations:
        return ["None: the run validated nothing."]
    last = validations[-1]
    rows = ["| Figure | Value |", "| --- | ---: |"]
    rows += [f"| {name.removeprefix('validation_')} | {value:.4g} |" for name, value in last.items() if name != "step"]
    return [
        f"On the run's held-out procedural scenes at step {int(last['step'])}, over all pixels, averaged over the "
        "images; `constant_epe_px` is what the best constant disparity of each image reaches.",
        "",
        *rows,
        "",
        f"![left view, right view, true disparity, estimated disparity, error up to 3 px]({PICTURE})",
    ]


def publish(network: StereoNetwork, folder: Path, repo_id: str) -> str:
    """Publish a network and the card and picture of its folder; the repository is made if missing.

    The card goes first, so that the network's own `push_to_hub` finds and keeps it.

    Returns:
        the URL of the commit that holds all.
    """
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    message = "Trained by training.train_stereo"
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=["README.md", PICTURE], commit_message=f"{message}: card"
    )
    return str(network.push_to_hub(repo_id, commit_message=message))
