# SPDX-License-Identifier: Apache-2.0
"""What the tests of the training scripts share: a tiny pool, options for it, and a look into checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch

from training.procedural_scenes import SceneBatch
from training.run import list_checkpoints

SCENE_SIZE = (32, 48)
TIMING = ("samples_per_s", "data_wait_share")
POOL_OPTIONS: dict[str, Any] = {
    "pool_scenes": 6,
    "scene_size": SCENE_SIZE,
    "scenes_per_chunk": 3,
    "newest_scenes": 3,
    "validation_scenes": 2,
    "batch_size": 4,
    "warmup_steps": 2,
    "log_every_steps": 2,
}


def make_scenes(count: int = 3, seed: int = 1) -> SceneBatch:
    """Pictures of noise with a near square: cheap, and warped by known disparities (5 px on 1 px)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SCENE_SIZE
    left, right = torch.rand((2, count, 3, height, width), generator=generator)
    disparity = torch.ones(count, 1, height, width)
    disparity[..., 8:20, 16:30] = 5.0
    return SceneBatch(left, right, disparity, disparity.flip(-1))


def checkpoint_tensors(output: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the newest checkpoint: network, optimiser, moving average (if there is one)."""
    from safetensors.torch import load_file

    checkpoint = list_checkpoints(output)[-1]
    tensors = {f"network.{name}": value for name, value in load_file(checkpoint / "model.safetensors").items()}
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    for index, state in optimizer.items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    average = torch.load(checkpoint / "custom_checkpoint_0.pkl", weights_only=True)
    tensors |= {f"average.{i}": value for i, value in enumerate(average.get("shadow_params", ()))}
    return tensors


def log_lines(output: Path) -> list[dict[str, float]]:
    """Return the log without its timing."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    """Check that two runs ended in the same state bit for bit, by the same way."""
    ours, theirs = checkpoint_tensors(first), checkpoint_tensors(second)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert log_lines(first) == log_lines(second)
