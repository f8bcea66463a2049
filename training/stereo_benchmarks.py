# SPDX-License-Identifier: Apache-2.0
"""The benchmarks that a stereo network is evaluated on, and what others published on them.

Tables only; no network, no files. How a set lies on disk is known by stereo_datasets.py. For each benchmark: the
region and the threshold that are usually quoted, how many pairs the set has, and the form in which its server wants
results (`submission`, see disparity_files.py).

Published figures stand here with their protocol, because figures of different protocols must not stand in one table.
The papers' protocol is that of ZeroStereo's official evaluation (https://github.com/Windsrain/ZeroStereo): pictures
padded to multiples of 32 px by repeating their borders, 32 iterations in float32, all pixels whose disparity is known
whatever it is, figures of each image and then their mean; an outlier is wrong by more than 3, 2 or 1 px, without
KITTI's 5 % rule; KITTI in the region "all", Middlebury and ETH3D in "noc". Ours differs from it in two corners: a true
disparity that is not finite counts nowhere, and an image without a known pixel is left out instead of making the mean
NaN.
"""

from __future__ import annotations

from typing import NamedTuple

from training.stereo_datasets import (
    ETH3D,
    KITTI2012,
    KITTI2015,
    Booster,
    DrivingStereoCloudy,
    DrivingStereoFoggy,
    DrivingStereoRainy,
    DrivingStereoSunny,
    Middlebury2021,
    MiddleburyF,
    MiddleburyH,
    MiddleburyQ,
    StereoDataset,
)

PUBLISHED_ITERATIONS = 32
PUBLISHED_DTYPE = "float32"


class ServerPairs(NamedTuple):
    """Glob patterns of the pairs that a benchmark's server measures, below the root of its data set."""

    left: str
    right: str


class Benchmark(NamedTuple):
    """One row of BENCHMARKS."""

    title: str
    dataset: type[StereoDataset]
    pairs: int  # of the whole set
    threshold_px: float  # usually quoted
    region: str  # usually quoted: "all" or "noc"
    submission: str | None = None  # "kitti2012", "kitti2015", "middlebury", "eth3d"
    server_pairs: ServerPairs | None = None


def _middlebury(size: str, dataset: type[StereoDataset]) -> Benchmark:
    words = {"F": "full", "H": "half", "Q": "quarter"}[size]
    tests = ServerPairs(f"test{size}/*/im0.png", f"test{size}/*/im1.png")
    return Benchmark(f"Middlebury 2014, {words} size", dataset, 15, 2, "noc", "middlebury", tests)


def _drivingstereo(weather: str, dataset: type[StereoDataset]) -> Benchmark:
    return Benchmark(f"DrivingStereo, {weather}, half size", dataset, 500, 3, "all")


BENCHMARKS: dict[str, Benchmark] = {
    "kitti2012": Benchmark(
        "KITTI 2012",
        KITTI2012,
        194,
        3,
        "all",
        "kitti2012",
        ServerPairs("testing/colored_0/*_10.png", "testing/colored_1/*_10.png"),
    ),
    "kitti2015": Benchmark(
        "KITTI 2015",
        KITTI2015,
        200,
        3,
        "all",
        "kitti2015",
        ServerPairs("testing/image_2/*_10.png", "testing/image_3/*_10.png"),
    ),
    "middlebury-f": _middlebury("F", MiddleburyF),
    "middlebury-h": _middlebury("H", MiddleburyH),
    "middlebury-q": _middlebury("Q", MiddleburyQ),
    "middlebury-2021": Benchmark("Middlebury 2021", Middlebury2021, 24, 2, "all"),
    "eth3d": Benchmark(
        "ETH3D two-view",
        ETH3D,
        27,
        1,
        "noc",
        "eth3d",
        ServerPairs("two_view_test/*/im0.png", "two_view_test/*/im1.png"),
    ),
    "booster": Benchmark("Booster, full size", Booster, 228, 2, "all"),
    "drivingstereo-sunny": _drivingstereo("sunny", DrivingStereoSunny),
    "drivingstereo-cloudy": _drivingstereo("cloudy", DrivingStereoCloudy),
    "drivingstereo-rainy": _drivingstereo("rainy", DrivingStereoRainy),
    "drivingstereo-foggy": _drivingstereo("foggy", DrivingStereoFoggy),
}


class Figure(NamedTuple):
    """Which figure of a benchmark: always the image average."""

    benchmark: str
    region: str
    threshold_px: float | None  # share of pixels that are wrong by more; None = the end-point error in px


class Source(NamedTuple):
    """Where published figures stand, and what differs from `PUBLISHED_*` in how they were made."""

    title: str
    max_disparity_px: float | None  # pixels of this true disparity and more are left out
    remark: str


class PublishedNetwork(NamedTuple):
    """The figures of one network in one source."""

    name: str
    source: Source
    figures: dict[Figure, float]


TABLE_1 = Source(
    "ZeroStereo, arXiv 2501.08654, Tab. 1 (IGEV-Stereo)",
    None,
    "the region of its Middlebury errors is not stated there; noc is that of the official code",
)
TABLE_8 = Source("ZeroStereo, arXiv 2501.08654, Tab. 8", None, "NS-RAFT-Stereo is NeRF-Stereo's")
TOOLBOX_REMARK = "its evaluation leaves out true disparities of 191 px and more; padding and iterations are its own"
TOOLBOX_SETS = Source(
    "stereo_toolbox, https://github.com/xxxupeng/stereo_toolbox, one evaluator for all networks", 191, TOOLBOX_REMARK
)
TOOLBOX_WEATHERS = Source("stereo_toolbox, weathers", 191, TOOLBOX_REMARK)
SOURCES = (TABLE_8, TABLE_1, TOOLBOX_SETS, TOOLBOX_WEATHERS)


