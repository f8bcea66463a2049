# SPDX-License-Identifier: Apache-2.0
"""Rows become files of the MfS35K layout and come back: pixels, masks and stored maps equal, the unknown defined."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset

from datasets_builder import generate_pairs, import_mfs35k, mfs35k_rows
from datasets_builder.manifest import read_manifest, rejected_photos
from datasets_builder.mfs35k import MfsSample, read_file_list, read_sample, read_samples, write_file_list, write_pair
from datasets_builder.mfs35k_rows import import_layout, sample_from_row, write_layout
from datasets_builder.plan import Plan, photo_id
from datasets_builder.schema import (
    FEATURES,
    decode_pair,
    encode_confidence,
    encode_disparity,
    encode_mask,
    encode_view,
)

ARRAYS = ("left_image", "right_image", "disparity", "confidence", "right_hole_mask", "left_visible_mask")
UNKNOWN = {"seed": -1, "pipeline_revision": "", "weights_id": ""}


def make_sample(name: str, height: int = 64, width: int = 96, shift: int = 0) -> MfsSample:
    """Make a sample whose arrays all differ; disparities are whole codes, so they survive exactly."""
    y, x = np.mgrid[0:height, 0:width]
    left = np.stack([(x * 2 + shift) % 256, (y * 3) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    return MfsSample(
        left_image=left,
        right_image=np.ascontiguousarray(left[:, ::-1]),
        disparity=((x + 2 * y + shift) / 256).astype(np.float32),
        confidence=((x + y) / (height + width)).astype(np.float32),
        left_visible_mask=x % 7 > 0,
        right_hole_mask=y % 5 == 0,
        name=name,
    )


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A folder of three samples, as another program might have written it."""
    root = tmp_path / "MfS35K"
    samples = [make_sample(f"scenes/left/{number}.png", 64 + number, 96, 10 * number) for number in (2, 0, 1)]
    write_file_list(root / "list.txt", [write_pair(root, sample) for sample in samples])
    return root


def decoded(output: Path) -> list[dict[str, Any]]:
    return [decode_pair(row) for row in load_dataset(str(output), split="train", streaming=True)]


