# SPDX-License-Identifier: Apache-2.0
"""What a `--data` option may say, for each command that has one."""

import pytest

from training import data_mixture, pair_mixture
from training.data_sources import DataSource, parse_source

INPAINTING = (data_mixture.KINDS, data_mixture.EXAMPLE_SOURCE)
STEREO = (pair_mixture.KINDS, pair_mixture.EXAMPLE_SOURCE)


@pytest.mark.parametrize(
    ("text", "kinds", "expected"),
    [
        ("sceneflow:/data/sf:0.3", INPAINTING, DataSource("sceneflow", "/data/sf", 0.3)),
        ("photos:C:/my:photos:2", INPAINTING, DataSource("photos", "C:/my:photos", 2.0)),
        ("procedural:0.5", INPAINTING, DataSource("procedural", None, 0.5)),
        ("tartanair:relative dir:1e-3", INPAINTING, DataSource("tartanair", "relative dir", 0.001)),
        ("pairs:out/pairs:0.5", STEREO, DataSource("pairs", "out/pairs", 0.5)),
        ("hub:me/pairs@v1:2", STEREO, DataSource("hub", "me/pairs@v1", 2.0)),
        ("mfs35k:c:/data/list.txt:1", STEREO, DataSource("mfs35k", "c:/data/list.txt", 1.0)),
        ("procedural:0.25", STEREO, DataSource("procedural", None, 0.25)),
    ],
)
def test_sources_are_read_and_written(text, kinds, expected):
    assert parse_source(text, *kinds) == expected == parse_source(str(expected), *kinds)


@pytest.mark.parametrize(
    ("text", "kinds", "message"),
    [
        ("", INPAINTING, "`data` must be KIND:ROOT:WEIGHT or procedural:WEIGHT, the weight a number.*; got ''"),
        ("photos", INPAINTING, "must be KIND:ROOT:WEIGHT.* photos:/data/photographs:0.5; got 'photos'"),
        ("photos:/data", INPAINTING, "must be KIND:ROOT:WEIGHT.*; got 'photos:/data'"),
        ("pairs:out/pairs", STEREO, "must be KIND:ROOT:WEIGHT.* pairs:out/pairs:0.5; got 'pairs:out/pairs'"),
        ("kitti:/data:1", INPAINTING, "one of the kinds sceneflow, tartanair, .*, photos, procedural; got 'kitti'"),
        ("pairs:a:1", INPAINTING, "must name one of the kinds sceneflow, .*; got 'pairs'"),
        ("photos:a:1", STEREO, "must name one of the kinds pairs, hub, mfs35k, sceneflow.*; got 'photos'"),
        ("photos:0.5", INPAINTING, "must be photos:ROOT:WEIGHT; got the root None"),
        ("pairs:1", STEREO, "must be pairs:ROOT:WEIGHT; got the root None"),
        ("procedural:/data:0.5", INPAINTING, "must be procedural:WEIGHT, without a root; got the root /data"),
        ("procedural:0", STEREO, "must have a weight > 0; got 0.0 for procedural"),
        ("photos:/data:-1", INPAINTING, "must have a weight > 0; got -1.0"),
        ("photos:/data:nan", INPAINTING, "must have a weight > 0; got nan"),
        ("photos:/data:inf", INPAINTING, "must have a weight > 0; got inf"),
    ],
)
def test_sources_that_break_a_rule(text, kinds, message):
    with pytest.raises(ValueError, match=message):
        parse_source(text, *kinds)


def test_a_source_is_frozen():
    with pytest.raises(AttributeError):
        DataSource("procedural", None, 1).weight = 2.0  # pyright: ignore[reportAttributeAccessIssue]
