# SPDX-License-Identifier: Apache-2.0
"""The table of benchmarks agrees with itself, and published figures are those of the paper."""

import pytest

from training.stereo_benchmarks import (
    BENCHMARKS,
    PUBLISHED,
    SOURCES,
    TABLE_1,
    TABLE_8,
    TOOLBOX_SETS,
    TOOLBOX_WEATHERS,
    Figure,
    PublishedNetwork,
    Source,
)
from training.stereo_metrics import THRESHOLDS_PX


def published(name: str, source: Source) -> PublishedNetwork:
    return next(one for one in PUBLISHED if (one.name, one.source) == (name, source))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_quotes_what_is_measured(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.threshold_px in THRESHOLDS_PX
    has_mask = all(layout.visible for layout in benchmark.dataset.layouts)
    assert benchmark.region == "all" or (benchmark.region == "noc" and has_mask)
    assert (benchmark.submission is None) == (benchmark.server_pairs is None)


def test_every_set_has_one_name():
    datasets = [benchmark.dataset for benchmark in BENCHMARKS.values()]
    assert len(set(datasets)) == len(datasets) == 12


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: f"{one.name}, {one.source.title[:12]}")
def test_published_figures_are_of_benchmarks(one):
    for figure, value in one.figures.items():
        benchmark = BENCHMARKS[figure.benchmark]
        assert figure.threshold_px in (None, benchmark.threshold_px) and figure.region in ("all", "noc")
        assert 0 < value < 27


def test_rows_of_the_paper():
    figures = published("Zero-RAFT-Stereo", TABLE_8).figures
    assert [figures[Figure(*key)] for key in (("kitti2015", "all", 3), ("middlebury-h", "noc", 2))] == [4.53, 4.45]
    assert figures[Figure("eth3d", "noc", 1)] == 2.13 and len(figures) == 3
    figures = published("all + ZeroStereo loss", TABLE_1).figures
    assert list(figures.values()) == [1.04, 4.73, 2.09, 1.90]
    assert Figure("middlebury-h", "noc", None) in figures


def test_rows_of_the_independent_evaluation():
    figures = published("Zero-IGEV-Stereo", TOOLBOX_SETS).figures
    assert figures[Figure("kitti2012", "all", None)] == 0.739 and len(figures) == 4 * 3
    assert figures[Figure("middlebury-h", "noc", 2)] == 4.90 and figures[Figure("middlebury-h", "all", 2)] == 7.40
    figures = published("Zero-IGEV-Stereo", TOOLBOX_WEATHERS).figures
    assert figures[Figure("drivingstereo-rainy", "all", None)] == 1.791 and len(figures) == 4 * 2
    assert figures[Figure("drivingstereo-foggy", "all", 3)] == 1.89
    assert [source.max_disparity_px for source in SOURCES] == [None, None, 191, 191]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.title[-20:])
def test_rows_of_a_source_have_the_same_figures(source):
    rows = [list(one.figures) for one in PUBLISHED if one.source == source]
    assert len(rows) >= 3 and all(row == rows[0] for row in rows)
