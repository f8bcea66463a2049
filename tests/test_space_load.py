# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the web page: what it judges and prints, and that it runs with a few requests."""

import json
import os
from pathlib import Path

import PIL.Image
import pytest

pytest.importorskip("gradio", reason="needs the module 'gradio', which is not installed")
pytest.importorskip("spaces", reason="needs the module 'spaces', which is not installed")

from benchmarks.space_load import PHOTO, cut_photo, judge, main, resident_mib, run_all, table


def make_figures(bad: int = 0, growth: float = 0.02) -> dict:
    return {
        "latency": {
            "start_s": 7.25,
            "start_to_first_pair_s": 9.5,
            "new_photograph_s": 1.5,
            "same_photograph_other_strength_s": 1.25,
            "anaglyph_of_last_pair_s": 0.125,
        },
        "parallel": {"requests": 50, "right": 41 - bad, "queue_full": 9, "bad": bad, "elapsed_s": 33.0},
        "memory": {
            "requests_per_block": 20,
            "mib_after_blocks": [800.0, 810.0, 816.0],
            "growth": growth,
            "cancelled": 6,
            "cancelled_longest_s": 0.375,
        },
    }


@pytest.mark.parametrize(
    ("bad", "growth", "expected"), [(0, 0.05, [True, True]), (1, 0.02, [False, True]), (0, 0.051, [True, False])]
)
def test_targets_are_judged(bad: int, growth: float, expected: list[bool]):
    assert list(judge(make_figures(bad, growth)).values()) == expected


def test_the_table_names_every_figure():
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table(make_figures()).splitlines()]
    assert ["start until the first pair with all files", "9.5 s"] in lines
    assert ["50 requests at once", "41 right, 9 told that the queue is full, 0 bad, 33 s"] in lines
    assert ["memory after 20 requests", "800 MiB"] in lines and [
        "memory after 60 requests",
        "816 MiB (+2.0%)",
    ] in lines
    assert ["longest of 6 cancels", "0.38 s"] in lines


def test_photographs_have_their_size_and_differ(tmp_path: Path):
    pictures = [PIL.Image.open(cut_photo(tmp_path, number, (64, 48))) for number in (0, 1)]
    assert [picture.size for picture in pictures] == [(64, 48)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert PIL.Image.open(PHOTO).size == (600, 400)  # which the crops must not leave


def test_memory_of_a_process_is_read():
    assert 10 < resident_mib(os.getpid()) < 100_000


def test_an_error_of_a_thread_is_not_lost():
    done = []
    with pytest.raises(RuntimeError, match="1 of 2 threads failed") as caught:
        run_all([lambda: done.append(1), lambda: int("no number")])
    assert done == [1] and isinstance(caught.value.__cause__, ValueError)


@pytest.mark.slow
def test_a_few_requests_are_measured(tmp_path: Path, capsys):
    assert main(["--quick", "--json", str(tmp_path / "figures.json")]) == 0
    record = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert (record["parallel"]["right"], record["parallel"]["bad"]) == (2, 0)
    assert len(record["memory"]["mib_after_blocks"]) == 2 and record["memory"]["cancelled"] >= 1
    assert record["latency"]["start_to_first_pair_s"] > record["latency"]["start_s"] > 0
    assert record["targets"]["every answer right, or refused for a full queue"]
    assert "| 2 requests at once" in capsys.readouterr().out
