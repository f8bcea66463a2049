# SPDX-License-Identifier: Apache-2.0
"""Read a checkpoint of the official RAFT-Stereo, IGEV-Stereo or ZeroStereo code into a network of this folder.

    from training.stereo_networks.convert_official_checkpoint import convert_official_checkpoint

    convert_official_checkpoint("raftstereo-sceneflow.pth").save_pretrained("weights/raft-stereo-sceneflow")

Knows the two forms in which those projects publish weights: `.pth` files of torch, whose names begin with "module."
because they were saved out of DataParallel, and the `.safetensors` files that accelerate writes. Whatever else a file
holds is refused with every name that differs, never filled up with random numbers. A `.pth` file is read as data only
(`weights_only=True`): it cannot run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo

NETWORKS = (RAFTStereo, IGEVStereo)
DATA_PARALLEL_PREFIX = "module."
# Of a normalisation that official IGEV-Stereo builds and never uses; ZeroStereo's copy of the network is without it.
UNUSED_KEYS = tuple(
    f"cost_agg.conv1_up.bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
)
SECOND_NAME, FIRST_NAME = ".downsample.1.", ".norm3."  # of one normalisation in the official residual blocks


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, or any other as a file of torch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as data, or is not a flat table of names and tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint` must be a file; got {path}, which is none.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"`checkpoint` must be a .safetensors file or a file of torch that holds tensors only; got {path}: {error}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        kind = f"the entries {sorted(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"`checkpoint` must hold names and tensors and nothing else; {path} holds {kind}. "
            "Save the network's state dict alone."
        )
    return dict(state)


def rename_official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring official names to ours: no prefix, no unused tensors, one name for each tensor.

    Args:
        state: official names and tensors; unchanged.

    Raises:
        ValueError: a normalisation with two names has two different values.
    """
    if state and all(name.startswith(DATA_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(DATA_PARALLEL_PREFIX): value for name, value in state.items()}
    renamed = {name: value for name, value in state.items() if name not in UNUSED_KEYS and SECOND_NAME not in name}
    for name, value in state.items():
        if SECOND_NAME not in name:
            continue
        first = name.replace(SECOND_NAME, FIRST_NAME)
        if not torch.equal(renamed.setdefault(first, value), value):
            raise ValueError(f"`checkpoint` must hold one value for {first} and {name}, one tensor; got two.")
    return renamed


def differing_keys(state: Mapping[str, Tensor], network: type[RAFTStereo] | type[IGEVStereo]) -> list[str]:
    """Return one line for each name that is missing, unexpected, or of another shape than in the published network."""
    with torch.device("meta"):  # shapes only
        expected = {name: list(value.shape) for name, value in network().state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    lines = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [
        f"{name} is {found[name]} instead of {expected[name]}" for name in both if found[name] != expected[name]
    ]


def convert_official_checkpoint(checkpoint: str | Path) -> RAFTStereo | IGEVStereo:
    """Read an official checkpoint; which network it is of is seen from its names.

    Args:
        checkpoint: a `.pth` file of RAFT-Stereo or IGEV-Stereo, or a `.safetensors` file of Zero-RAFT-Stereo or
            Zero-IGEV-Stereo, of the published size. A state dict of our own networks is accepted too.

    Returns:
        The network with these weights in float32, in evaluation mode; `save_pretrained` writes it as a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, or names or shapes differ; the message lists all of them.
    """
    state = rename_official_keys(read_tensors(Path(checkpoint)))
    differences = {network: differing_keys(state, network) for network in NETWORKS}
    network = min(NETWORKS, key=lambda candidate: len(differences[candidate]))
    if differences[network]:
        lines = "\n  ".join(differences[network])
        raise ValueError(
            f"`checkpoint` must hold the weights of a published RAFT-Stereo or IGEV-Stereo; {checkpoint} comes "
            f"nearest to {network.__name__}, but {len(differences[network])} names differ:\n  {lines}"
        )
    model = network()
    model.load_state_dict(state)
    return model.eval()
