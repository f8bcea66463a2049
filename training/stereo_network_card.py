# SPDX-License-Identifier: Apache-2.0
"""The card of a stereo network, made from its folder and from what its publisher says. Invents no figure.

The template is stereo_network_card.md. Figures are added by publishing_card.py, from results of these very weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from training.pipeline_folder import render_card
from training.publishing_card import CardAdditions, licence_line
from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo

TEMPLATE = Path(__file__).resolve().with_name("stereo_network_card.md")
NETWORKS: dict[str, Any] = {network.__name__: network for network in (RAFTStereo, IGEVStereo)}
TITLES = {"RAFTStereo": "RAFT-Stereo", "IGEVStereo": "IGEV-Stereo"}
NETWORK_TAGS = ["stereo", "stereo-matching", "disparity"]
CITATIONS = {
    "RAFTStereo": """@inproceedings{lipson2021raft,
  title     = {RAFT-Stereo: Multilevel Recurrent Field Transforms for Stereo Matching},
  author    = {Lipson, Lahav and Teed, Zachary and Deng, Jia},
  booktitle = {International Conference on 3D Vision (3DV)},
  year      = {2021}
}""",
    "IGEVStereo": """@inproceedings{xu2023iterative,
  title     = {Iterative Geometry Encoding Volume for Stereo Matching},
  author    = {Xu, Gangwei and Wang, Xianqi and Ding, Xiaohuan and Yang, Xin},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023}
}""",
}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a network."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def network_class(folder: Path) -> Any:
    """Return the class of the network in a folder.

    Raises:
        ValueError: its config.json names no stereo network of this project.
    """
    name = read_config(folder).get("_class_name")
    if name not in NETWORKS:
        raise ValueError(
            f"`DIR` must hold a stereo network that save_pretrained wrote, one of {list(NETWORKS)}; "
            f"{folder} holds {name}."
        )
    return NETWORKS[name]


def count_parameters(folder: Path) -> int:
    """Return how many numbers the weights of a folder hold."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def network_card(folder: Path, repo_id: str, additions: CardAdditions, trained_with: str = "") -> str:
    """Return the card of a stereo network without figures.

    Args:
        folder: of the network.
        repo_id: USER/NAME.
        additions: the licence must be among them.
        trained_with: command of the training; empty = not described.

    Raises:
        ValueError: no licence is given, or the folder holds no stereo network of this project.
    """
    if not additions.licence:
        raise ValueError(f"`--licence` must be given for weights without a card; {folder} has no README.md.")
    network = network_class(folder)
    name = network.__name__
    config = {key: value for key, value in read_config(folder).items() if not key.startswith("_")}
    rows = [f"| `{key}` | {json.dumps(value)} |" for key, value in config.items()]
    data_sets = ", ".join(f"[{one}](https://huggingface.co/datasets/{one})" for one in additions.data_sets)
    pairs = f"Trained on {data_sets}. " if data_sets else ""
    command = ["Command:", "", "```", trained_with, "```"] if trained_with else ["No command is stated."]
    text = f"The licence of the weights, as their publisher states it: {licence_line(additions.licence)}."
    values = {
        "card_data": {
            "license": additions.licence,
            "library_name": "diffusers",
            "pipeline_tag": "depth-estimation",
            "tags": [*NETWORK_TAGS, TITLES[name].lower()],
        },
        "title": repo_id.partition("/")[2],
        "summary": f"{TITLES[name]}: the two pictures of a stereo camera in, a disparity map in pixels out. "
        f"{count_parameters(folder) / 1e6:.2f} million parameters.",
        "module": network.__module__,
        "class_name": name,
        "repo_id": repo_id,
        "configuration": ["| Setting | Value |", "| --- | --- |", *rows],
        "training": [f"{pairs}{command[0]}", *command[1:]],
        "figures": "None: nothing was measured on these weights.",
        "weights_licence": text,
        "network_citation": CITATIONS[name],
    }
    return render_card(values, TEMPLATE)
