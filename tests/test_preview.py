# SPDX-License-Identifier: Apache-2.0
"""The preview command: a picture of the asked-for rows, whole or not at all."""

from pathlib import Path

import PIL.Image
import pytest

from datasets_builder import preview
from datasets_builder.drawing import GAP, LINE
from tests.odd_photos import plain_photos, write_photos
from tests.small_builds import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    photos = write_photos(folder / "photos", plain_photos(3, sizes=((96, 72),)))
    return build(photos, folder / "pairs")


def test_a_sheet_of_some_rows_is_written(folder: Path, tmp_path: Path, capsys):
    row_height = LINE + 75 + GAP  # 72 of 96 px at side 100
    for rows, drawn, name in ((2, 2, "a.png"), (9, 3, "deep/b.JPG")):
        arguments = [str(folder), "--rows", str(rows), "--side", "100", "--output", str(tmp_path / name)]
        assert preview.main(arguments) == 0
        with PIL.Image.open(tmp_path / name) as sheet:
            assert sheet.size == (GAP + 5 * (100 + GAP), GAP + LINE + drawn * row_height)
            assert sheet.format == ("PNG" if name == "a.png" else "JPEG")
        assert str(tmp_path / name) in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b.JPG"], "no temporary file stays"


def test_the_seed_decides_and_the_default_is_in_the_folder(folder: Path, tmp_path: Path):
    made = []
    for seed in ("0", "0", "3"):
        assert preview.main([str(folder), "--rows", "1", "--seed", seed]) == 0
        made.append((folder / "preview.png").read_bytes())
    assert made[0] == made[1] != made[2]


def test_what_cannot_be_followed_is_refused(folder: Path, tmp_path: Path, capsys):
    for arguments, message in (
        ([str(tmp_path)], "must hold a complete build"),
        ([str(folder), "--rows", "0"], "`--rows` must be at least 1; got 0."),
        ([str(folder), "--side", "0"], "`side` must be at least 1 px; got 0."),
        ([str(folder), "--output", "a.tif"], "`--output` must end in .png, .jpg, .jpeg; got a.tif."),
    ):
        assert preview.main(arguments) == 2
        assert message in capsys.readouterr().err
