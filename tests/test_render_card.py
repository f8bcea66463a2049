# SPDX-License-Identifier: Apache-2.0
"""The card of the embedded weights is what the command makes of its values and of a benchmark's JSON."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from training import render_card
from training.eval_results import results_of

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights" / "zerostereo-tiny"
RESULTS = ROOT / "benchmarks" / "results" / "embedded_quality.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The embedded weights without their card."""
    return Path(shutil.copytree(WEIGHTS, tmp_path / "zerostereo-tiny", ignore=shutil.ignore_patterns("README.md")))


def test_the_card_of_the_embedded_weights_is_the_one_that_the_command_writes(folder, capsys):
    render_card.main([str(folder), "--results", str(RESULTS)])
    assert (folder / "README.md").read_text("utf-8") == (WEIGHTS / "README.md").read_text("utf-8")
    assert capsys.readouterr().out.endswith("8 figures in the front matter\n")
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))


def test_its_metadata_are_the_figures_of_the_benchmark_on_these_weights():
    results = results_of([RESULTS], WEIGHTS, "weights/zerostereo-tiny")
    assert all(one.weights for one in results), "by checksum"
    stated = ModelCard.load(WEIGHTS / "README.md").data.eval_results or []
    expected = [(one.data_set, name, value) for one in results for name, value in one.figures.items()]
    assert [(one.dataset_name, one.metric_name, one.metric_value) for one in stated] == expected
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert stated[0].metric_value == record["held_out"]["fills"][0]["psnr_db"]
    assert {one.task_type for one in stated} == {"image-to-image"}


def test_without_results_the_front_matter_has_no_figures(folder):
    render_card.main([str(folder)])
    assert ModelCard.load(folder / "README.md").data.eval_results is None


def test_what_cannot_be_rendered_ends_with_one_line(folder, tmp_path):
    with pytest.raises(
        SystemExit, match="^render_card: error: `DIR` must hold card.json, the values of model_card.md; got "
    ):
        render_card.main([str(tmp_path)])
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(
        SystemExit, match=r"were made with other files: \['unet/diffusion_pytorch_model.safetensors'\]"
    ):
        render_card.main([str(folder), "--results", str(RESULTS)])
    assert not (folder / "README.md").exists()
