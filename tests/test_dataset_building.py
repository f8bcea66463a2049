# SPDX-License-Identifier: Apache-2.0
"""Tests of the benchmark of a build: its arithmetic with known answers, and a run at small size."""

import json
import time
from pathlib import Path

import PIL.Image
import pytest
import torch

from benchmarks import dataset_building
from benchmarks.dataset_building import Stopwatch, builder_share, pairs_per_core, verdicts, write_photographs

FIGURES = {
    "pairs": 6,
    "seconds": 4.0,
    "processor": 5.0,
    "stages": {"read": 0.1, "decode": 0.2, "depth": 1.0, "select": 0.5, "warp": 0.25, "inpaint": 2.75, "encode": 0.2},
}


@pytest.fixture(autouse=True)
def threads_as_before():
    """The benchmark sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_shares_and_rates():
    """Of 5 s of the processor 4.5 s are the pipeline's; 6 pairs in 5 s."""
    assert builder_share(FIGURES) == pytest.approx(0.1)
    assert pairs_per_core(FIGURES) == pytest.approx(1.2)


def test_targets():
    fast = {**FIGURES, "processor": 0.5}
    slow_builder = {**FIGURES, "processor": 9.0}
    quick_builder = {**FIGURES, "processor": 4.9}
    assert [met for _, met in verdicts({"real": slow_builder, "stand_in": FIGURES})] == [False, False]
    assert verdicts({"real": quick_builder, "stand_in": fast}) == [
        ("everything but the pipeline: 8.2%, target under 10%", True),
        ("without networks: 12.0 pairs per core and second, target at least 5", True),
    ]


def test_a_stopwatch_counts_the_processor_and_not_the_clock():
    watch = Stopwatch()

    class Work:
        @staticmethod
        def sleep() -> int:
            time.sleep(0.2)
            return 3

        @staticmethod
        def spin() -> None:
            end = time.thread_time() + 0.05
            while time.thread_time() < end:
                pass

    with watch.watch(("read", Work, "sleep"), ("encode", Work, "spin")):
        assert Work.sleep() == 3
        Work.spin()
        Work.spin()
    Work.spin()  # not watched any more
    assert watch.seconds["read"] < 0.05
    assert 0.1 <= watch.seconds["encode"] < 0.15


def test_photographs_differ_and_have_the_size(tmp_path: Path):
    write_photographs(tmp_path / "photos", 7, (96, 64))
    files = sorted((tmp_path / "photos").iterdir())
    assert len({path.read_bytes() for path in files}) == 7
    assert {PIL.Image.open(path).size for path in files} == {(96, 64)}


def test_everything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(dataset_building, "REAL_SIZE", (96, 64))
    monkeypatch.setattr(dataset_building, "STAND_IN_SIZE", (96, 64))
    monkeypatch.setattr(dataset_building, "MAX_BUILDER_SHARE", 1.0)
    monkeypatch.setattr(dataset_building, "MIN_PAIRS_PER_CORE", 0.0)
    assert dataset_building.main(["--photos", "2", "--runs", "1", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["real"]["pairs"] == 2 and result["stand_in"]["pairs"] == 4
    assert all(seconds > 0 for seconds in result["real"]["stages"].values())
    assert {stage for stage, seconds in result["stand_in"]["stages"].items() if seconds == 0} == {
        "depth",
        "select",
        "inpaint",
    }
    assert len(result["rows_per_second"]) == 4 and min(result["rows_per_second"].values()) > 0
    assert "| stream, decoded |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        dataset_building.main(["--photos", "0"])
    assert "--photos and --runs must be at least 1; got 0 and 3" in capsys.readouterr().err
