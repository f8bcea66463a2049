# SPDX-License-Identifier: Apache-2.0
"""Inverse depth of photographs, estimated once and kept on disk, so that training runs no depth network.

    cache/
      <depth model, 16 hex digits>/
        <photograph, 64 hex digits>.npy        uint16 [H,W]: normalised inverse depth in steps of 1/65535

A photograph is known by the SHA-256 of its file, so it may be moved and renamed, and a changed file is estimated anew.
A depth model is known by its weights and by the settings that decide what it says (`depth_model_key`). Filling needs
the network and happens before training; reading needs neither network nor device and may happen in any worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pipeline_zerostereo import StereoImageProcessor

STEPS = 65535  # of a stored value; at 4000 px and the largest strength, 0.2, one step is 0.012 px
DEPTH_SETTINGS = ("depth_prediction", "depth_mean", "depth_std", "depth_size_multiple", "default_depth_resolution")

Estimate = Callable[[Tensor], Tensor]  # photograph [1,3,H,W] in [0,1] -> normalised inverse depth [1,1,H,W] in [0,1]


def depth_model_key(pipe: Any) -> str:
    """Name the depth model of a pipeline by what it computes: 16 hex digits of weights and settings.

    Args:
        pipe: a ZeroStereoPipeline with a depth estimator.

    Raises:
        ValueError: the pipeline has no depth estimator.
    """
    if pipe.depth_estimator is None:
        raise ValueError("`pipe` must have a depth estimator; got None. Load one with `depth_estimator=`.")
    digest = hashlib.sha256(json.dumps([[name, pipe.config[name]] for name in DEPTH_SETTINGS]).encode())
    digest.update(json.dumps(pipe.depth_estimator.config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in sorted(pipe.depth_estimator.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def file_key(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PhotographDepth:
    """The cache of one depth model.

    Args:
        folder: of the cache; created when the first map is written.
        model_key: from `depth_model_key`, or any name fit for a folder that changes when the model does.
    """

    def __init__(self, folder: Path, model_key: str):
        self.folder = folder / model_key

    def file_of(self, photograph: Path) -> Path:
        """Return where the map of a photograph is or will be."""
        return self.folder / f"{file_key(photograph)}.npy"

    def fill(self, photographs: Iterable[Path], estimate: Estimate) -> int:
        """Estimate the photographs that have no map yet; each is written as soon as it is known, whole or not at all.

        Args:
            photographs: files; orientation and colour as `StereoImageProcessor` reads them.
            estimate: takes a photograph [1,3,H,W] float32 in [0,1], returns [1,1,H,W] in [0,1], larger = nearer, for
                example `lambda image: pipe.estimate_inverse_depth(image)[0]`.

        Returns:
            the number of photographs that were estimated now.

        Raises:
            ValueError: `estimate` returned another shape, or values outside [0,1]; nothing is written for that one.
            FileNotFoundError, and what `StereoImageProcessor.open` raises: an unreadable photograph.
        """
        missing = {target: path for path in photographs if not (target := self.file_of(path)).exists()}
        for target, path in tqdm(missing.items(), desc="depth", unit="photo", disable=not missing):
            with StereoImageProcessor.open(path) as opened:
                image = StereoImageProcessor.preprocess(opened, path.name)  # [1,3,H,W]
            _write_array(target, _to_steps(estimate(image), image, path))
        return len(missing)

    def read(self, photograph: Path) -> Tensor:
        """Return the normalised inverse depth of a photograph, [1,H,W] float32 in [0,1].

        Raises:
            FileNotFoundError: there is no map of it yet.
        """
        target = self.file_of(photograph)
        if not target.exists():
            raise FileNotFoundError(
                f"`photograph` must have been through `fill`; got {photograph}, for which there is no {target}."
            )
        return torch.from_numpy(np.load(target).astype(np.float32))[None] / STEPS


def _to_steps(inverse_depth: Tensor, image: Tensor, path: Path) -> np.ndarray:
    """Check what an estimate returned, and turn it into uint16 [H,W]."""
    expected = [1, 1, *image.shape[2:]]
    if list(inverse_depth.shape) != expected:
        raise ValueError(f"`estimate` must return shape {expected} for {path}; got {list(inverse_depth.shape)}.")
    lowest, highest = (bound.item() for bound in torch.aminmax(inverse_depth))
    if not (lowest >= 0 and highest <= 1):  # NaN fails too
        raise ValueError(f"`estimate` must return values in [0, 1] for {path}; got {lowest:g} to {highest:g}.")
    return (inverse_depth[0, 0].float().cpu() * STEPS).round().to(torch.int32).numpy().astype(np.uint16)


def _write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file under a name of its own, then rename: also two processes at once leave one whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