def assert_equal_samples(one: MfsSample, other: MfsSample) -> None:
    for name in MfsSample._fields[:-1]:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_a_build_becomes_files_and_comes_back(tmp_path: Path):
    """The options of the command, then the import: everything that training sees is equal, bit for bit."""
    photos, output = tmp_path / "photos", tmp_path / "pairs"
    photos.mkdir()
    for number in range(3):
        PIL.Image.fromarray(make_sample("left/a.png", 64, 96, 40 * number).left_image).save(photos / f"{number}.png")
    arguments = ["--photos", str(photos), "--output", str(output), "--device", "cpu", "--pairs-per-shard", "2"]
    assert generate_pairs.main([*arguments, "--layout", "mfs35k"]) == 0
    before = decoded(output)
    assert len(before) == 3  # the files beside the shards are not read
    listed = read_file_list(output / "mfs35k" / "list.txt")
    assert [paths.left_image for paths in listed] == [f"left/{pair['id']}.png" for pair in before]

    again = ["--output", str(tmp_path / "again"), "--license", "CC0-1.0", "--attribution", "Ann"]
    assert import_mfs35k.main([str(output / "mfs35k"), *again]) == 0
    after = decoded(tmp_path / "again")
    for made, taken, paths in zip(before, after, listed, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(made[name], taken[name], err_msg=name)
        assert taken["id"] == photo_id((output / "mfs35k" / paths.left_image).read_bytes())
        assert (taken["source"], taken["license"], taken["attribution"]) == (paths.left_image, "CC0-1.0", "Ann")
        assert taken["disparity_scale"] == pytest.approx(made["disparity_scale"], abs=1 / 256 / 96)
        assert {name: taken[name] for name in UNKNOWN} == UNKNOWN
        assert all(math.isnan(taken[f"flip_agreement{end}"]) for end in ("", "_min", "_max"))


def test_an_imported_folder_is_a_build_that_becomes_the_same_files(layout: Path, tmp_path: Path):
    manifest = import_layout(layout, layout / "list.txt", tmp_path / "pairs", pairs_per_shard=2)
    assert manifest["counts"] == {"photos": 3, "pairs": 3, "rejected": {}}
    assert manifest == read_manifest(tmp_path / "pairs") and len(manifest["shards"]) == 2
    assert write_layout(tmp_path / "pairs", tmp_path / "files") == 3
    originals = list(read_samples(layout, layout / "list.txt"))
    copies = list(read_samples(tmp_path / "files", tmp_path / "files" / "list.txt"))
    for original, copy in zip(originals, copies, strict=True):  # the order of the list is kept
        np.testing.assert_allclose(copy.confidence, original.confidence, rtol=0, atol=0.5 / 65534 + 1e-7)
        assert_equal_samples(copy._replace(confidence=original.confidence), original)


def test_files_that_are_there_are_not_written_again(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, written = tmp_path / "files", []

    def note_and_write(root: Path, sample: MfsSample) -> Any:
        written.append(sample.name)
        return write_pair(root, sample)

    import_layout(layout, layout / "list.txt", tmp_path / "pairs")
    write_layout(tmp_path / "pairs", root)
    lost = read_file_list(root / "list.txt")[1]
    (root / lost.confidence).unlink()
    monkeypatch.setattr(mfs35k_rows, "write_pair", note_and_write)
    assert write_layout(tmp_path / "pairs", root) == 3
    assert written == [lost.left_image] and (root / lost.confidence).is_file()


def test_samples_that_cannot_be_read_are_named_and_the_others_taken(layout: Path, tmp_path: Path):
    (layout / "scenes/mask_nocc/0.png").write_bytes((layout / "scenes/left/0.png").read_bytes())
    manifest = import_layout(layout, layout / "list.txt", tmp_path / "pairs")
    assert manifest["counts"] == {"photos": 3, "pairs": 2, "rejected": {"unreadable": 1}}
    (rejected,) = rejected_photos(Plan(tmp_path / "pairs"))
    assert rejected.source == "scenes/left/0.png"
    assert (
        rejected.reason.startswith("scenes/mask_nocc/0.png must be 8-bit grey")
        and str(tmp_path) not in rejected.reason
    )


def test_a_left_file_that_changes_after_the_plan_is_left_out(layout: Path, tmp_path: Path):
    output = tmp_path / "pairs"
    import_layout(layout, layout / "list.txt", output, pairs_per_shard=2)
    for path in (output / "data").iterdir():
        path.unlink()
    write_pair(layout, make_sample("scenes/left/1.png", 65, 96, 99))
    manifest = import_layout(layout, layout / "list.txt", output, pairs_per_shard=2)
    assert manifest["counts"]["rejected"] == {"changed": 1}


def test_an_interrupted_import_goes_on(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = []

    def read_and_stop(root: Path, paths: Any) -> MfsSample:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(paths.left_image)
        return read_sample(root, paths)

    monkeypatch.setattr(mfs35k_rows, "read_sample", read_and_stop)
    with pytest.raises(KeyboardInterrupt):
        import_layout(layout, layout / "list.txt", tmp_path / "pairs", pairs_per_shard=1)
    read.clear()
    assert import_layout(layout, layout / "list.txt", tmp_path / "pairs", pairs_per_shard=1)["counts"]["pairs"] == 3
    assert read == ["scenes/left/1.png"]


def test_a_disparity_that_is_not_known_is_not_seen():
    """Two of three columns are known: the third becomes 0 px of confidence 0 that nobody sees."""
    ones = np.ones((2, 3))
    view = encode_view(PIL.Image.fromarray(np.full((2, 3, 3), 9, np.uint8)))
    stored = encode_disparity(np.array([[1.5, 0.0, np.inf], [2.25, 3.0, np.inf]]))
    pictures = {
        "left_image": view,
        "right_image": view,
        "disparity": stored.png,
        "confidence": encode_confidence(ones),
        "right_hole_mask": encode_mask(ones < 0),
        "left_visible_mask": encode_mask(ones > 0),
    }
    row = {"id": "ab", "disparity_png_scale": stored.png_scale}
    sample = sample_from_row(row | {name: {"bytes": data} for name, data in pictures.items()})
    assert sample.name == "left/ab.png"
    np.testing.assert_array_equal(sample.disparity, [[1.5, 0, 0], [2.25, 3, 0]])
    np.testing.assert_array_equal(sample.confidence, [[1, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(sample.left_visible_mask, [[True, True, False]] * 2)


def test_builds_of_labels_only_are_refused(layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    row = {name: None for name in FEATURES if name not in ("left_image", "right_image")}
    with pytest.raises(ValueError, match="`row` must hold both pictures"):
        sample_from_row(row)
    arguments = ["--photos", str(layout), "--output", str(tmp_path / "p"), "--labels-only", "--layout", "mfs35k"]
    assert generate_pairs.main(arguments) == 2
    assert "`--layout mfs35k` needs pictures; got --labels-only" in capsys.readouterr().err
    arguments = ["--photos", str(layout / "scenes/left"), "--output", str(tmp_path / "p"), "--device", "cpu"]
    assert generate_pairs.main([*arguments, "--labels-only"]) == 0
    with pytest.raises(ValueError, match="must hold pictures for the layout mfs35k"):
        write_layout(tmp_path / "p", tmp_path / "files")
    with pytest.raises(FileNotFoundError, match="complete build"):
        write_layout(layout, tmp_path / "files")


def test_missing_files_and_other_lists_are_refused_before_work(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    output = ["--output", str(tmp_path / "pairs")]
    assert import_mfs35k.main([str(layout), *output]) == 0
    lines = (layout / "list.txt").read_text().splitlines()
    (layout / "short.txt").write_text(lines[0] + "\n")
    assert import_mfs35k.main([str(layout), *output, "--list", str(layout / "short.txt")]) == 2
    assert "its plan is frozen: source list" in capsys.readouterr().err
    (layout / "scenes/confidence/1.npy").unlink()
    assert import_mfs35k.main([str(layout), "--output", str(tmp_path / "other")]) == 2
    assert "1 are missing, the first is scenes/confidence/1.npy" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