def _table_1(
    name: str, kitti_epe: float, kitti_bad: float, middlebury_epe: float, eth3d_bad: float
) -> PublishedNetwork:
    figures = {
        Figure("kitti2015", "all", None): kitti_epe,
        Figure("kitti2015", "all", 3): kitti_bad,
        Figure("middlebury-h", "noc", None): middlebury_epe,
        Figure("eth3d", "noc", 1): eth3d_bad,
    }
    return PublishedNetwork(name, TABLE_1, figures)


def _table_8(name: str, kitti: float, middlebury: float, eth3d: float) -> PublishedNetwork:
    figures = {
        Figure("kitti2015", "all", 3): kitti,
        Figure("middlebury-h", "noc", 2): middlebury,
        Figure("eth3d", "noc", 1): eth3d,
    }
    return PublishedNetwork(name, TABLE_8, figures)


def _toolbox(name: str, *figures: tuple[float, float, float]) -> PublishedNetwork:
    """Name end-point error, outliers in "all" and outliers in "noc" of each set."""
    named: dict[Figure, float] = {}
    sets = ("kitti2015", "kitti2012", "middlebury-h", "eth3d")
    for benchmark, (error, outliers, outliers_noc) in zip(sets, figures, strict=True):
        threshold = BENCHMARKS[benchmark].threshold_px
        named[Figure(benchmark, "all", None)] = error
        named[Figure(benchmark, "all", threshold)] = outliers
        named[Figure(benchmark, "noc", threshold)] = outliers_noc
    return PublishedNetwork(name, TOOLBOX_SETS, named)


def _weathers(name: str, *figures: tuple[float, float]) -> PublishedNetwork:
    """Name end-point error and outliers in each weather."""
    named: dict[Figure, float] = {}
    for weather, (error, outliers) in zip(("sunny", "cloudy", "rainy", "foggy"), figures, strict=True):
        named[Figure(f"drivingstereo-{weather}", "all", None)] = error
        named[Figure(f"drivingstereo-{weather}", "all", 3)] = outliers
    return PublishedNetwork(name, TOOLBOX_WEATHERS, named)


PUBLISHED: tuple[PublishedNetwork, ...] = (
    _table_8("RAFT-Stereo (Scene Flow)", 5.47, 8.66, 2.29),
    _table_8("NS-RAFT-Stereo", 5.41, 6.45, 2.55),
    _table_8("Zero-RAFT-Stereo", 4.53, 4.45, 2.13),
    _table_1("Baseline", 1.52, 4.89, 2.71, 2.38),
    _table_1("+ ADS", 1.24, 4.84, 2.28, 2.27),
    _table_1("+ inpainting", 1.44, 4.85, 2.34, 1.92),
    _table_1("+ ADS + inpainting", 1.06, 4.74, 2.26, 2.05),
    _table_1("+ ADS + inpainting + TCG", 1.05, 4.71, 2.18, 2.01),
    _table_1("all + ZeroStereo loss", 1.04, 4.73, 2.09, 1.90),
    _toolbox(
        "RAFT-Stereo (Scene Flow)", (1.128, 5.53, 5.34), (0.910, 4.84, 4.29), (1.523, 11.96, 9.06), (0.361, 3.04, 2.85)
    ),
    _toolbox(
        "IGEV-Stereo (Scene Flow)", (1.187, 5.79, 5.60), (1.013, 5.59, 4.92), (1.549, 9.91, 7.25), (0.740, 4.39, 4.06)
    ),
    _toolbox("NS-RAFT-Stereo", (1.133, 5.43, 5.23), (0.859, 4.04, 3.51), (1.625, 10.38, 6.79), (0.299, 3.07, 2.78)),
    _toolbox(
        "DEFOM-Stereo (large)", (1.073, 4.99, 4.79), (0.843, 4.21, 3.83), (0.888, 6.91, 4.39), (0.253, 2.24, 2.08)
    ),
    _toolbox("MonSter", (0.888, 3.45, 3.30), (0.733, 3.37, 3.03), (0.933, 7.70, 5.86), (0.272, 1.45, 1.32)),
    _toolbox("Zero-RAFT-Stereo", (1.031, 4.63, 4.45), (0.748, 3.55, 3.18), (1.345, 7.58, 4.62), (0.235, 2.22, 1.91)),
    _toolbox("Zero-IGEV-Stereo", (1.006, 4.53, 4.36), (0.739, 3.50, 3.16), (1.113, 7.40, 4.90), (0.230, 2.19, 1.93)),
    _weathers("NS-RAFT-Stereo", (0.900, 2.88), (0.915, 2.91), (1.749, 10.20), (1.068, 3.93)),
    _weathers("DEFOM-Stereo (large)", (0.974, 3.61), (0.997, 3.75), (1.518, 13.53), (0.933, 2.88)),
    _weathers("MonSter", (0.986, 3.48), (0.932, 3.17), (1.127, 5.27), (1.102, 5.03)),
    _weathers("FoundationStereo (small)", (0.865, 2.72), (0.879, 2.55), (1.578, 13.44), (1.013, 3.35)),
    _weathers("FoundationStereo (large)", (0.943, 3.20), (0.892, 2.62), (5.359, 26.95), (2.115, 5.62)),
    _weathers("StereoAnywhere", (0.971, 3.51), (0.907, 2.93), (1.366, 10.85), (0.941, 2.90)),
    _weathers("Zero-RAFT-Stereo", (0.842, 2.62), (0.846, 2.46), (2.287, 13.64), (0.839, 1.79)),
    _weathers("Zero-IGEV-Stereo", (0.849, 2.59), (0.838, 2.36), (1.791, 13.07), (0.848, 1.89)),
)
