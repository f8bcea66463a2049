# SPDX-License-Identifier: Apache-2.0
"""The card of a build: front matter that libraries read, licences by origin, and nothing that the rows do not say."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Features
from huggingface_hub import DatasetCard

from datasets_builder.dataset_card import (
    COLUMNS,
    GENERATED,
    HISTOGRAM_PARTS,
    SHOWN_ORIGINS,
    Origin,
    Summary,
    card_data,
    licence_fields,
    licence_id,
    make_card,
    origin_of,
    size_category,
    summarise,
)
from datasets_builder.manifest import read_manifest
from datasets_builder.reading import read_whole_rows
from datasets_builder.schema import FEATURES, LABEL_FEATURES, decode_pair
from tests.odd_photos import plain_photos, write_photos
from tests.small_builds import build, shard_path
from tests.test_repository import code_blocks

LIST = """path,source,license,attribution
000.jpg,https://photos.example/1,CC0,Ann
001.jpg,https://photos.example/2,CC BY 4.0,Ben | <b>
002.jpg,mine/a.jpg,CC BY 4.0,
003.jpg,mine/b.jpg,,Dora
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A build of four photographs of two origins, one of them without licence, and a rejected one."""
    folder = tmp_path_factory.mktemp("card")
    photos = write_photos(folder / "photos", plain_photos(4))
    (photos / "list.csv").write_text(LIST + "list.csv,no photograph,CC0,\n")
    return build(photos / "list.csv", folder / "pairs")


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    return summarise(folder, read_manifest(folder))


def test_licences_are_counted_by_origin(folder: Path, summary: Summary):
    found = {key: (origin.pairs, origin.attributions) for key, origin in summary.origins.items()}
    assert found == {
        ("photos.example", "CC0"): (1, ["Ann"]),
        ("photos.example", "CC BY 4.0"): (1, ["Ben | <b>"]),
        ("list.csv/mine", "CC BY 4.0"): (1, []),
        ("list.csv/mine", ""): (1, ["Dora"]),
    }
    assert (summary.unlicensed_count, summary.unlicensed) == (1, ["mine/b.jpg"])


def test_pixels_are_counted_as_the_maps_say(folder: Path, summary: Summary):
    """Against a loop over the rows."""
    disparities, confidences = np.zeros(HISTOGRAM_PARTS, int), np.zeros(HISTOGRAM_PARTS, int)
    for index in range(2):
        for row in read_whole_rows(shard_path(folder, index), [0, 1]):
            pair = decode_pair(row)
            for share in pair["disparity"].ravel() / row["width"]:
                disparities[min(int(share / 0.2 * HISTOGRAM_PARTS), HISTOGRAM_PARTS - 1)] += 1
            for value in pair["confidence"].ravel():
                confidences[min(int(value * HISTOGRAM_PARTS), HISTOGRAM_PARTS - 1)] += 1
    assert summary.counted_rows == 4 and summary.disparities.sum() == summary.confidences.sum() == 4 * 96 * 72
    assert (
        np.abs(summary.disparities - disparities).sum() <= 8 and np.abs(summary.confidences - confidences).sum() <= 8
    )


def test_the_card_is_one_of_the_hub_and_says_what_is_there(folder: Path, summary: Summary, tmp_path: Path):
    manifest = read_manifest(folder)
    contents = make_card(folder, manifest, summary, "me/my-stereo_pairs", "CC0-1.0")
    assert set(contents) == {"README.md", "assets/pairs.jpg", "assets/disparity.png", "assets/confidence.png"}
    for name in set(contents) - {"README.md"}:
        PIL.Image.open(io.BytesIO(contents[name])).load()
        assert f"({name})" in contents["README.md"].decode()
    (tmp_path / "README.md").write_bytes(contents["README.md"])
    card = DatasetCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "one-for-each-photograph")
    assert data["license_link"] == "README.md#licences" and "\n## Licences\n" in card.text
    assert data["pretty_name"] == "my stereo pairs" and data["size_categories"] == ["n<1K"]
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert Features._from_yaml_list(data["dataset_info"]["features"]) == FEATURES
    (split,) = data["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("train", 4)
    assert data["dataset_info"]["download_size"] == sum(shard["bytes"] for shard in manifest["shards"])
    for line in (
        "| photos.example | CC BY 4.0 | 1 | Ben \\| \\<b\\> |",
        "| list.csv/mine | CC0-1.0 (stated by the publisher; the rows have none) | 1 | Dora |",
        "4 pairs of 5 photographs, 2 files, ",
        "| unreadable | 1 |",
        f"| `weights_id` | {manifest['options']['weights_id']} |",
        'load_dataset("me/my-stereo_pairs", split="train", streaming=True)',
    ):
        assert line in card.text, line
    assert GENERATED in card.text and str(folder) not in card.text
    assert "all their metadata" not in card.text
    assert make_card(folder, manifest, summary, "me/my-stereo_pairs", "CC0-1.0") == contents, "repeats"


def test_cards_of_other_builds_say_so(folder: Path, summary: Summary, tmp_path: Path):
    manifest = read_manifest(folder)
    kept = {**manifest, "options": {**manifest["options"], "keep_metadata": True}}
    assert b"with all their metadata: place" in make_card(folder, kept, summary, "me/x", "CC0")["README.md"]
    photos = write_photos(tmp_path / "photos", plain_photos(1))
    labels = build(photos, tmp_path / "labels", "--labels-only", "--license", "CC BY-NC-ND 4.0")
    manifest = read_manifest(labels)
    text = make_card(labels, manifest, summarise(labels, manifest), "me/x")["README.md"].decode()
    assert "license: cc-by-nc-nd-4.0" in text and "attach_photos" in text
    assert "**The photographs are not here**" in text and "| `left_image` |" not in text
    found: dict[str, Any] = {}
    for block in code_blocks(text.replace("me/x", str(labels)), "python"):
        exec(block, found)  # a folder stands for the repository
    (pair,) = found["pairs"]
    assert np.array_equal(found["disparity"], pair["disparity"][0]) and "left_image" not in pair
    data = card_data(labels, manifest, summarise(labels, manifest), "me/x", "")
    assert Features._from_yaml_list(data["dataset_info"]["features"]) == LABEL_FEATURES


def test_every_column_is_described():
    assert list(COLUMNS) == list(FEATURES)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC0", "cc0-1.0"),
        (" cc0-1.0 ", "cc0-1.0"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("cc_by_4.0", "cc-by-4.0"),
        ("public domain", None),
        ("All rights reserved", None),
    ],
)
def test_licences_as_people_write_them(licence: str, expected: str | None):
    assert licence_id(licence) == expected


def test_one_licence_is_named_and_several_are_not():
    assert licence_fields({"CC0", "cc0-1.0"}) == {"license": "cc0-1.0"}
    link = {"license": "other", "license_link": "README.md#licences"}
    assert licence_fields({"Public Domain (US)"}) == {**link, "license_name": "public-domain-us"}
    assert licence_fields({"CC0", "MIT"}) == {**link, "license_name": "one-for-each-photograph"}


SIZES = {1: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 35_000: "10K<n<100K", 10**9: "1B<n<10B", 10**12: "n>1T"}


@pytest.mark.parametrize(("pairs", "expected"), SIZES.items())
def test_size_categories(pairs: int, expected: str):
    assert size_category(pairs) == expected


def test_origins_are_coarse():
    folder = {"kind": "folder", "name": "photos"}
    assert origin_of("a.jpg", folder) == "photos" and origin_of("x/y/a.jpg", folder) == "photos/x"
    assert origin_of("https://a.example/b/c.jpg", folder) == "a.example"
    assert origin_of("me/photos#3:7", {"kind": "stream", "name": "me/photos"}) == "me/photos"


def test_long_tables_end_with_the_rest(folder: Path):
    origin = Origin()
    for name in ("a", "b", "a", "", "c", "d"):
        origin.add(name)
    assert (origin.pairs, origin.attributions, origin.more_names) == (6, ["a", "b", "c"], True)
    origins = {(f"o{n:02d}", "MIT" if n else "CC0"): Origin(pairs=100 - n) for n in range(SHOWN_ORIGINS)}
    summary = Summary({**origins, ("few", "CC0"): origin, ("one", ""): Origin(1)})
    text = make_card(folder, read_manifest(folder), summary, "me/x", "odbl")["README.md"].decode()
    assert "| o00 | CC0 | 100 |  |\n" in text and "| few |" not in text
    assert "| 2 others | CC0, odbl | 7 | see the rows |" in text
