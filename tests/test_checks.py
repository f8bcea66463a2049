# SPDX-License-Identifier: Apache-2.0
"""Each planted fault is found, by its kind and nothing else; a clean build has none. The builds are real ones."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from datasets_builder import checks, publish, verify
from datasets_builder.checks import Fault, check_build, pair_faults
from datasets_builder.manifest import read_manifest
from datasets_builder.mfs35k import write_file_list, write_pair
from datasets_builder.mfs35k_rows import import_layout
from datasets_builder.plan import BuildOptions
from datasets_builder.reading import read_whole_rows
from datasets_builder.schema import FEATURES, encode_mask
from datasets_builder.shards import write_shard
from tests.odd_photos import PLANTED, encoded, picture, plain_photos, planted_exif, usable_photos, write_photos
from tests.small_builds import (
    agree,
    build,
    change_manifest,
    change_row,
    change_rows,
    copy_build,
    rows_of,
    shard_path,
)
from tests.test_mfs35k_rows import make_sample


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A build of five photographs in three shards, one of them of another size."""
    folder = tmp_path_factory.mktemp("clean")
    photos = write_photos(folder / "photos", plain_photos(5))
    return build(photos, folder / "pairs", "--license", "CC0-1.0")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoiled."""
    return copy_build(clean, tmp_path / "pairs")


def kinds(folder: Path, **options) -> set[str]:
    return {fault.kind for fault in check_build(folder, **options)}


def only(folder: Path, kind: str, **options) -> Fault:
    """Return the one fault of a build."""
    faults = check_build(folder, None, **options)
    assert [fault.kind for fault in faults] == [kind], faults
    return faults[0]


def mask_of(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png))) > 127


# --- builds without fault ---


def test_a_clean_build_has_no_fault(clean: Path, folder: Path):
    assert check_build(clean, None) == [] and check_build(clean, 2, seed=7) == [] and check_build(clean, 0) == []
    (folder / "rejected.jsonl").unlink()  # as downloaded from the Hub
    assert check_build(folder, None) == []


def test_on_the_machine_that_made_it_the_warp_is_equal_to_the_last_level(clean: Path):
    options = BuildOptions(**read_manifest(clean)["options"])
    rows = list(read_whole_rows(shard_path(clean), [0, 1]))
    assert len(rows) == 2
    assert [fault for row in rows for fault in pair_faults(row, options, tolerance=0)] == []


@pytest.mark.slow
def test_photographs_of_every_form_have_no_fault(tmp_path: Path):
    photos = write_photos(tmp_path / "photos", usable_photos())
    assert check_build(build(photos, tmp_path / "pairs"), None) == []


def test_builds_with_metadata_and_labels_only_are_checked(tmp_path: Path):
    data = encoded(picture(), "JPEG", exif=planted_exif(6))
    photos = write_photos(tmp_path / "photos", {"a.jpg": data, "b.png": encoded(picture(1), "PNG")})
    kept = build(photos, tmp_path / "kept", "--keep-metadata")
    assert PLANTED in rows_of(shard_path(kept))[0]["left_image"] + rows_of(shard_path(kept))[1]["left_image"]
    assert check_build(kept, None) == []
    change_row(kept, left_image=encoded(picture(2, width=72, height=96), "PNG"))
    assert {"id", "right_image"} <= kinds(kept, sample=None)

    labels = build(photos, tmp_path / "labels", "--labels-only")
    assert check_build(labels, None) == []
    row = rows_of(shard_path(labels))[0]
    change_row(labels, right_hole_mask=row["left_visible_mask"], left_visible_mask=row["right_hole_mask"])
    assert kinds(labels, sample=None) == {"hole_mask", "visible_mask"}


def test_imported_pairs_are_checked_as_far_as_they_are_known(clean: Path, tmp_path: Path):
    """Pairs of another warp: disparities that are unknown in places, a right image that is no warp of ours."""
    root = tmp_path / "MfS35K"
    samples = [make_sample(f"scenes/left/{number}.png", 64 + number, 96, 10 * number) for number in range(2)]
    write_file_list(root / "list.txt", [write_pair(root, sample) for sample in samples])
    import_layout(root, root / "list.txt", tmp_path / "pairs", license="CC0")
    folder = tmp_path / "pairs"
    assert check_build(folder, None) == []
    assert publish.main([str(folder), "me/pairs", "--dry-run"]) == 0
    assert "They were made elsewhere" in (folder / "README.md").read_text()
    change_row(folder, seed=3, disparity_scale=2.0)
    assert [fault.kind for fault in check_build(folder, None)] == ["scalar", "disparity_scale"]
    change_row(folder, seed=-1, disparity_scale=0.001)
    assert only(folder, "disparity").detail.endswith("is the most by its scale and width")


# --- faults of files and counts ---


def test_missing_manifest(folder: Path):
    (folder / "manifest.json").unlink()
    assert "must hold a complete build" in only(folder, "manifest").detail


def test_broken_manifest(folder: Path):
    (folder / "manifest.json").write_text('{"format": 1, ')
    assert "whole manifest.json" in only(folder, "manifest").detail


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 2}'])
def test_manifest_of_another_format(folder: Path, content: str):
    (folder / "manifest.json").write_text(content)
    assert "manifest.json of format 1; got" in only(folder, "manifest").detail


@pytest.mark.parametrize(
    "change",
    [{"options": {"weights": 1}}, {"shards": "none"}, {"shards": [{"file": 1}]}, {"counts": {"pairs": "many"}}],
)
def test_manifest_of_other_content(folder: Path, change: dict[str, Any]):
    change_manifest(folder, lambda manifest: manifest.update(change))
    assert "must be as this version writes it; " in only(folder, "manifest").detail


@pytest.mark.parametrize("key", ["options", "shards", "counts", "plan_digest"])
def test_manifest_without_a_part(folder: Path, key: str):
    change_manifest(folder, lambda manifest: manifest.pop(key))
    assert f"KeyError: '{key}'" in only(folder, "manifest").detail


def test_manifest_that_names_files_elsewhere(folder: Path):
    change_manifest(folder, lambda manifest: manifest["shards"][1].update(file="../secret"))
    assert (
        "must name shard 1 of 3 data/train-00001-of-00003.parquet; got '../secret'" in only(folder, "manifest").detail
    )


def test_missing_shard(folder: Path):
    shard_path(folder, 1).unlink()
    assert only(folder, "missing_shard").file == "data/train-00001-of-00003.parquet"


def test_extra_file(folder: Path):
    (folder / "data" / "train-00003-of-00004.parquet").write_bytes(shard_path(folder).read_bytes())
    assert only(folder, "extra_file").file == "data/train-00003-of-00004.parquet"


def test_truncated_shard(folder: Path):
    path = shard_path(folder, 2)
    path.write_bytes(path.read_bytes()[:-100])
    fault = only(folder, "unreadable_shard")
    assert fault.file == "data/train-00002-of-00003.parquet" and "whole Parquet file" in fault.detail


def test_damaged_bytes_of_a_shard(folder: Path):
    path = shard_path(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "hash" in kinds(folder, sample=0)


def test_wrong_hash(folder: Path):
    change_manifest(folder, lambda manifest: manifest["shards"][0].update(sha256="0" * 64))
    assert only(folder, "hash").file == "data/train-00000-of-00003.parquet"


def test_wrong_count_of_pairs(folder: Path):
    change_manifest(folder, lambda manifest: manifest["counts"].update(pairs=6, photos=6))
    assert "6 pairs claimed, and its shards have 5 rows" in only(folder, "counts").detail


def test_wrong_count_of_photographs(folder: Path):
    change_manifest(folder, lambda manifest: manifest["counts"].update(photos=9))
    assert "9 photographs, but 5 pairs and 0 rejected" in only(folder, "counts").detail


@pytest.mark.parametrize("line", ['{"kind": "animated"}', "no JSON", "[]"])
def test_wrong_list_of_rejections(folder: Path, line: str):
    (folder / "rejected.jsonl").write_text(line + "\n")
    assert only(folder, "counts").file == "rejected.jsonl"


def test_wrong_count_of_rows(folder: Path):
    def change(manifest):
        manifest["shards"][2]["rows"] = 2
        manifest["counts"].update(pairs=6, photos=6)

    change_manifest(folder, change)
    assert only(folder, "rows").detail == "1 rows; the manifest says 2"


def test_shards_of_another_plan(folder: Path):
    change_manifest(folder, lambda manifest: manifest.update(plan_digest="0123456789abcdef"))
    assert "another plan" in only(folder, "plan").detail


def test_wrong_features(folder: Path):
    path = shard_path(folder)
    table = pyarrow.parquet.read_table(path).drop_columns(["seed", "preview"])
    pyarrow.parquet.write_table(table, path)
    assert "unreadable_shard" in kinds(folder), "it does not say what made it"
    record = checks.read_record(shard_path(folder, 1))
    shorter = FEATURES.copy()
    del shorter["seed"], shorter["preview"]
    write_shard(path, rows_of(shard_path(folder, 1)), shorter, lambda: record)
    agree(folder, 0)
    assert "['preview', 'seed']" in next(fault for fault in check_build(folder) if fault.kind == "columns").detail


# --- faults of rows ---


def test_duplicate_ids_over_shards(folder: Path):
    row = rows_of(shard_path(folder, 2))[0]
    change_rows(folder, lambda rows: [rows[0], row], index=0)
    fault = only(folder, "duplicate_id")
    assert row["id"] in fault.detail and "train-00000-of-00003.parquet, data/train-00002" in fault.detail


@pytest.mark.parametrize("name", ["flip_agreement", "flip_agreement_min", "disparity_scale", "disparity_png_scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_numbers_that_are_not_finite(folder: Path, name: str, value: Any):
    change_row(folder, **{name: value})
    found = check_build(folder, None)
    assert [fault.kind for fault in found] == ["scalar"] and f"{name} is {value}" in found[0].detail, found


@pytest.mark.parametrize("name", ["id", "seed", "width", "license"])
def test_numbers_and_texts_that_are_missing(folder: Path, name: str):
    changes: dict[str, Any] = {name: None}
    change_row(folder, **changes)
    found = check_build(folder, None)
    assert f"{name} is None" in found[0].detail
    assert {fault.kind for fault in found} == ({"scalar", "size"} if name == "width" else {"scalar"})


def test_wrong_seed(folder: Path):
    change_row(folder, seed=5)
    assert "seed 5 does not follow from base seed 0" in only(folder, "seed").detail


def test_wrong_id(folder: Path):
    change_row(folder, id="not an id")
    assert {"id", "seed"} == kinds(folder, sample=0)


def test_wrong_disparity_scale(folder: Path):
    change_row(folder, disparity_scale=0.19)
    assert "its seed draws" in next(f for f in check_build(folder, 0) if f.kind == "disparity_scale").detail


@pytest.mark.parametrize("png_scale", [512.0, 100.0, 0.0, -256.0])
def test_png_scales_that_cannot_be(folder: Path, png_scale: float):
    change_row(folder, disparity_png_scale=png_scale)
    assert kinds(folder, sample=0) == {"png_scale"}
    assert "png_scale" in kinds(folder, sample=None), "whatever the pictures say"


def test_a_png_scale_of_another_row(folder: Path):
    change_row(folder, disparity_png_scale=128.0)
    assert {"disparity", "hole_mask", "visible_mask", "right_image"} <= kinds(folder, sample=None)
    change_row(folder, disparity_png_scale=64.0)
    faults = [fault for fault in check_build(folder, None) if fault.kind == "disparity"]
    assert len(faults) == 1 and "is the most by its scale and width" in faults[0].detail


def test_wrong_weights_and_agreement_and_size(folder: Path):
    change_row(folder, weights_id="other", flip_agreement_max=0.1, width=7)
    details = [fault.detail for fault in check_build(folder, 0) if fault.kind == "scalar"]
    assert len(details) == 3
    for part in ("is not in order", "shorter side must be 64", "weights_id other; the manifest says"):
        assert sum(part in detail for detail in details) == 1, part


def test_pairs_below_the_quality_gate(folder: Path):
    change_manifest(folder, lambda manifest: manifest["options"].update(min_flip_agreement=1.0, max_hole_share=0.0001))
    faults = [fault for fault in check_build(folder, None) if fault.kind == "gate"]
    assert len(faults) == 10 and {fault.kind for fault in check_build(folder, None)} == {"gate"}


# --- faults of pictures ---


def test_swapped_masks(folder: Path):
    row = rows_of(shard_path(folder))[0]
    change_row(folder, right_hole_mask=row["left_visible_mask"], left_visible_mask=row["right_hole_mask"])
    faults = check_build(folder, None)
    assert [fault.kind for fault in faults] == ["hole_mask", "visible_mask"]
    assert all("the two are swapped" in fault.detail and row["id"] in fault.detail for fault in faults)


def test_hole_mask_off_by_one_column(folder: Path):
    mask = mask_of(rows_of(shard_path(folder))[1]["right_hole_mask"])
    change_row(folder, place=1, right_hole_mask=encode_mask(np.roll(mask, 1, axis=1)))
    assert "swapped" not in only(folder, "hole_mask").detail


def test_mask_of_wrong_size(folder: Path):
    mask = mask_of(rows_of(shard_path(folder))[0]["left_visible_mask"])
    change_row(folder, left_visible_mask=encode_mask(mask[:, :-1]))
    assert "left_visible_mask has" in only(folder, "size").detail


def test_mask_with_levels_between(folder: Path):
    mask = mask_of(rows_of(shard_path(folder))[0]["right_hole_mask"])
    change_row(folder, right_hole_mask=encoded(PIL.Image.fromarray(mask.astype(np.uint8) * 200), "PNG"))
    assert "levels [0, 200]" in only(folder, "hole_mask").detail


def test_right_image_of_another_pair(folder: Path):
    rows = [(index, place, row) for index in range(3) for place, row in enumerate(rows_of(shard_path(folder, index)))]
    index, place, row = rows[0]
    other = next(one for _, _, one in rows[1:] if one["width"] == row["width"])
    change_row(folder, place, index, right_image=other["right_image"])
    assert "of 255 from the warped left image" in only(folder, "right_image").detail


def test_one_level_is_within_the_tolerance_and_two_are_not(folder: Path):
    pixels = np.array(PIL.Image.open(io.BytesIO(rows_of(shard_path(folder))[0]["right_image"]))).astype(int)
    for levels, expected in ((1, set()), (2, {"right_image"})):
        shifted = np.where(pixels > 127, pixels - levels, pixels + levels).astype(np.uint8)
        change_row(folder, right_image=encoded(PIL.Image.fromarray(shifted), "PNG"))
        assert kinds(folder, sample=None) == expected


@pytest.mark.parametrize("column", ["disparity", "confidence"])
def test_maps_of_eight_bits(folder: Path, column: str):
    row = rows_of(shard_path(folder))[0]
    changes: dict[str, Any] = {column: encoded(PIL.Image.new("L", (row["width"], row["height"]), 9), "PNG")}
    change_row(folder, **changes)
    assert "must be a 16-bit grey picture; it has mode L" in only(folder, column).detail


def test_unknown_disparities(folder: Path):
    codes = np.array(PIL.Image.open(io.BytesIO(rows_of(shard_path(folder))[0]["disparity"])))
    codes[3:5, 2:4] = 0
    change_row(folder, disparity=encoded(PIL.Image.fromarray(codes), "PNG"))
    assert "4 px are marked as unknown" in next(f for f in check_build(folder, None) if f.kind == "disparity").detail


@pytest.mark.parametrize("column", ["left_image", "right_image", "preview", "confidence"])
@pytest.mark.parametrize("data", [b"no picture", None, b""])
def test_pictures_that_cannot_be_decoded(folder: Path, column: str, data: Any):
    change_row(folder, **{column: data})
    found = check_build(folder, None)
    assert {fault.kind for fault in found} == {"picture"} and f"{column} cannot be decoded" in found[0].detail


def test_metadata_in_a_photograph(folder: Path):
    row = rows_of(shard_path(folder))[0]
    left = PIL.Image.open(io.BytesIO(row["left_image"]))
    change_row(folder, left_image=encoded(left, "PNG", exif=planted_exif()))
    assert only(folder, "metadata").detail.startswith(f"row {row['id']}: left_image has metadata")


# --- the command ---


def test_the_command_lists_faults_and_ends_with_one(clean: Path, folder: Path, capsys):
    assert verify.main([str(clean), "--all"]) == 0
    assert "no fault found; pictures of every row checked" in capsys.readouterr().out
    change_row(folder, seed=5, flip_agreement=float("nan"))
    change_row(folder, 1, seed=5)
    assert verify.main([str(folder), "--sample", "1", "--seed", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("scalar: data/train-00000-of-00003.parquet: row ")
    assert lines[-1] == f"{folder}: 2 faults: 1 scalar, 1 seed"


def test_the_command_refuses_what_it_cannot_do(folder: Path, capsys):
    assert verify.main([str(folder / "gone")]) == 2
    assert "DIR must be a folder; got" in capsys.readouterr().err
    assert verify.main([str(folder), "--sample", "-1"]) == 2
    assert "--sample must be at least 0; got -1." in capsys.readouterr().err
    with pytest.raises(ValueError, match="`sample` must be at least 0 rows, or None for all; got -1"):
        check_build(folder, -1)
