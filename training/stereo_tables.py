# SPDX-License-Identifier: Apache-2.0
"""How the figures of an evaluation are written: one report as JSON, Markdown made of it, and a CSV for each set.

Pure functions of figures; no network, no files. The report is the machine-readable form, and everything in the
Markdown comes from it, so tables can be made again later, model cards' too. Every table names its average. Published
rows stand beside ours only where the protocol is the same (`protocol_differences`), otherwise the reason does.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from training.stereo_benchmarks import (
    BENCHMARKS,
    PUBLISHED,
    PUBLISHED_DTYPE,
    PUBLISHED_ITERATIONS,
    SOURCES,
    Figure,
    Source,
)
from training.stereo_evaluation import AVERAGES, REGIONS, ImageResult, RegionFigures, figures_of_image, summarize
from training.stereo_metrics import D1_PX, D1_SHARE, THRESHOLDS_PX, StereoFigures

REPORT_VERSION = 1
NOTHING = "-"  # of a table's cell
OURS = "**this network**"

Report = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


def figures_to_json(figures: StereoFigures) -> dict[str, Any]:
    """Turn figures into what JSON can hold; None where a region has no pixels."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "end_point_error_px": number(figures.end_point_error_px),
        "bad_percent": {f"{threshold:g}": number(share) for threshold, share in figures.bad_percent.items()},
        "d1_percent": number(figures.d1_percent),
        "images": figures.images,
        "pixels": figures.pixels,
    }


def _region_to_json(figures: RegionFigures) -> dict[str, Any]:
    averages = zip(AVERAGES, figures, strict=True)
    return {average: figures_to_json(one) for average, one in averages}


def report_benchmark(name: str, results: Sequence[ImageResult]) -> dict[str, Any]:
    """Report one benchmark.

    Args:
        name: of BENCHMARKS.
        results: of all pairs that were measured.

    Returns:
        title, region and threshold that are usually quoted, pairs measured and of the whole set, median seconds of
        the network for a pair, and `figures`: region -> average -> figures.

    Raises:
        ValueError: there are no results.
    """
    benchmark = BENCHMARKS[name]
    figures = {region: _region_to_json(one) for region, one in summarize(results).items()}
    return {
        "title": benchmark.title,
        "quoted": {"region": benchmark.region, "threshold_px": benchmark.threshold_px},
        "pairs": len(results),
        "pairs_of_the_set": benchmark.pairs,
        "median_seconds": statistics.median(result.seconds for result in results),
        "figures": figures,
    }


def make_report(
    network: Mapping[str, Any], protocol: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]
) -> Report:
    """Put a report together.

    Args:
        network: at least name, class and weights_sha256.
        protocol: at least iterations, dtype, max_disparity_px.
        benchmarks: name -> of `report_benchmark`.
    """
    return {
        "report_version": REPORT_VERSION,
        "network": dict(network),
        "protocol": {**protocol, "regions": REGIONS, "averages": AVERAGES},
        "benchmarks": dict(benchmarks),
    }


def protocol_differences(report: Report, name: str, source: Source) -> list[str]:
    """Say what forbids to put the figures of a source beside those of one benchmark; nothing = the same protocol."""
    protocol, entry = report["protocol"], report["benchmarks"][name]
    wanted = {
        "iterations": (protocol["iterations"], PUBLISHED_ITERATIONS),
        "type": (protocol["dtype"], PUBLISHED_DTYPE),
        "pairs": (entry["pairs"], entry["pairs_of_the_set"]),
        "largest true disparity in px": (protocol["max_disparity_px"], source.max_disparity_px),
    }
    return [
        f"{what} {_words(ours)} here, {_words(theirs)} there"
        for what, (ours, theirs) in wanted.items()
        if ours != theirs
    ]


def _words(value: Any) -> str:
    if value is None:
        return "without limit"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# CSV
# ---------------------------------------------------------------------------------------------------------------------


