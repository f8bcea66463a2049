# SPDX-License-Identifier: Apache-2.0
"""Reports, CSV and Markdown of an evaluation: figures by hand, every average named, published rows where they may."""

import csv
import io
import json

import pytest
import torch

from training.stereo_benchmarks import TABLE_1, TABLE_8, TOOLBOX_SETS
from training.stereo_evaluation import ImageResult, find_regions, measure_image
from training.stereo_tables import (
    make_report,
    markdown_report,
    markdown_table,
    per_image_csv,
    protocol_differences,
    report_benchmark,
)

NETWORK = {"name": "me/zero", "class": "RAFTStereo", "weights_sha256": "0123456789abcdef"}
PROTOCOL = {"iterations": 32, "dtype": "float32", "max_disparity_px": None}


def measured(name: str, errors: list[float], visible: list[bool] | None, seconds: float = 0.5) -> ImageResult:
    truth = torch.full((1, 1, 1, len(errors)), 20.0)
    mask = None if visible is None else torch.tensor(visible).view_as(truth)
    regions = find_regions(truth, torch.ones_like(truth, dtype=torch.bool), mask)
    return measure_image(name, seconds, truth + torch.tensor(errors).view_as(truth), truth, regions)


RESULTS = [
    measured("training/a.png", [4.0, 0.5, 0.0, 1.5], [True, True, True, False], 0.2),
    measured("training/b.png", [-2.5], [True], 0.6),
]


def make(benchmarks: dict[str, list[ImageResult]], pairs: int | None = None, **protocol) -> dict:
    entries = {name: report_benchmark(name, results) for name, results in benchmarks.items()}
    for entry in entries.values():
        entry["pairs"] = pairs or entry["pairs_of_the_set"]
    return make_report(NETWORK, PROTOCOL | protocol, entries)


def table_after(markdown: str, heading: str) -> list[list[str]]:
    """Read the first table below the heading that begins so."""
    section = markdown[markdown.index(f"## {heading}") :]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def test_report_of_a_benchmark_by_hand():
    entry = report_benchmark("kitti2015", RESULTS)
    assert (entry["title"], entry["pairs"], entry["pairs_of_the_set"]) == ("KITTI 2015", 2, 200)
    assert entry["quoted"] == {"region": "all", "threshold_px": 3} and entry["median_seconds"] == 0.4
    average, pooled = entry["figures"]["all"]["image average"], entry["figures"]["all"]["pixel pooled"]
    assert average["end_point_error_px"] == pytest.approx(2.0) and pooled["end_point_error_px"] == pytest.approx(1.7)
    assert average["bad_percent"]["2"] == pytest.approx(62.5) and pooled["bad_percent"]["2"] == pytest.approx(40)
    assert average["d1_percent"] == pytest.approx(12.5) and average["images"] == 2 and pooled["pixels"] == 5
    assert entry["figures"]["boundary"]["pixel pooled"]["end_point_error_px"] is None
    with pytest.raises(ValueError, match="`results` must hold at least one"):
        report_benchmark("kitti2015", [])


def test_a_report_is_json_without_nan_and_says_its_protocol():
    report = make({"kitti2015": RESULTS})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["network"] == NETWORK and report["protocol"]["iterations"] == 32
    assert "Our definition" in report["protocol"]["regions"]["boundary"]
    assert markdown_report(json.loads(json.dumps(report))) == markdown_report(report)


def test_csv_has_each_image_and_names_both_averages():
    rows = list(csv.DictReader(io.StringIO(per_image_csv(RESULTS))))
    images = [(row["image"], row["region"]) for row in rows if row["row"] == "image"]
    assert images[:4] == [("training/a.png", region) for region in ("all", "noc", "occ", "boundary")]
    assert len(images) == 8 and len(rows) == 16
    one = next(row for row in rows if (row["image"], row["region"]) == ("training/a.png", "all"))
    assert (one["pixels"], one["end_point_error_px"], one["bad_1_percent"], one["d1_percent"]) == (
        "4",
        "1.5",
        "50",
        "25",
    )
    assert one["seconds"] == "0.2000"
    both = {row["row"]: row for row in rows if row["region"] == "all" and not row["image"]}
    assert both["image average"]["end_point_error_px"] == "2" and both["pixel pooled"]["end_point_error_px"] == "1.7"
    empty = next(row for row in rows if (row["image"], row["region"]) == ("training/b.png", "occ"))
    assert empty["pixels"] == "0" and empty["end_point_error_px"] == ""


