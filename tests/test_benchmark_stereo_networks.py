# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the stereo networks counts, and that it runs."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.stereo_networks import (
    STAGES,
    ProductCounter,
    TensorKind,
    describe,
    main,
    measure_on_cpu,
    rebuild,
    time_products,
    timed_stages,
)
from tests.stereo_network_helpers import make_pair, make_small_raft


def test_products_are_counted_by_kind_and_nothing_else_is():
    x, weight = torch.ones(1, 3, 8, 9), torch.ones(2, 3, 3, 3)
    with ProductCounter() as counter:
        F.relu(F.conv2d(x, weight)) + 1
        F.conv2d(x, weight)
        F.conv2d(x, weight, padding=1)
        torch.bmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5))
    assert sorted(counter.calls.values()) == [1, 1, 2]
    assert time_products(counter.calls, runs=1) >= 0


def test_rebuilt_arguments_have_the_layout_of_the_noted_ones():
    image = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    noted = describe([image, None, [1, 2], False])
    assert noted == (TensorKind((2, 3, 4, 5), (60, 1, 15, 3), torch.float32), None, (1, 2), False)
    tensor, *rest = rebuild(noted)
    assert (tensor.shape, tensor.stride(), rest) == (image.shape, image.stride(), [None, [1, 2], False])


@torch.no_grad()
def test_stages_are_timed_and_the_network_is_left_as_it_was():
    network, pair = make_small_raft(), make_pair(32, 64)
    expected = network(*pair, 2).disparity
    with timed_stages(network) as seconds:
        assert torch.equal(network(*pair, 2).disparity, expected)
    assert list(seconds) == list(STAGES) and all(value > 0 for value in seconds.values())
    before = dict(seconds)
    network(*pair, 2)
    assert seconds == before


def test_products_of_more_refinements_take_longer():
    network = make_small_raft()
    few, many = (measure_on_cpu(network, (32, 64), count, 1, "all_pairs").products for count in (1, 40))
    assert many > 2 * few > 0


def run_main(monkeypatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.stereo_networks", *options])
    main()


def test_it_runs(tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "figures.json"
    run_main(monkeypatch, "--smoke", "--json", str(file))
    assert "| raft |" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [row["network"] for row in rows] == ["raft", "igev"] and all(row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch, capsys):
    run_main(monkeypatch, "--smoke", "--memory", "--network", "raft")
    assert re.search(r"\| raft \| \d+\.\d\d GiB \| 0\.00 GiB \|", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--iterations", "0"), "--iterations must be at least 1; got 0"),
        (("--runs", "0"), "--runs must be at least 1"),
    ],
)
def test_wrong_options_are_named(monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, *options)
    assert message in capsys.readouterr().err
