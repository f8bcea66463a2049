# SPDX-License-Identifier: Apache-2.0
"""Cards of stereo networks: made from the folder, true about it, and accepted by the Hub's library."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.stereo_network_helpers import SMALL_NETWORKS
from tests.test_repository import code_blocks
from training.publishing_card import CardAdditions
from training.stereo_network_card import TEMPLATE, count_parameters, network_card, network_class

MIT = CardAdditions(licence="mit", data_sets=("me/pairs",))


@pytest.fixture(scope="module", params=SMALL_NETWORKS)
def network(request, tmp_path_factory):
    made = SMALL_NETWORKS[request.param]()
    folder = tmp_path_factory.mktemp("networks") / request.param
    made.save_pretrained(folder)
    return made, folder


def test_the_card_is_true_about_its_network(network):
    made, folder = network
    text = network_card(folder, "me/net", MIT, "python -m training.train_stereo --output net")
    card = ModelCard(text)
    assert count_parameters(folder) == sum(value.numel() for value in made.state_dict().values())
    assert f"{count_parameters(folder) / 1e6:.2f} million parameters" in text
    assert network_class(folder) is type(made)
    (use,) = code_blocks(text, "python")
    ast.parse(use)
    module, name = re.findall(r"^from ([\w.]+) import (\w+)$", use, re.MULTILINE)[0]
    assert getattr(importlib.import_module(module), name) is type(made)
    assert f'{name}.from_pretrained("me/net")' in use
    for key, value in made.config.items():
        if not key.startswith("_"):
            assert f"| `{key}` |" in text, value
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "mit",
        "diffusers",
        "depth-estimation",
    )
    assert "{{" not in text and "{#" not in text


def test_nothing_is_said_that_nobody_measured_or_stated(network):
    _, folder = network
    text = network_card(folder, "me/net", CardAdditions(licence="mit"))
    figures = text.split("## Figures")[1].split("##")[0]
    assert "None: nothing was measured on these weights" in figures and not any(map(str.isdigit, figures))
    assert "No command is stated." in text and "Trained on" not in text
    described = network_card(folder, "me/net", MIT)
    assert "Trained on [me/pairs](https://huggingface.co/datasets/me/pairs)." in described
    with pytest.raises(ValueError, match="`--licence` must be given for weights without a card; .* has no README.md"):
        network_card(folder, "me/net", CardAdditions())


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match=r"one of \['RAFTStereo', 'IGEVStereo'\]; .* holds AutoencoderKL"):
        network_class(tmp_path)


def test_files_that_the_template_names_exist():
    root = TEMPLATE.parent.parent
    named = set(re.findall(r"`((?:tests|benchmarks|training)/[\w/]+\.py)`", TEMPLATE.read_text(encoding="utf-8")))
    assert len(named) >= 3 and [name for name in named if not (root / name).is_file()] == []
