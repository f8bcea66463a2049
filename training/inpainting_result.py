# SPDX-License-Identifier: Apache-2.0
"""What a training of the inpainting UNet leaves: a UNet, a publishable pipeline folder, or a LoRA, each with its card.

The card holds the run's own figures: options, last validation, time. Nothing on it is from elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from training.base_model import InpaintingBase
from training.export_card import TAGS, base_model, combine_licences, configuration_table, licence_section
from training.lora import save_lora
from training.pipeline_folder import PIPELINE_SETTINGS, render_card, write_pipeline_folder
from training.public_parts import push_folder
from training.run import TrainingRun, write_folder_atomically, write_text_atomically

LORA_CARD = """# {title}

A LoRA of ZeroStereoPipeline's UNet, trained by the scripts of this project. It goes onto the base that it was trained
on, {base}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{base}", trust_remote_code=True)
pipe.load_lora_weights("{repo_id}")
```

## Training

{training}

## Figures

{figures}

## Licences

{licences}
"""


def save_unet(run: TrainingRun, base: InpaintingBase) -> Path:
    """Write the weights to be used to `unet/`, the noise schedule to `scheduler/`, the settings to `pipeline.json`.

    Returns:
        the folder of the UNet, a LoRA included in its layers where there is one.
    """
    output = run.config.output
    with run.network_to_save() as network:
        if run.accelerator.is_main_process:
            write_folder_atomically(output / "unet", network.save_pretrained)
    if run.accelerator.is_main_process:
        write_folder_atomically(output / "scheduler", base.scheduler.save_pretrained)
        # what the pipeline must do as training did; export_pipeline reads it
        names = ("latent_mask_reduction", "masked_fill", "empty_prompt_embeds")
        settings = {name: base.settings[name] for name in names}
        write_text_atomically(output / PIPELINE_SETTINGS, json.dumps(settings) + "\n")
    return output / "unet"


def save_result(run: TrainingRun, base: InpaintingBase) -> Path:
    """Write what a finished fine-tuning is for, whole or not at all, with its card.

    Returns:
        `lora/` where a LoRA was trained; `pipeline/` where the pipeline of this project runs the UNet; else `unet/`.
    """
    config: Any = run.config
    is_lora = config.lora_rank is not None
    if not base.is_pipeline and not is_lora:
        return save_unet(run, base)
    folder = config.output / ("lora" if is_lora else "pipeline")
    with run.network_to_save() as network:
        if not run.accelerator.is_main_process:
            return folder
        if is_lora:
            write_folder_atomically(folder, lambda partial: write_lora(network, run, base, partial))
        else:
            write_pipeline(network, run, base, folder)
    return folder


def write_lora(unet: Any, run: TrainingRun, base: InpaintingBase, folder: Path) -> None:
    """Fill a folder with the LoRA, its card and the last picture of the validation."""
    config: Any = run.config
    save_lora(unet, folder)
    for name, source in last_picture(config.output).items():
        shutil.copyfile(source, folder / name)
    part = _part(base)
    front = {**combine_licences([part]), "library_name": "diffusers", "tags": [*TAGS, "lora"]}
    front |= base_model([part.name] if part.folder is None else [], "adapter")
    card = LORA_CARD.format(
        title=config.push_to_hub or config.output.name,
        base=part.name if part.folder is None else Path(config.base).name,
        repo_id=config.push_to_hub or str(config.output / "lora"),
        training="\n".join(training_lines(run, base)),
        figures="\n".join(figure_lines(config.output)),
        licences="\n".join(licence_section({"base": part})),
    )
    header = "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items())  # JSON is YAML
    (folder / "README.md").write_text(f"---\n{header}---\n\n{card}", encoding="utf-8")


def write_pipeline(unet: Any, run: TrainingRun, base: InpaintingBase, folder: Path) -> None:
    """Write the pipeline folder, in the place of an older one."""
    config: Any = run.config
    part = _part(base)
    repo_id = config.push_to_hub or str(folder)
    values = {
        "card_data": {
            **combine_licences([part]),
            "library_name": "diffusers",
            "pipeline_tag": "image-to-image",
            "tags": TAGS,
            **base_model([part.name] if part.folder is None else [], "finetune"),
        },
        "title": config.push_to_hub or config.output.name,
        "summary": f"The inpainting UNet of {part.name}, fine-tuned to fill the holes of stereo views by the scripts "
        "of this project: one photograph in, a stereo pair out.",
        "caution": "**Judge these weights by the figures below and by your own pictures**: nothing else is known.",
        "repo_id": repo_id,
        "picture": "".join(
            f"![warped view, filled from the background, filled by the UNet, true view]({name})"
            for name in last_picture(config.output)
        ),
        "configuration": configuration_table(base.settings),
        "training": training_lines(run, base),
        "figures": figure_lines(config.output),
        "limits": "What else these weights do well or badly is not described by those who trained them.",
        "part_licences": licence_section({"base": part}),
    }
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    published = f"{part.name}@{part.revision}" if part.folder is None else None
    write_pipeline_folder(
        fresh,
        unet=unet,
        vae=base.vae,
        scheduler=base.scheduler,
        depth_estimator=base.load_depth_estimator(),
        sources=dict.fromkeys(("vae", "depth_estimator"), published) if published else None,
        card=render_card(values),
        files=last_picture(config.output),
        **base.settings,
    )
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _part(base: InpaintingBase) -> Any:
    assert base.part is not None  # only a small UNet from random weights has none, and that ends as `unet/`
    return base.part


def command_line(config: Any, base: InpaintingBase) -> str:
    """Return the command of a run: options that are not the defaults; of paths, which are a machine's, the names."""
    words = ["python", "-m", "training.train_inpainting"]
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default or field.name in ("resume", "allow_changes", "stop_after_minutes"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif field.name == "base":
            name, revision = _part(base).name, _part(base).revision
            words += [flag, Path(value).name if Path(value).is_dir() else f"{name}@{revision}"]
        elif field.name in ("data", "validation_data"):
            sources = config.sources() if field.name == "data" else config.validation_sources()
            named = [dataclasses.replace(s, root=s.root and Path(s.root).name) for s in sources]
            words += [word for source in named for word in (flag, str(source))]
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, "none" if value is None else value.name if isinstance(value, Path) else str(value)]
    return shlex.join(words)


def read_log(output: Path) -> list[dict[str, float]]:
    """Read the log of a run, a dictionary for each line."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def training_lines(run: TrainingRun, base: InpaintingBase) -> list[str]:
    """Say on a card how the run was made."""
    config: Any = run.config
    processes = run.accelerator.num_processes
    losses = [line for line in read_log(config.output) if "loss" in line]
    speed = sum(line["samples_per_s"] for line in losses) / max(1, len(losses))
    device = run.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    learnt = sum(p.numel() for p in base.unet.parameters() if p.requires_grad)
    return [
        f"{run.completed} optimiser steps of {config.batch_size} x {run.micro_steps} samples on {processes} "
        f"process{'es' if processes > 1 else ''} ({name}), {learnt / 1e6:.2f} M parameters learning, "
        f"{speed:.3g} samples a second; last logged loss {losses[-1]['loss']:.4g}."
        if losses
        else f"{run.completed} optimiser steps.",
        "",
        "```",
        command_line(config, base),
        "```",
    ]


def figure_lines(output: Path) -> list[str]:
    """Put the figures of the last validation into a table for a card."""
    validations = [line for line in read_log(output) if any(name.startswith("validation_") for name in line)]
    if not validations:
        return ["None: the run validated nothing."]
    last = validations[-1]
    rows = ["| Figure | Value |", "| --- | ---: |"]
    rows += [f"| {name.removeprefix('validation_')} | {value:.4g} |" for name, value in last.items() if name != "step"]
    step = int(last["step"])
    said = "`training.train_inpainting` wrote them at step"
    return [
        f"{said} {step}, over the hole pixels of its held-out views (`inpainting_validation.py` defines each).",
        "",
        *rows,
    ]


def last_picture(output: Path) -> dict[str, Path]:
    """Return the newest picture of the validation, if any, by the name that it gets in a folder."""
    pictures = sorted((output / "pictures").glob("step-*.png"))
    return {"validation.png": pictures[-1]} if pictures else {}


def publish(folder: Path, repo_id: str) -> str:
    """Upload the result to a model repository, made if missing; return the commit's URL."""
    return push_folder(folder, repo_id, message="Trained by training.train_inpainting")