def test_table_of_all_figures_names_regions_and_averages():
    table = table_after(markdown_report(make({"kitti2015": RESULTS})), "KITTI 2015")
    assert table[0] == ["region", "average", "EPE px"] + [f">{t} px %" for t in ("0.5", "1", "2", "3", "4", "5")] + [
        "D1 %",
        "images",
        "pixels",
    ]
    assert [row[:2] for row in table[1:5]] == [
        ["all", "image average"],
        ["all", "pixel pooled"],
        ["noc", "image average"],
        ["noc", "pixel pooled"],
    ]
    assert table[1][2:] == ["2.000", "75.00", "75.00", "62.50", "12.50", "0.00", "0.00", "12.50", "2", "5"]
    assert table[2][2:5] == ["1.700", "60.00", "60.00"]
    assert table[-1] == ["boundary", "pixel pooled", *["-"] * 8, "0", "0"]


def test_quoted_figures_are_in_the_usual_region():
    table = table_after(markdown_report(make({"eth3d": RESULTS, "kitti2012": RESULTS})), "Quoted figures")
    assert table[1] == ["ETH3D two-view", "noc", "image average", "2.000", ">1 px", "66.67", "16.67"]
    assert table[2][:4] == ["ETH3D two-view", "noc", "pixel pooled", "1.750"]
    assert table[3] == ["KITTI 2012", "all", "image average", "2.000", ">3 px", "12.50", "12.50"]


def test_the_papers_rows_stand_beside_ours():
    markdown = markdown_report(make({"kitti2015": RESULTS, "middlebury-h": RESULTS, "eth3d": RESULTS}))
    table = table_after(markdown, f"Beside {TABLE_8.title}")
    assert table[0][1:] == [
        "KITTI 2015: >3 px %, all",
        "Middlebury 2014, half size: >2 px %, noc",
        "ETH3D two-view: >1 px %, noc",
    ]
    assert table[1] == ["**this network**", "12.50", "66.67", "66.67"]
    assert ["Zero-RAFT-Stereo", "4.53", "4.45", "2.13"] in table
    table = table_after(markdown, f"Beside {TABLE_1.title}")
    assert table[1][:2] == ["**this network**", "2.000"] and table[-1][1:] == ["1.040", "4.73", "2.090", "1.90"]
    assert f"Beside {TOOLBOX_SETS.title}" not in markdown
    assert "largest true disparity in px without limit here, 191 there" in markdown


def test_the_independent_rows_stand_beside_ours_under_their_limit():
    markdown = markdown_report(
        make({"kitti2012": RESULTS, "drivingstereo-rainy": [measured("r", [1.0], None)]}, max_disparity_px=191)
    )
    assert ["MonSter", "0.733", "3.37", "3.03"] in table_after(markdown, f"Beside {TOOLBOX_SETS.title}")
    weather = table_after(markdown, "Beside stereo_toolbox, weathers")
    assert weather[0][1:] == [f"DrivingStereo, rainy, half size: {what}, all" for what in ("EPE px", ">3 px %")]
    assert ["Zero-IGEV-Stereo", "1.791", "13.07"] in weather and weather[1] == ["**this network**", "1.000", "0.00"]
    assert "below 191 px" in markdown and "Beside ZeroStereo" not in markdown


@pytest.mark.parametrize(
    ("protocol", "pairs", "reason"),
    [
        ({"iterations": 16}, None, "iterations 16 here, 32 there"),
        ({"dtype": "bfloat16"}, None, "type bfloat16 here, float32 there"),
        ({}, 7, "pairs 7 here, 200 there"),
        ({"max_disparity_px": 192}, None, "largest true disparity in px 192 here, without limit there"),
    ],
)
def test_published_rows_are_left_out_under_another_protocol(protocol, pairs, reason):
    report = make({"kitti2015": RESULTS}, pairs, **protocol)
    assert protocol_differences(report, "kitti2015", TABLE_8) == [reason]
    markdown = markdown_report(report)
    assert "4.53" not in markdown and "## Beside" not in markdown
    assert f"KITTI 2015: not beside {TABLE_8.title}, whose protocol differs: {reason}." in markdown


def test_same_protocol_has_no_differences():
    report = make({"kitti2015": RESULTS})
    assert protocol_differences(report, "kitti2015", TABLE_8) == []


def test_footnotes_define_every_word():
    markdown = markdown_report(make({"booster": RESULTS}))
    notes = markdown[markdown.index("## What the words mean") :]
    for word in ("EPE", "D1", "image average", "pixel pooled", "all", "noc", "occ", "boundary"):
        assert f"- {word}:" in notes or f"{word}: " in notes
    assert "more than 3 px and by more than 5%" in notes and "Our definition; the paper's" in notes


def test_tables_are_markdown():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
