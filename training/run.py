# SPDX-License-Identifier: Apache-2.0
"""What every training script shares: options, schedule, checkpoints, exact resume, logs.

A script's options are one frozen dataclass; `parse_config` makes the command line from it, so defaults and help
cannot disagree. `TrainingRun` holds what surrounds a training step (checkpoints, logs, moving average, time limit);
the step itself stays in the script.

Exact resume is cheap here because nothing about the data is state: the batch of step t on process r is drawn from a
generator made of (seed, t, r), and the learning rate is a function of t. A checkpoint therefore holds the network,
the optimiser and the moving average, its name holds the step, and `k steps + resume` equals an uninterrupted run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
import shutil
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, is_tensorboard_available
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d{6,})")
FINAL_LEARNING_RATE_SHARE = 0.02  # the cosine ends at this share of the peak, not at 0: the last steps still learn
# Options that may differ when a run goes on. A longer --max-steps stretches the learning-rate curve from there on.
FREE_ON_RESUME = {
    "output",
    "pool",
    "vae",
    "max_steps",
    "stop_after_minutes",
    "resume",
    "allow_changes",
    "checkpoints_keep",
    "save_every_steps",
    "validate_every_steps",
    "log_every_steps",
}

Config = TypeVar("Config", bound="RunConfig")


# ---------------------------------------------------------------------------------------------------------------------
# Options: one frozen dataclass, and the command line made from it
# ---------------------------------------------------------------------------------------------------------------------


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    group: str,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declare one field of a config: its default, its help text, its group, and the range it must lie in."""
    metadata = {"help": help, "group": group, "at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of every training script. Scripts inherit from it and add their own."""

    output: Path = option(help="folder for checkpoints, log, pictures and the trained network", group="run")
    max_steps: int = option(2000, help="optimiser steps of the whole run", group="run", at_least=1)
    stop_after_minutes: float | None = option(
        None, help="save a checkpoint and stop after this time; --resume goes on", group="run", at_least=0
    )
    resume: bool = option(False, help="go on from the newest checkpoint in --output", group="run")
    allow_changes: bool = option(
        False, help="let --resume go on although options differ from the checkpoint's", group="run"
    )
    seed: int = option(0, help="seed of weights and of every batch", group="run", at_least=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", help="autocast of the networks", group="run")
    checkpoints_keep: int = option(2, help="newest checkpoints that are kept", group="run", at_least=1)
    save_every_steps: int = option(500, help="steps between checkpoints", group="run", at_least=1)
    validate_every_steps: int = option(500, help="steps between validations", group="run", at_least=1)
    log_every_steps: int = option(50, help="steps between lines of log.jsonl", group="run", at_least=1)

    batch_size: int = option(16, help="samples per step and process", group="optimisation", at_least=1)
    learning_rate: float = option(8e-4, help="peak of the learning rate", group="optimisation", at_least=0)
    warmup_steps: int = option(100, help="steps of linear warm-up", group="optimisation", at_least=0)
    weight_decay: float = option(0.01, help="decoupled weight decay (AdamW)", group="optimisation", at_least=0)
    max_gradient_norm: float = option(1.0, help="gradients are clipped to this norm", group="optimisation", at_least=0)
    ema_decay: float = option(
        0.998, help="decay of the averaged weights that are saved", group="optimisation", at_least=0, at_most=1
    )

    def __post_init__(self):
        """Reject values outside the range that a field declares."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest, highest = field.metadata.get("at_least"), field.metadata.get("at_most")
            for number in value if isinstance(value, tuple) else (value,):
                require(
                    lowest is None or number is None or number >= lowest, field.name, f"must be >= {lowest}", value
                )
                require(
                    highest is None or number is None or number <= highest, field.name, f"must be <= {highest}", value
                )
            choices = typing.get_type_hints(type(self))[field.name]
            if typing.get_origin(choices) is Literal:
                require(
                    value in typing.get_args(choices), field.name, f"must be one of {typing.get_args(choices)}", value
                )


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    """Raise a ValueError that names the option, its rule and the value, unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{name}` {rule}; got {value!r}.")


def _parse_word(kind: Any, word: str) -> Any:
    """Turn one word of the command line into a value of the annotated type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [member for member in typing.get_args(kind) if member is not type(None)]
        return None if word == "none" else _parse_word(kinds[0], word)
    if typing.get_origin(kind) is Literal:
        return word  # RunConfig checks the choice, so the message is the same from Python and from a shell
    return kind(word)


def make_parser(config_class: type[RunConfig], description: str | None = None) -> argparse.ArgumentParser:
    """Make the command line of a config class: one option per field, grouped, defaults in the help."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    groups: dict[str, Any] = {}
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        group = groups.setdefault(field.metadata["group"], parser.add_argument_group(field.metadata["group"]))
        flag, kind = "--" + field.name.replace("_", "-"), kinds[field.name]
        required = field.default is dataclasses.MISSING
        shown = "required" if required else f"default: {_words(field.default)}"
        arguments: dict[str, Any] = {"help": f"{field.metadata['help']} ({shown})", "required": required}
        if not required:
            arguments["default"] = field.default
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is tuple:
            member = typing.get_args(kind)[0]
            arguments |= {"type": member, "nargs": "+", "metavar": member.__name__.upper()}
        else:
            arguments |= {"type": lambda word, kind=kind: _parse_word(kind, word), "metavar": _metavar(kind)}
        group.add_argument(flag, **arguments)
    return parser


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    members = [member for member in typing.get_args(kind) if member is not type(None)] or [kind]
    return members[0].__name__.upper()


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_config(config_class: type[Config], arguments: Sequence[str] | None = None, description=None) -> Config:
    """Read a config from the command line (or from `arguments`); a bad value ends with the parser's message."""
    parser = make_parser(config_class, description)
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return config_class(**values)
    except ValueError as error:
        parser.error(str(error))


def save_config(config: RunConfig, path: Path) -> None:
    """Write a config as JSON."""
    write_text_atomically(path, json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n")


def load_config(config_class: type[Config], path: Path) -> Config:
    """Read what `save_config` wrote."""
    kinds = typing.get_type_hints(config_class)
    values = json.loads(path.read_text())
    unknown = sorted(set(values) - set(kinds))
    require(not unknown, "path", f"holds options that {config_class.__name__} does not have: {unknown}", str(path))
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
        elif kinds[name] is Path:
            values[name] = Path(value)
    return config_class(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Functions of the step: learning rate and randomness
# ---------------------------------------------------------------------------------------------------------------------


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, max_steps: int) -> float:
    """Give the learning rate of step `step` (from 0): linear warm-up, then half a cosine down to 2 % of the peak.

    A pure function of the optimiser step: resuming needs no scheduler state, and the curve does not depend on the
    number of processes (a scheduler prepared by accelerate advances once per process).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine)


def step_generator(seed: int, step: int, rank: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Make the generator from which process `rank` draws everything random of step `step`."""
    digest = hashlib.sha256(f"{seed}:{step}:{rank}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# ---------------------------------------------------------------------------------------------------------------------
# Files: everything appears whole or not at all
# ---------------------------------------------------------------------------------------------------------------------


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_folder_atomically(folder: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a folder under a temporary name, then put it in the place of `folder`."""
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def list_checkpoints(output: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest first; a half-written one (`.tmp`) is not among them."""
    if not output.is_dir():
        return []
    found = [path for path in output.iterdir() if path.is_dir() and CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Read from its name how many steps a checkpoint has behind it."""
    match = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"`checkpoint` must be a folder named checkpoint-NNNNNN; got {checkpoint}.")
    return int(match.group(1))


def picture_grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Lay out pictures [3,H,W] or maps [1,H,W], values in [0,1], in rows and columns."""
    lines = [torch.cat([cell.detach().float().cpu().expand(3, -1, -1) for cell in row], dim=2) for row in rows]
    grid = torch.cat(lines, dim=1).clamp(0, 1).mul(255).round().to(torch.uint8)  # [3,sum H,sum W]
    return Image.fromarray(np.ascontiguousarray(grid.permute(1, 2, 0).numpy()))


# ---------------------------------------------------------------------------------------------------------------------
# The run around the steps
# ---------------------------------------------------------------------------------------------------------------------


def make_accelerator(config: RunConfig) -> Accelerator:
    """Make the accelerator of a run; TensorBoard is its tracker where it is installed."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if is_tensorboard_available() else None,
        project_dir=config.output,
        # Depth Anything carries parameters that no loss reaches (mask token, the deepest fusion layer's first unit)
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class TrainingRun:
    """Everything around a training step: moving average, checkpoints, resume, logs, bar, time limit.

    Args:
        accelerator: the run's accelerator; `network` and `optimizer` are already prepared by it.
        config: options; written beside each checkpoint.
        network: the network that learns.
        optimizer: its optimiser.

    Attributes:
        average: diffusers' EMAModel over the network's parameters.
        first_step: the step the run begins with: 0, or the step of the checkpoint that it went on from.

    Raises:
        FileExistsError: the output folder holds checkpoints and `resume` is False.
        FileNotFoundError: `resume` is True and there is no checkpoint.
        ValueError: `resume` is True and options differ from the checkpoint's that are not free to.
    """

    def __init__(
        self, accelerator: Accelerator, config: RunConfig, network: nn.Module, optimizer: torch.optim.Optimizer
    ):
        self.accelerator, self.config, self.network, self.optimizer = accelerator, config, network, optimizer
        parameters = list(accelerator.unwrap_model(network).parameters())
        self.average = EMAModel(parameters, decay=config.ema_decay, foreach=True)
        self._interval_started, self._interval_samples = time.monotonic(), 0
        self._interval_steps, self._interval_sums = 0, {}
        accelerator.register_for_checkpointing(self.average, self)
        self.log_path = config.output / "log.jsonl"
        self.first_step = self._resume() if config.resume else self._begin()
        self.completed = self.first_step
        if accelerator.log_with:
            accelerator.init_trackers("tensorboard")
        self._started = time.monotonic()
        self._bar: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint needs beside network, optimiser and average: the log line that is being summed."""
        return {"steps": self._interval_steps, "sums": {k: float(v) for k, v in self._interval_sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the log line that was being summed."""
        self._interval_steps, self._interval_sums = state["steps"], dict(state["sums"])

    def _begin(self) -> int:
        checkpoints = list_checkpoints(self.config.output)
        if checkpoints:
            raise FileExistsError(
                f"`output` must not hold another run's checkpoints; got {checkpoints[-1]}. "
                "Go on from it with --resume, or choose another folder."
            )
        if self.accelerator.is_main_process:
            write_text_atomically(self.log_path, "")
            save_config(self.config, self.config.output / "config.json")
        self.accelerator.wait_for_everyone()
        return 0

    def _resume(self) -> int:
        checkpoints = list_checkpoints(self.config.output)
        if not checkpoints:
            raise FileNotFoundError(
                f"`resume` needs a folder checkpoint-NNNNNN in `output`; got {self.config.output}."
            )
        self._check_same_options(checkpoints[-1])
        self.accelerator.load_state(str(checkpoints[-1]))
        self.average.to(self.accelerator.device)
        step = checkpoint_step(checkpoints[-1])
        if self.accelerator.is_main_process:
            save_config(self.config, self.config.output / "config.json")
            # lines of steps that were taken after the checkpoint are written again by the steps to come
            lines = self.log_path.read_text().splitlines(keepends=True)
            write_text_atomically(self.log_path, "".join(li for li in lines if json.loads(li)["step"] <= step))
        self.accelerator.wait_for_everyone()
        return step

    def _check_same_options(self, checkpoint: Path) -> None:
        stored = load_config(type(self.config), checkpoint / "config.json")
        changed = {
            field.name: (getattr(stored, field.name), getattr(self.config, field.name))
            for field in dataclasses.fields(stored)
            if field.name not in FREE_ON_RESUME and getattr(stored, field.name) != getattr(self.config, field.name)
        }
        rule = f"goes on with the options of {checkpoint}, unless --allow-changes is given"
        require(not changed or self.config.allow_changes, "resume", rule, changed)

    def steps(self) -> Iterator[int]:
        """Count through the steps; after each: checkpoint when due, and stop when the time is up."""
        config = self.config
        self._bar = tqdm(
            total=config.max_steps,
            initial=self.first_step,
            desc=config.output.name,
            mininterval=5.0,
            disable=not self.accelerator.is_main_process,
        )
        with self._bar:
            for step in range(self.first_step, config.max_steps):
                yield step
                self.completed = step + 1
                self._bar.update()
                last = self.completed == config.max_steps or self._time_is_up()
                if last or self.completed % config.save_every_steps == 0:
                    self.save_checkpoint()
                if last:
                    break

    def _time_is_up(self) -> bool:
        if self.config.stop_after_minutes is None:
            return False
        up = time.monotonic() - self._started >= 60 * self.config.stop_after_minutes
        flag = torch.tensor(float(up), device=self.accelerator.device)
        late: Any = self.accelerator.reduce(flag, reduction="sum")
        return bool(late > 0)  # one process late means all stop

    def is_due(self, step: int, every_steps: int) -> bool:
        """Tell whether something that happens every so many steps, and at the last one, is due after `step`."""
        return (step + 1) % every_steps == 0 or step + 1 == self.config.max_steps

    def update(self, step: int, loss: Tensor) -> None:
        """Backward pass, clipping, one optimiser step at the step's learning rate, moving average."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(
                step, peak=config.learning_rate, warmup_steps=config.warmup_steps, max_steps=config.max_steps
            )
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), config.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.accelerator.unwrap_model(self.network).parameters())

    def log_step(self, step: int, figures: Mapping[str, Tensor], samples: int) -> None:
        """Add one step's figures; every `log_every_steps` steps their means become a line of the log.

        A half-summed line is part of a checkpoint, so a resumed run writes the lines that an uninterrupted one
        writes; only `samples_per_s` differs.
        """
        for name, value in figures.items():
            self._interval_sums[name] = self._interval_sums.get(name, 0.0) + value.detach().float()
        self._interval_steps += 1
        self._interval_samples += samples * self.accelerator.num_processes
        if not self.is_due(step, self.config.log_every_steps):
            return
        means = {name: float(total) / self._interval_steps for name, total in self._interval_sums.items()}
        means["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        seconds = max(time.monotonic() - self._interval_started, 1e-9)
        means["samples_per_s"] = self._interval_samples / seconds
        self.log(step, means)
        if self._bar is not None:
            shown = {
                name: f"{means[name]:.3g}" for name in ("loss", "learning_rate", "samples_per_s") if name in means
            }
            self._bar.set_postfix(shown, refresh=False)
        self._interval_started, self._interval_sums = time.monotonic(), {}
        self._interval_samples = self._interval_steps = 0

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one line: to log.jsonl and to the tracker."""
        if self.accelerator.is_main_process:
            with self.log_path.open("a") as log:
                log.write(json.dumps({"step": step + 1, **figures}) + "\n")
        self.accelerator.log(dict(figures), step=step + 1)

    def save_checkpoint(self) -> None:
        """Write `checkpoint-NNNNNN` under a temporary name, rename it, drop the oldest."""
        folder = self.config.output / f"checkpoint-{self.completed:06d}"
        if folder.exists():
            return
        temporary = folder.with_name(folder.name + ".tmp")
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_config(self.config, temporary / "config.json")
            temporary.rename(folder)
            for old in list_checkpoints(self.config.output)[: -self.config.checkpoints_keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def averaged_network(self) -> AveragedWeights:
        """Give a context in which the network holds the averaged weights and is in evaluation mode."""
        return AveragedWeights(self.accelerator.unwrap_model(self.network), self.average)

    def save_picture(self, step: int, picture: Image.Image) -> None:
        """Write a validation picture to `pictures/` and to the tracker."""
        if not self.accelerator.is_main_process:
            return
        folder = self.config.output / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step-{step + 1:06d}.png")
        for tracker in self.accelerator.trackers:
            tracker.log_images({"validation": np.asarray(picture)[None]}, step=step + 1, dataformats="NHWC")

    def finish(self) -> None:
        """Close the trackers."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


class AveragedWeights:
    """Context manager: inside, `network` computes with its moving average; outside nothing has changed."""

    def __init__(self, network: nn.Module, average: EMAModel):
        self.network, self.average = network, average

    def __enter__(self) -> Any:
        """Put the averaged weights in."""
        self.was_training = self.network.training
        self.average.store(self.network.parameters())
        self.average.copy_to(self.network.parameters())
        return self.network.eval()

    def __exit__(self, *exception: object) -> None:
        """Put the learning weights back."""
        self.average.restore(self.network.parameters())
        self.network.train(self.was_training)
