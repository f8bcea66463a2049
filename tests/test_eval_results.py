# SPDX-License-Identifier: Apache-2.0
"""Figures on cards: read wherever they stand, refused where they are of other weights or of nobody's script."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData

from tests.stereo_network_helpers import make_small_raft
from training.eval_results import (
    figure_table,
    model_index,
    read_results,
    results_of,
    tensor_digest,
    weight_checksums,
)

RESULT: dict[str, Any] = {
    "network": "mine",
    "data_set": "KITTI 2015",
    "protocol": "all pixels, mean of the images",
    "script": "python -m training.evaluate_stereo",
    "figures": {"EPE, px": 1.25, "noc": {"> 3 px": 0.0625, "> 1 px": None}},
}


def write(folder: Path, content: object, name: str = "results.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A folder of weights whose checksums are known."""
    folder = tmp_path / "mine"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a.safetensors").write_bytes(b"seven" * 700_000)  # more than is hashed at a time
    (folder / "config.json").write_text("{}")
    return folder


def test_a_result_is_read_with_nested_names_and_without_what_was_not_measured(tmp_path):
    (result,) = read_results(write(tmp_path, RESULT))
    assert result.figures == {"EPE, px": 1.25, "noc > 3 px": 0.0625}
    assert (result.network, result.data_set, result.weights) == ("mine", "KITTI 2015", None)
    (silent,) = read_results(write(tmp_path, {name: RESULT[name] for name in RESULT if name != "script"}))
    assert silent.script == "python -m training.evaluate_stereo"


def test_results_are_found_wherever_they_stand_with_what_is_said_above_them(tmp_path):
    bare = {name: value for name, value in RESULT.items() if name != "script"}
    second = {**bare, "data_set": "ETH3D", "script": "python -m benchmarks.other", "weights": {"b": "2"}}
    content = {
        "script": "python -m benchmarks.some --all",
        "weights": {"a": "1"},
        "sets": [{"one": bare}, {"data_set": "no figures"}],
    }
    found = read_results(write(tmp_path, {**content, "more": {"deep": [second]}}))
    assert [(one.data_set, one.script, one.weights) for one in found] == [
        ("KITTI 2015", "python -m benchmarks.some --all", {"a": "1"}),
        ("ETH3D", "python -m benchmarks.other", {"b": "2"}),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": ""}, r"must say \['network'\] of the figures on 'KITTI 2015'"),
        ({"protocol": None}, r"must say \['protocol'\] of the figures"),
        ({"figures": {"EPE": "1.0"}}, "`figures` must be finite numbers or null; got '1.0' for EPE"),
        ({"figures": {"noc": {"D1": True}}}, "got True for noc D1"),
        ({"figures": {"EPE": float("nan")}}, "got nan for EPE"),
        ({"figures": {"EPE": None}}, "must hold at least one number for 'KITTI 2015'"),
        ({"script": "Table 8 of the paper"}, "`script` must be a command of this project, .*; got 'Table 8 of the"),
        ({"script": "python -m pip"}, "got 'python -m pip'"),
    ],
)
def test_what_no_script_measured_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_results(write(tmp_path, {**RESULT, **changes}))


def test_files_that_hold_no_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`--results` must be a JSON file that a benchmark wrote; got .*none"):
        read_results(tmp_path / "none.json")
    with pytest.raises(ValueError, match="`--results` must be a JSON file; got .*results.json: Expecting"):
        read_results(write(tmp_path, "EPE 1.0"))
    with pytest.raises(ValueError, match=r"must hold objects with \['network', .*; .*results.json has none"):
        read_results(write(tmp_path, [{"epe": 1.0}]))


def test_checksums_are_those_of_every_weights_file(network):
    expected = {"unet/a.safetensors": hashlib.sha256(b"seven" * 700_000).hexdigest()}
    assert weight_checksums(network) == expected


def test_only_figures_of_these_very_weights_are_taken(tmp_path, network):
    own = weight_checksums(network)
    renamed = {**RESULT, "network": "as it was called before", "weights": own}
    assert len(results_of([write(tmp_path, renamed)], network, "me/mine")) == 1
    for other in ({"unet/a.safetensors": "0" * 64}, {**own, "vae/b.safetensors": "0"}):
        with pytest.raises(ValueError, match=r"'KITTI 2015' were made with other files: \['(unet/a|vae/b).safetens"):
            results_of([write(tmp_path, {**RESULT, "weights": other})], network, "me/mine")
    assert results_of([], network, "me/mine") == []