def per_image_csv(results: Sequence[ImageResult]) -> str:
    """Write the figures of each image and region, and both averages of each region at the end.

    Returns:
        CSV with a header. `row` is "image", or the name of the average; empty cells where a region has no pixels.

    Raises:
        ValueError: there are no results.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bad = [f"bad_{threshold:g}_percent" for threshold in THRESHOLDS_PX]
    writer.writerow(["row", "image", "region", "pixels", "end_point_error_px", *bad, "d1_percent", "seconds"])
    for result in results:
        for region, figures in figures_of_image(result).items():
            writer.writerow(["image", result.name, region, *_csv_cells(figures), f"{result.seconds:.4f}"])
    for region, both in summarize(results).items():
        for average, figures in zip(AVERAGES, both, strict=True):
            writer.writerow([average, "", region, *_csv_cells(figures), ""])
    return text.getvalue()


def _csv_cells(figures: StereoFigures) -> list[Any]:
    numbers = [figures.end_point_error_px, *figures.bad_percent.values(), figures.d1_percent]
    return [figures.pixels, *("" if math.isnan(number) else f"{number:.6g}" for number in numbers)]


# ---------------------------------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table whose first column stands left and whose others stand right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pixels(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def markdown_report(report: Report) -> str:
    """Write a report as Markdown: quoted figures, tables beside published ones, then all figures of each benchmark."""
    network, protocol = report["network"], report["protocol"]
    limit = protocol["max_disparity_px"]
    lines = [
        "# Stereo evaluation",
        "",
        f"Network: `{network['name']}` ({network['class']}, weights {network['weights_sha256'][:12]}). "
        f"{protocol['iterations']} iterations, {protocol['dtype']}; pixels of every true disparity"
        + (f" below {limit:g} px." if limit is not None else "."),
        "",
        *_quoted_lines(report),
    ]
    for source in SOURCES:
        lines += _source_lines(report, source)
    for entry in report["benchmarks"].values():
        lines += ["", *_benchmark_lines(entry)]
    lines += ["", *_footnotes()]
    return "\n".join(lines) + "\n"


def _quoted_lines(report: Report) -> list[str]:
    rows = []
    for entry in report["benchmarks"].values():
        region, threshold = entry["quoted"]["region"], entry["quoted"]["threshold_px"]
        for average, figures in entry["figures"][region].items():
            bad = _percent(figures["bad_percent"][f"{threshold:g}"])
            error, d1 = _pixels(figures["end_point_error_px"]), _percent(figures["d1_percent"])
            rows.append([entry["title"], region, average, error, f">{threshold:g} px", bad, d1])
    header = ["benchmark", "region", "average", "EPE px", "outlier", "outliers %", "D1 %"]
    return ["## Quoted figures", "", markdown_table(header, rows)]


def _source_lines(report: Report, source: Source) -> list[str]:
    """Put ours beside the figures of one source, as far as sets and protocol are the same; else say why not."""
    networks = [one for one in PUBLISHED if one.source == source]
    evaluated = [figure for figure in networks[0].figures if figure.benchmark in report["benchmarks"]]
    differences = {figure.benchmark: protocol_differences(report, figure.benchmark, source) for figure in evaluated}
    columns = [figure for figure in evaluated if not differences[figure.benchmark]]
    lines = []
    if columns:
        header = ["network, image average", *map(_column_title, columns)]
        rows = [[OURS, *(_cell(figure, _our_figure(report, figure)) for figure in columns)]]
        rows += [[one.name, *(_cell(figure, one.figures[figure]) for figure in columns)] for one in networks]
        lines += ["", f"## Beside {source.title}", "", markdown_table(header, rows), "", f"{source.remark}."]
    for name, found in differences.items():
        if found:
            title = BENCHMARKS[name].title
            lines += ["", f"{title}: not beside {source.title}, whose protocol differs: {'; '.join(found)}."]
    return lines


def _column_title(figure: Figure) -> str:
    what = "EPE px" if figure.threshold_px is None else f">{figure.threshold_px:g} px %"
    return f"{BENCHMARKS[figure.benchmark].title}: {what}, {figure.region}"


def _our_figure(report: Report, figure: Figure) -> float | None:
    """Look up the image average of one figure."""
    figures = report["benchmarks"][figure.benchmark]["figures"][figure.region][next(iter(AVERAGES))]
    if figure.threshold_px is None:
        return figures["end_point_error_px"]
    return figures["bad_percent"][f"{figure.threshold_px:g}"]


def _cell(figure: Figure, value: float | None) -> str:
    return _pixels(value) if figure.threshold_px is None else _percent(value)


def _benchmark_lines(entry: Mapping[str, Any]) -> list[str]:
    thresholds = next(iter(next(iter(entry["figures"].values())).values()))["bad_percent"]
    header = ["region", "average", "EPE px", *(f">{one} px %" for one in thresholds), "D1 %", "images", "pixels"]
    rows = []
    for region, averages in entry["figures"].items():
        for average, figures in averages.items():
            bad = [_percent(share) for share in figures["bad_percent"].values()]
            counts = [str(figures["images"]), str(figures["pixels"])]
            error, d1 = _pixels(figures["end_point_error_px"]), _percent(figures["d1_percent"])
            rows.append([region, average, error, *bad, d1, *counts])
    return [
        f"## {entry['title']}",
        "",
        f"{entry['pairs']} of {entry['pairs_of_the_set']} pairs, {entry['median_seconds']:.3g} s for a pair (median).",
        "",
        markdown_table(header, rows),
    ]


def _footnotes() -> list[str]:
    """Say what the words of the tables mean."""
    return [
        "## What the words mean",
        "",
        "- EPE: mean absolute error of the disparity. >N px: share of pixels that are wrong by more than N px. "
        f"D1: share that is wrong by more than {D1_PX:g} px and by more than {D1_SHARE:.0%} of the true disparity.",
        *(f"- {average}: {meaning}." for average, meaning in AVERAGES.items()),
        *(f"- {region}: {meaning}." for region, meaning in REGIONS.items()),
    ]
