# SPDX-License-Identifier: Apache-2.0
"""Photographs joined to labels: equal to the build that holds them, in every form in which rows come."""

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Image, load_dataset

from datasets_builder.attach import attach_photo, attach_photos, index_photos
from datasets_builder.manifest import read_manifest
from datasets_builder.plan import BuildOptions, photo_id
from datasets_builder.schema import decode_pair
from pipeline_zerostereo import ZeroStereoPipeline
from tests.odd_photos import PLANTED, encoded, picture, planted_exif, usable_photos, write_photos
from tests.small_builds import build, rows_of, shard_path

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
FLAGS = ("--license", "CC0", "--tiled-above", "95", "--seed", "5")
CHOSEN = ("deep/nested/turned.jpeg", "palette.png", "profile.png", "picture.tif")  # of the usable photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """ "photos" with one that is tall and filled whole; "full" and "labels" built of them."""
    folder = tmp_path_factory.mktemp("attach")
    chosen = {name: usable_photos()[name] for name in CHOSEN}
    chosen["small.jpg"] = encoded(picture(40, width=72, height=64), "JPEG", exif=planted_exif())
    photos = write_photos(folder / "photos", chosen)
    build(photos, folder / "full", *FLAGS)
    build(photos, folder / "labels", "--labels-only", *FLAGS)
    return folder


@pytest.fixture(scope="module")
def pipe() -> ZeroStereoPipeline:
    pipe = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stream(folder: Path, name: str) -> Any:
    return load_dataset(str(folder / name), split="train", streaming=True)


def options_of(folder: Path) -> dict[str, Any]:
    return read_manifest(folder / "labels")["options"]


def assert_equal_pairs(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def test_both_pictures_are_those_of_the_full_build(folder: Path, pipe: ZeroStereoPipeline):
    """To the last bit, for photographs with orientation, palette and profile, filled whole and in tiles."""
    paths, options = index_photos(folder / "photos"), BuildOptions(**options_of(folder))
    fills = set()
    for index in range(3):
        full, labels = (rows_of(shard_path(folder / name, index)) for name in ("full", "labels"))
        for expected, row in zip(full, labels, strict=True):
            stored = {name: {"bytes": value} if isinstance(value, bytes) else value for name, value in row.items()}
            made = attach_photo(stored, paths, pipe, options, row["weights_id"])
            assert made["left_image"]["bytes"] == expected["left_image"]
            assert made["right_image"]["bytes"] == expected["right_image"]
            assert PLANTED not in made["left_image"]["bytes"]
            fills.add(max(row["width"], row["height"]) > 95)
    assert fills == {True, False}


def test_a_stream_and_a_data_set_and_a_list_give_the_same(folder: Path, pipe: ZeroStereoPipeline):
    expected = [decode_pair(row) for row in stream(folder, "full")]
    labels = load_dataset(str(folder / "labels"), split="train")
    forms: list[Any] = [stream(folder, "labels"), labels, list(labels)]
    for rows in forms:
        attached = attach_photos(rows, folder / "photos", pipe, options=options_of(folder))
        found = list(attached)
        assert len(found) == 5
        for row, pair in zip(found, expected, strict=True):
            assert isinstance(row["left_image"], PIL.Image.Image) and row["left_image"].mode == "RGB"
            assert_equal_pairs(decode_pair(row), pair)


def test_without_pipeline_there_is_no_right_view(folder: Path):
    attached = attach_photos(stream(folder, "labels"), folder / "photos")
    assert attached.features["left_image"] == Image(mode="RGB")
    for row, expected in zip(attached, stream(folder, "full"), strict=True):
        assert "right_image" not in row and row["id"] == expected["id"]
        assert np.array_equal(np.asarray(row["left_image"]), np.asarray(expected["left_image"]))


def test_attached_rows_go_on_through_map_and_into_workers(folder: Path):
    expected = [decode_pair(row) for row in stream(folder, "full")]
    attached = attach_photos(stream(folder, "labels"), folder / "photos")
    in_a_worker = pickle.loads(pickle.dumps(attached.map(decode_pair)))
    found = {pair["id"]: pair for pair in in_a_worker}
    assert len(found) == 5
    for pair in expected:
        for name in ("left_image", "disparity", "right_hole_mask"):
            assert np.array_equal(np.asarray(found[pair["id"]][name]), pair[name]), name
    row = next(iter(attach_photos(stream(folder, "labels"), folder / "photos").with_format("torch")))
    assert np.array_equal(row["left_image"].float() / 255, expected[0]["left_image"])


def test_names_do_not_matter_and_others_are_left_aside(folder: Path, tmp_path: Path):
    for number, path in enumerate(path for path in (folder / "photos").rglob("*") if path.is_file()):
        (tmp_path / str(number)).mkdir()
        shutil.copy(path, tmp_path / str(number) / "a.jpg")
    write_photos(tmp_path, {"other.png": encoded(picture(60), "PNG")})
    assert len(index_photos(tmp_path)) == 6
    assert index_photos(tmp_path)[photo_id((tmp_path / "3" / "a.jpg").read_bytes())] == tmp_path / "3" / "a.jpg"
    assert len(list(attach_photos(stream(folder, "labels"), tmp_path))) == 5


@pytest.mark.parametrize("form", ["stream", "data set", "list"])
def test_missing_photographs_are_named_or_skipped(folder: Path, tmp_path: Path, form: str):
    labels = load_dataset(str(folder / "labels"), split="train")
    rows: Any = {"stream": stream(folder, "labels"), "data set": labels, "list": list(labels)}[form]
    kept = (folder / "photos" / "palette.png").read_bytes()
    write_photos(tmp_path, {"b.png": kept})
    lacking = [id for id in labels["id"] if id != photo_id(kept)]
    with pytest.raises(FileNotFoundError, match=f"4 are missing, first ids {', '.join(lacking[:3])}. missing="):
        attach_photos(rows, tmp_path)
    (row,) = attach_photos(rows, tmp_path, missing="skip")
    assert row["id"] == photo_id(kept)
    left = np.asarray(PIL.Image.open(io.BytesIO(kept)).convert("RGB"))
    assert np.array_equal(np.asarray(row["left_image"]), left)


def test_what_cannot_be_attached_is_refused(folder: Path, pipe: ZeroStereoPipeline, tmp_path: Path):
    rows, photos, options = list(stream(folder, "labels")), folder / "photos", options_of(folder)
    wrong: Any = "drop"
    with pytest.raises(ValueError, match='`missing` must be "raise" or "skip"; got \'drop\''):
        attach_photos(rows, photos, missing=wrong)
    with pytest.raises(ValueError, match="`options` must be given with `pipe`"):
        attach_photos(rows, photos, pipe)
    with pytest.raises(TypeError, match="can be iterated over twice; got list_iterator. Make a list of it"):
        attach_photos(iter(rows), photos)
    with pytest.raises(FileNotFoundError, match="`photos` must name at least one photograph"):
        attach_photos(rows, tmp_path)
    other = [{**row, "weights_id": "0123456789abcdef"} for row in rows]
    with pytest.raises(ValueError, match="must have the weights that made the rows, 0123456789abcdef for"):
        list(attach_photos(other, photos, pipe, options=options))


def test_rows_are_not_changed(folder: Path):
    rows = list(stream(folder, "labels"))
    before = [list(row) for row in rows]
    list(attach_photos(rows, folder / "photos"))
    assert [list(row) for row in rows] == before