def report(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a report as an evaluation of a stereo network writes it: two regions, two averages, one set."""
    figures = {"end_point_error_px": 1.5, "bad_percent": {"1": 7.0, "2": 4.25}, "d1_percent": None, "images": 2}
    pooled = {**figures, "end_point_error_px": 1.75, "d1_percent": 3.0}
    benchmark = {
        "title": "Middlebury, half size",
        "quoted": {"region": "noc", "threshold_px": 2.0},
        "pairs": 2,
        "pairs_of_the_set": 15,
        "figures": {"all": {}, "noc": {"image average": figures, "pixel pooled": pooled}},
    }
    network = {"name": "elsewhere.pth", "class": "RAFTStereo", "weights_sha256": tensor_digest(folder)}
    protocol = {"iterations": 32, "dtype": "float32", "regions": {}, "averages": {}}
    return {
        "report_version": 1,
        "network": {**network, **changes},
        "protocol": protocol,
        "benchmarks": {"m": benchmark},
    }


def test_the_report_of_an_evaluation_gives_what_is_usually_quoted(tmp_path):
    folder = tmp_path / "raft"
    network = make_small_raft()
    network.save_pretrained(folder)
    state = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        state.update(f"{name} {value.dtype} {list(value.shape)}".encode() + value.numpy().tobytes())
    assert tensor_digest(folder) == state.hexdigest()
    (result,) = results_of([write(tmp_path, report(folder))], folder, "me/raft")
    assert (result.network, result.data_set) == ("elsewhere.pth", "Middlebury, half size")
    assert result.protocol == "region noc, 2 of 15 pairs, 32 iterations, float32"
    assert result.script == "python -m training.evaluate_stereo"
    assert result.figures == {
        "image average EPE, px": 1.5,
        "image average > 2 px, %": 4.25,
        "pixel pooled EPE, px": 1.75,
        "pixel pooled > 2 px, %": 4.25,
        "pixel pooled D1, %": 3.0,
    }
    with pytest.raises(ValueError, match=r"'Middlebury, half size' were made with other files: \['tensors'\]"):
        results_of([write(tmp_path, report(folder, weights_sha256="0" * 64))], folder, "me/raft")


def test_without_checksums_the_name_decides(tmp_path, network):
    for name in ("mine", "me/published", str(network)):
        assert len(results_of([write(tmp_path, {**RESULT, "network": name})], network, "me/published")) == 1
    with pytest.raises(ValueError, match="are of 'me/other', and there are no checksums that would say more"):
        results_of([write(tmp_path, {**RESULT, "network": "me/other"})], network, "me/published")


def test_the_metadata_is_what_the_hub_reads_and_says_who_measured(tmp_path):
    results = read_results(write(tmp_path, RESULT))
    data: dict[str, Any] = {"model-index": model_index(results, "mine", "depth-estimation")}
    front = yaml.safe_load(ModelCardData(**data).to_yaml())
    (entry,) = front["model-index"]
    assert entry["name"] == "mine" and entry["results"][0]["task"] == {"type": "depth-estimation"}
    assert entry["results"][0]["dataset"] == {"name": "KITTI 2015", "type": "kitti-2015"}
    first, second = entry["results"][0]["metrics"]
    assert (first["type"], first["value"], first["name"]) == ("epe-px", 1.25, "EPE, px")
    assert (second["type"], second["value"]) == ("noc-above-3-px", 0.0625)
    assert first["args"] == {"protocol": RESULT["protocol"], "script": RESULT["script"]}
    assert model_index([], "mine", "depth-estimation") == []


def test_every_row_of_the_table_names_its_script(tmp_path):
    lines = figure_table(read_results(write(tmp_path, RESULT)))
    assert lines[2] == (
        "| KITTI 2015 | EPE, px | 1.25 | all pixels, mean of the images | `python -m training.evaluate_stereo` |"
    )
    assert len(lines) == 4 and all("`python -m training.evaluate_stereo`" in line for line in lines[2:])
