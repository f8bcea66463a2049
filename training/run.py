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
import os
import re
import shutil
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    gather_object,
    is_tensorboard_available,
    is_wandb_available,
)
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

LEARNT_WEIGHTS = "model.safetensors"  # in a checkpoint; the name that accelerate uses too
BAR_FIGURES = ("loss", "learning_rate", "samples_per_s", "data_wait_share")
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d{6,})")
ONE_CYCLE_START, ONE_CYCLE_END = 25, 1e4  # torch's div_factor and final_div_factor
FINAL_LEARNING_RATE_SHARE = 0.02  # the cosine ends at this share of the peak, not at 0: the last steps still learn
# Options that may differ when a run goes on. A longer --max-steps stretches the learning-rate curve from there on.
FREE_ON_RESUME = {
    "output",
    "pool",
    "vae",
    "depth_cache",
    "max_steps",
    "stop_after_minutes",
    "resume",
    "allow_changes",
    "checkpoints_keep",
    "save_every_steps",
    "validate_every_steps",
    "log_every_steps",
    "tracker",
    "workers",
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

    batch_size: int = option(16, help="samples per forward pass and process", group="optimisation", at_least=1)
    learning_rate: float = option(8e-4, help="peak of the learning rate", group="optimisation", at_least=0)
    warmup_steps: int = option(100, help="steps of linear warm-up", group="optimisation", at_least=0)
    weight_decay: float = option(0.01, help="decoupled weight decay (AdamW)", group="optimisation", at_least=0)
    max_gradient_norm: float | None = option(
        1.0, help="gradients are clipped to this norm; none = as they are", group="optimisation", at_least=0
    )
    ema_decay: float | None = option(
        0.998,
        help="decay of the averaged weights that are saved; none = the last weights are",
        group="optimisation",
        at_least=0,
        at_most=1,
    )
    schedule: Literal["cosine", "one-cycle"] = option(
        "cosine", help="shape of the learning rate over the steps", group="optimisation"
    )
    total_batch_size: int | None = option(
        None,
        help="samples per optimiser step, over all processes; none = --batch-size of each. More than that is "
        "accumulated",
        group="optimisation",
        at_least=1,
    )
    tracker: Literal["tensorboard", "wandb", "none"] = option(
        "tensorboard", help="where figures and pictures go beside log.jsonl", group="run"
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
            choices = _choices(typing.get_type_hints(type(self))[field.name])
            require(not choices or value in choices, field.name, f"must be one of {choices}", value)


def changed(name: str, default: Any) -> Any:
    """Declare an option of `RunConfig` again, with another default."""
    inherited = next(field for field in dataclasses.fields(RunConfig) if field.name == name)
    return option(default, **inherited.metadata)


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    """Raise a ValueError that names the option, its rule and the value, unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{name}` {rule}; got {value!r}.")


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return the values that a Literal, or a Literal or None, allows; nothing for other types."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        found = [value for member in typing.get_args(kind) for value in _choices(member)]
        return (*found, None) if found else ()
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


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
        # what is not on the command line is left out, so that a preset and then the class can say it
        arguments: dict[str, Any] = {
            "help": f"{field.metadata['help']} ({shown})",
            "required": required,
            "default": argparse.SUPPRESS,
        }
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is tuple:
            member = typing.get_args(kind)[0]
            arguments |= {"type": member, "nargs": "+", "action": "extend", "metavar": member.__name__.upper()}
        else:
            arguments |= {"type": lambda word, kind=kind: _parse_word(kind, word), "metavar": _metavar(kind)}
        group.add_argument(flag, **arguments)
    return parser


def _metavar(kind: Any) -> str:
    if _choices(kind):
        return "{" + ",".join(map(_words, _choices(kind))) + "}"
    members = [member for member in typing.get_args(kind) if member is not type(None)] or [kind]
    return members[0].__name__.upper()


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_config(
    config_class: type[Config],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read a config from the command line (or from `arguments`); a bad value ends with the parser's message.

    Args:
        config_class: the class to make.
        arguments: words of the command line; None = those of this process.
        description: text above the help.
        presets: options by the name that --preset takes; what is on the command line goes before a preset, and both
            before the defaults of the class.
    """
    parser = make_parser(config_class, description)
    if presets:
        parser.add_argument("--preset", choices=sorted(presets), help="named options; others on the line change them")
    given = vars(parser.parse_args(arguments))
    preset = given.pop("preset", None)
    values: dict[str, Any] = {**(presets[preset] if presets and preset else {}), **given}
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
        elif isinstance(value, str) and Path in (kinds[name], *typing.get_args(kinds[name])):
            values[name] = Path(value)
    return config_class(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Functions of the step: learning rate and randomness
# ---------------------------------------------------------------------------------------------------------------------


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, max_steps: int, schedule: str = "cosine") -> float:
    """Give the learning rate of optimiser step `step` (from 0).

    "cosine": a linear rise that reaches the peak at step warmup_steps - 1, then half a cosine down to 2 % of the peak.
    "one-cycle": a linear rise from peak / 25 at step 0 to the peak at step warmup_steps - 1, then linear down to
    peak / 250000 at step max_steps - 1; torch's OneCycleLR with anneal_strategy="linear" and
    pct_start = warmup_steps / max_steps, as ZeroStereo trains.

    A pure function of the optimiser step: resuming needs no scheduler state, and the curve does not depend on the
    number of processes (a scheduler prepared by accelerate advances once per process). After the last step it stays.
    """
    if schedule == "one-cycle":
        top = max(warmup_steps, 1) - 1
        start, lowest = peak / ONE_CYCLE_START, peak / ONE_CYCLE_START / ONE_CYCLE_END
        if step < top:
            return start + (peak - start) * step / top
        return peak + (lowest - peak) * min(1.0, (step - top) / max(1, max_steps - 1 - top))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine)


def step_generator(
    seed: int, step: int, rank: int, device: str | torch.device = "cpu", purpose: str | None = None
) -> torch.Generator:
    """Make the generator from which process `rank` draws everything random of step `step`, or of one purpose in it."""
    digest = hashlib.sha256(":".join(map(str, (seed, step, rank, *filter(None, [purpose])))).encode()).digest()
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


def flush_folder(folder: Path) -> None:
    """Have every file below a folder on the disk itself, so that a rename after it never shows half of one."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_folder_atomically(folder: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a folder under a temporary name, then put it in the place of `folder`."""
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    flush_folder(temporary)
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
    """Make the accelerator of a run.

    Raises:
        ValueError: the tracker that was asked for is not installed. TensorBoard, the default, is then left out.
    """
    installed = config.tracker != "wandb" or bool(is_wandb_available())
    require(installed, "tracker", "needs an installed package: pip install wandb, or tensorboard", config.tracker)
    tracker = None if config.tracker == "none" else config.tracker
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=tracker if tracker == "wandb" or is_tensorboard_available() else None,
        project_dir=config.output,
        # Depth Anything carries parameters that no loss reaches (mask token, the deepest fusion layer's first unit)
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def count_micro_steps(config: RunConfig, processes: int) -> int:
    """Count the forward passes of each process in one optimiser step.

    Raises:
        ValueError: `total_batch_size` is no multiple of what all processes together pass at once.
    """
    at_once = config.batch_size * processes
    total = config.total_batch_size or at_once
    rule = f"must be a multiple of `batch_size` x processes = {config.batch_size} x {processes}"
    require(total % at_once == 0, "total_batch_size", rule, total)
    return total // at_once


class TrainingRun:
    """Everything around a training step: moving average, checkpoints, resume, logs, bar, time limit.

    Args:
        accelerator: the run's accelerator; `network` and `optimizer` are already prepared by it.
        config: options; written beside each checkpoint.
        network: the network that learns.
        optimizer: its optimiser.

    Attributes:
        average: diffusers' EMAModel over the parameters that learn; None with `ema_decay` None.
        micro_steps: forward passes of each process in one optimiser step.
        first_step: the step the run begins with: 0, or the step of the checkpoint that it went on from.

    Raises:
        FileExistsError: the output folder holds checkpoints and `resume` is False.
        FileNotFoundError: `resume` is True and there is no checkpoint.
        ValueError: processes share weights (FSDP), and there is an average or a frozen part; or `resume` is True and
            options, or the number of processes, differ from the checkpoint's that are not free
            to.
    """

    def __init__(
        self, accelerator: Accelerator, config: RunConfig, network: nn.Module, optimizer: torch.optim.Optimizer
    ):
        self.accelerator, self.config, self.network, self.optimizer = accelerator, config, network, optimizer
        self.micro_steps = count_micro_steps(config, accelerator.num_processes)
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        everything_learns = all(parameter.requires_grad for parameter in self.bare_network.parameters())
        if self.is_sharded:
            require(
                config.ema_decay is None,
                "ema_decay",
                "must be none where processes share weights (FSDP)",
                config.ema_decay,
            )
            require(
                everything_learns,
                "network",
                "must learn as a whole where processes share weights (FSDP)",
                "frozen parts",
            )
        self.average = None
        if config.ema_decay is not None:
            self.average = EMAModel(learning_parameters(self.bare_network), decay=config.ema_decay, foreach=True)
            accelerator.register_for_checkpointing(self.average)
        self._interval_started, self._interval_waited = time.monotonic(), 0.0
        self._interval_steps, self._interval_samples, self._interval_sums = 0, 0, {}
        self._sums_of_all: list[dict[str, float]] = []
        accelerator.register_for_checkpointing(self)
        if not everything_learns:
            self._save_only_what_learns()
        self.log_path = config.output / "log.jsonl"
        self.first_step = self._resume() if config.resume else self._begin()
        self.completed = self.first_step
        if accelerator.log_with:
            # TensorBoard: a folder of the output; wandb: the project
            accelerator.init_trackers("tensorboard" if config.tracker == "tensorboard" else "zerostereo")
        self._started = time.monotonic()
        self._bar: Any = None

    @property
    def bare_network(self) -> Any:
        """The network without what accelerate wrapped around it."""
        return self.accelerator.unwrap_model(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint needs beside network, optimiser and average: the log line that is being summed."""
        return {"steps": self._interval_steps, "sums": self._sums_of_all}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the log line that was being summed, each process its own part."""
        found, processes = len(state["sums"]), self.accelerator.num_processes
        rule = f"goes on with {found} processes, as before, unless --allow-changes is given"
        require(found == processes or self.config.allow_changes, "resume", rule, processes)
        self._interval_steps = state["steps"]
        self._interval_sums = dict(state["sums"][self.accelerator.process_index % found])

    def _save_only_what_learns(self) -> None:
        """Leave frozen weights, which the run began with, out of checkpoints."""

        def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
            weights.clear()
            if self.accelerator.is_main_process:
                named = self.bare_network.named_parameters()
                learnt = {name: p.detach().contiguous().cpu() for name, p in named if p.requires_grad}
                save_file(learnt, Path(folder) / LEARNT_WEIGHTS)

        def load(models: list[nn.Module], folder: str) -> None:
            models.clear()
            self.bare_network.load_state_dict(load_file(Path(folder) / LEARNT_WEIGHTS), strict=False)

        self.accelerator.register_save_state_pre_hook(save)
        self.accelerator.register_load_state_pre_hook(load)

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
        if self.average is not None:
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

    def waited_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass batches on and add up the time that the loop waits for them, the `data_wait_share` of the log."""
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self._interval_waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one forward pass; those of one optimiser step count alike."""
        self.accelerator.backward(loss / self.micro_steps)

    def no_exchange(self, micro_step: int) -> AbstractContextManager:
        """Give a context for forward and backward pass in which processes exchange gradients only when they need to.

        They need to in the last of an optimiser step's forward passes.
        """
        last = micro_step == self.micro_steps - 1
        return nullcontext() if last else self.accelerator.no_sync(self.network)

    def update(self, step: int, loss: Tensor | None = None) -> None:
        """Take one optimiser step at the step's learning rate: clipping, optimiser, moving average.

        Args:
            step: which one, from 0.
            loss: where one forward pass makes a step, its loss, whose backward pass is then made here.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(
                step,
                peak=config.learning_rate,
                warmup_steps=config.warmup_steps,
                max_steps=config.max_steps,
                schedule=config.schedule,
            )
        if loss is not None:
            self.backward(loss)
        if config.max_gradient_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), config.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.step(learning_parameters(self.bare_network))

    def log_step(self, step: int, figures: Mapping[str, Tensor], samples: int) -> None:
        """Add one step's figures; every `log_every_steps` steps their means become a line of the log.

        The means are over steps and processes. A half-summed line is part of a checkpoint, so a resumed run writes
        the lines that an uninterrupted one writes; only `samples_per_s` and `data_wait_share` differ.

        Args:
            step: which one, from 0.
            figures: by name, scalars.
            samples: of this process in this step.
        """
        for name, value in figures.items():
            self._interval_sums[name] = self._interval_sums.get(name, 0.0) + value.detach().float()
        self._interval_steps += 1
        self._interval_samples += samples * self.accelerator.num_processes
        if not self.is_due(step, self.config.log_every_steps):
            return
        totals: Any = torch.tensor([float(total) for total in self._interval_sums.values()])
        totals = self.accelerator.reduce(totals.to(self.accelerator.device), reduction="mean").tolist()
        means = {name: total / self._interval_steps for name, total in zip(self._interval_sums, totals, strict=True)}
        means["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        seconds = max(time.monotonic() - self._interval_started, 1e-9)
        means["samples_per_s"] = self._interval_samples / seconds
        means["data_wait_share"] = min(1.0, self._interval_waited / seconds)
        self.log(step, means)
        if self._bar is not None:
            shown = {name: f"{means[name]:.3g}" for name in BAR_FIGURES if name in means}
            self._bar.set_postfix(shown, refresh=False)
        self._interval_started, self._interval_waited, self._interval_sums = time.monotonic(), 0.0, {}
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
        mine = {name: float(total) for name, total in self._interval_sums.items()}
        self._sums_of_all = gather_object([mine])
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_config(self.config, temporary / "config.json")
            flush_folder(temporary)
            temporary.rename(folder)
            for old in list_checkpoints(self.config.output)[: -self.config.checkpoints_keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def averaged_network(self) -> AveragedWeights:
        """Give a context in which the network is in evaluation mode and holds the averaged weights, if there are."""
        return AveragedWeights(self.bare_network, self.average)

    @contextmanager
    def network_to_save(self) -> Iterator[Any]:
        """Give the network to be saved, whole and averaged, in evaluation mode; every process takes part.

        Where processes share the weights, it is gathered into a copy on the main process, and others get None.
        """
        if not self.is_sharded:
            with self.averaged_network() as network:
                yield network
            return
        weights = self.accelerator.get_state_dict(self.network)
        if not self.accelerator.is_main_process:
            yield None
            return
        network = type(self.bare_network).from_config(self.bare_network.config)
        network.load_state_dict(weights)
        yield network.eval()

    def save_picture(self, step: int, picture: Image.Image) -> None:
        """Write a validation picture to `pictures/` and to the tracker."""
        if not self.accelerator.is_main_process:
            return
        folder = self.config.output / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step-{step + 1:06d}.png")
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": np.asarray(picture)[None]}, step=step + 1, **layout)

    def finish(self) -> None:
        """Close the trackers."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def learning_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class AveragedWeights:
    """Context manager: inside, `network` is in evaluation mode and computes with its moving average, if there is one.

    Outside nothing has changed.
    """

    def __init__(self, network: nn.Module, average: EMAModel | None):
        self.network, self.average = network, average

    def __enter__(self) -> Any:
        """Put the averaged weights in."""
        self.was_training = self.network.training
        if self.average is not None:
            self.average.store(learning_parameters(self.network))
            self.average.copy_to(learning_parameters(self.network))
        return self.network.eval()

    def __exit__(self, *exception: object) -> None:
        """Put the learning weights back."""
        if self.average is not None:
            self.average.restore(learning_parameters(self.network))
        self.network.train(self.was_training)
