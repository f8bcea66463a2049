# SPDX-License-Identifier: Apache-2.0
"""Runs a module in several real processes: torchrun on this machine, gloo, CPU. Itself the module of some tests."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACCELERATE_"))},
    "ACCELERATE_USE_CPU": "true",  # `accelerate launch --cpu --num_processes 2` would quietly start one process
    "OMP_NUM_THREADS": "1",
}


def launch_command(module: str, *arguments: str, processes: int) -> list[str]:
    """Return the command that runs a module in one process, or in several that find each other."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [sys.executable, "-m", *(launcher if processes > 1 else []), module, *arguments]


def run_module(module: str, *arguments: str, processes: int) -> str:
    """Run a module to its end and return what it printed."""
    command = launch_command(module, *arguments, processes=processes)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started, and so on."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found


def kill_with_descendants(process: subprocess.Popen) -> int:
    """Kill a process and all below it by SIGKILL; torchrun's workers are in sessions of their own.

    Returns:
        how many there were.
    """
    os.kill(process.pid, signal.SIGSTOP)  # so that it starts and reaps no other meanwhile
    pids = [process.pid, *descendants(process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(pids)


def report_learning_rates(output: Path, **options: Any) -> None:
    """Take some optimiser steps of a long run and print the learning rates, weights and count of processes."""
    from training.run import RunConfig, TrainingRun, make_accelerator

    config = RunConfig(output=output, tracker="none", ema_decay=None, max_gradient_norm=None, **options)
    accelerator = make_accelerator(config)
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network, optimizer = accelerator.prepare(network, optimizer)
    run = TrainingRun(accelerator, config, network, optimizer)
    rates = []
    for step in (0, 499, 25_000, 49_999):
        for micro_step in range(run.micro_steps):
            with run.no_exchange(micro_step):
                # the gradient is the mean of 1, 2, ... over processes and micro steps
                factor = 1.0 + accelerator.process_index + accelerator.num_processes * micro_step
                run.backward(factor * network(torch.ones(1, 1)).sum())
        run.update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    run.log_step(0, {"loss": torch.tensor(float(accelerator.process_index))}, samples=3)
    weight = accelerator.unwrap_model(network).weight.item()
    found = accelerator.gather(torch.tensor([[*rates, weight]], dtype=torch.float64))
    if accelerator.is_main_process:
        print(json.dumps({"processes": accelerator.num_processes, "found": found.tolist()}))
    run.finish()


if __name__ == "__main__":
    report_learning_rates(Path(sys.argv[1]), **json.loads(sys.argv[2]))
