# SPDX-License-Identifier: Apache-2.0
"""A stereo network from wherever it is, and one pair through it: what evaluation and prediction share.

    network = load_stereo_network("weights/raft-stereo")             # a folder, a Hub id or an official checkpoint
    estimate = estimate_disparity(network, left, right)              # uint8 [3,H,W] each
    estimate.disparity, estimate.seconds                             # [H,W] px

Knows which classes there are and how they are run; nothing of data sets, files or pictures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.eval_results import digest_tensors
from training.stereo_networks.convert_official_checkpoint import NETWORKS, convert_official_checkpoint
from training.stereo_networks.recurrent_stereo import DEFAULT_ITERATIONS, RecurrentStereo

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Estimate(NamedTuple):
    """What a network says of one pair."""

    disparity: Tensor  # [H,W] float32 on the CPU, px, left view; may be negative in places
    seconds: float  # from pictures on the device to the disparity there


def load_stereo_network(source: str, revision: str | None = None) -> RecurrentStereo:
    """Load a network, whose class is found from its config, or from its weights' names in an official checkpoint.

    Args:
        source: a folder that `save_pretrained` wrote, a repository of the Hub of the same form, or a file: an official
            checkpoint (see `convert_official_checkpoint`).
        revision: branch, tag or commit of a repository; None = its newest.

    Returns:
        A RAFTStereo or IGEVStereo on the CPU, float32, in evaluation mode.

    Raises:
        ValueError: a revision of a file, a config of another class, or weights that do not fit.
        OSError: neither file nor folder nor repository.
    """
    if Path(source).is_file():
        if revision is not None:
            raise ValueError(f"`revision` must be None where `source` is a file, {source}; got {revision!r}.")
        return convert_official_checkpoint(source)
    config: Any = RecurrentStereo.load_config(source, revision=revision)
    classes: Mapping[str, Any] = {network.__name__: network for network in NETWORKS}
    name = config.get("_class_name")
    if name not in classes:
        raise ValueError(
            f"`source` must hold a config of {' or '.join(classes)}; that of {source} is of {name}. "
            "Official checkpoints are given as a file (.pth or .safetensors)."
        )
    return classes[name].from_pretrained(source, revision=revision).eval()


def describe_network(network: RecurrentStereo, name: str) -> dict[str, Any]:
    """Say which network it is: name, class, number of parameters, SHA-256 of names and values of its weights."""
    return {
        "name": name,
        "class": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights_sha256": digest_tensors(network.state_dict()),
    }


@torch.no_grad()
def estimate_disparity(
    network: RecurrentStereo,
    left_image: Tensor,
    right_image: Tensor,
    *,
    iterations: int = DEFAULT_ITERATIONS,
    dtype: str = "float32",
    correlation: str = "all_pairs",
) -> Estimate:
    """Estimate the disparity of one pair on the network's device.

    Args:
        network: in evaluation mode.
        left_image: [3,H,W], 0..255, uint8 or float.
        right_image: the same shape.
        iterations: refinements.
        dtype: one of DTYPES; other than float32 is autocast, the weights stay as they are.
        correlation: see `RecurrentStereo.forward`.

    Raises:
        ValueError: another dtype; or what the network raises of shapes, iterations and correlation.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    device = network.device
    left, right = (image[None].to(device).float() for image in (left_image, right_image))
    _wait_for(device)
    start = time.perf_counter()
    with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
        disparity = network(left, right, iterations, correlation=correlation).disparity
    _wait_for(device)
    return Estimate(disparity[0, 0].float().cpu(), time.perf_counter() - start)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
