# SPDX-License-Identifier: Apache-2.0
"""Folders, list files and streamed data sets as sources of photographs."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value

from datasets_builder.sources import (
    FolderSource,
    Photo,
    StreamSource,
    UnreadableSourceError,
    photo_suffixes,
    read_list,
)
from tests.odd_photos import plain_photos, write_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs at several depths, and files that are none."""
    return write_photos(
        tmp_path / "photos",
        {
            "b.JPG": b"b",
            "a/deep/x.png": b"x",
            "a/y.heic": b"y",
            ".hidden/z.jpg": b"z",
            "a/.z.jpg": b"z",
            "notes.txt": b"n",
            "drawing.eps": b"e",
        },
    )


def listed(source: FolderSource | StreamSource) -> list[tuple[Photo, bytes]]:
    return [(photo, read()) for photo, read in source.photos()]


def test_a_folder_is_searched_in_the_order_of_paths(folder: Path):
    found = listed(FolderSource(folder, license="CC0-1.0"))
    assert [photo.locator for photo, _ in found] == ["a/deep/x.png", "a/y.heic", "b.JPG"]
    assert [data for _, data in found] == [b"x", b"y", b"b"]
    assert found[0][0] == Photo("a/deep/x.png", "a/deep/x.png", "CC0-1.0", "")


def test_suffixes_are_those_of_pictures():
    assert {".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".heic", ".avif"} <= photo_suffixes()
    assert not {".eps", ".ps", ".wmf", ".mpg", ".h5", ".pdf", ".txt"} & photo_suffixes()


def test_many_photographs_are_read_in_the_order_asked_for(folder: Path):
    contents = list(FolderSource(folder).read_many(["b.JPG", "gone.jpg", "a/y.heic"]))
    assert contents[0] == b"b" and contents[2] == b"y"
    assert isinstance(contents[1], UnreadableSourceError) and "No such file" in str(contents[1])


LISTS = {
    "list.txt": "b.JPG\n\n a/deep/x.png \n",
    "list.csv": "path,license,source\nb.JPG,MIT,here\na/deep/x.png,,\n",
    "list.jsonl": '{"path": "b.JPG", "license": "MIT", "source": "here"}\n{"path": "a/deep/x.png"}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_file_names_photographs_in_its_own_order(folder: Path, name: str):
    (folder / name).write_text(LISTS[name])
    first, second = (photo for photo, _ in listed(FolderSource(folder / name, "CC0-1.0", "Ann")))
    own = ("b.JPG", "b.JPG", "CC0-1.0", "Ann") if name == "list.txt" else ("b.JPG", "here", "MIT", "Ann")
    assert first == Photo(*own)
    assert second == Photo("a/deep/x.png", "a/deep/x.png", "CC0-1.0", "Ann")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "path,author\nb.JPG,Ann\n", r"only source, license, attribution; got .*author.* in line 2 of "),
        ("list.csv", "license\nMIT\n", "must have a `path` in each line"),
        ("list.jsonl", '{"path": "b.JPG"}\n{"path"\n', "must hold a JSON object in each line; line 2 of "),
        ("list.jsonl", '["b.JPG"]\n', r"must hold a JSON object in each line; got '\[\"b.JPG\"\]' in line 1"),
        ("list.xml", "<b/>", r"must be a list file of .txt, .csv, .jsonl; got .*list.xml"),
        ("list.txt", "\n", "must name at least one photograph; found none in .*list.txt"),
    ],
)
def test_a_list_file_that_cannot_be_followed_is_refused(folder: Path, name: str, content: str, message: str):
    (folder / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        listed(FolderSource(folder / name))


def test_no_photographs_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="`photos` must be a folder, a list file or a data set; got .*gone"):
        FolderSource(tmp_path / "gone")
    with pytest.raises(
        FileNotFoundError, match=r"`photos` must name at least one photograph \(.*\.jpg.*\); found none in "
    ):
        listed(FolderSource(tmp_path))


def test_a_csv_of_many_lines_keeps_quoted_commas(tmp_path: Path):
    (tmp_path / "list.csv").write_text('path,attribution\na.jpg,"Ann, of Bonn"\n')
    assert read_list(tmp_path / "list.csv") == [{"path": "a.jpg", "attribution": "Ann, of Bonn"}]


# --- streams ---


@pytest.fixture
def stream_folder(tmp_path: Path) -> Path:
    """A data set of seven photographs in three Parquet files, one row without a picture."""
    photos = list(plain_photos(7).values())
    features = Features({"image": Image(), "mask": Value("int32"), "licence": Value("string")})
    for shard, rows in enumerate(([0, 1, 2], [3, None, 4], [5, 6])):
        records = [
            {
                "image": None if number is None else {"bytes": photos[number], "path": None},
                "mask": 0,
                "licence": f"L{number}",
            }
            for number in rows
        ]
        folder = tmp_path / "stream" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(records, features=features).to_parquet(str(folder / f"train-{shard:05d}-of-00003.parquet"))
    return tmp_path / "stream"


def test_a_stream_is_walked_shard_by_shard(stream_folder: Path):
    source = StreamSource(str(stream_folder), license="licence", attribution="Ann")
    photos = list(plain_photos(7).values())
    found = list(source.photos())
    assert [photo.locator for photo, _ in found] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]
    assert found[3][0].license == "L3" and found[3][0].attribution == "Ann"
    assert found[3][0].source.endswith("stream#1:0")
    assert [read() for photo, read in found if photo.locator != [1, 1]] == photos
    with pytest.raises(UnreadableSourceError, match="the row holds no picture"):
        found[4][1]()


def test_a_stream_finds_rows_again_in_any_order(stream_folder: Path):
    source = StreamSource(str(stream_folder))
    photos = list(plain_photos(7).values())
    wanted = [[0, 1], [0, 2], [1, 0], [1, 2], [0, 0], [2, 1]]
    assert list(source.read_many(wanted)) == [photos[number] for number in (1, 2, 3, 4, 0, 6)]
    assert isinstance(next(source.read_many([[1, 1]])), UnreadableSourceError)


def test_the_image_column_is_chosen_or_asked_for(tmp_path: Path):
    features = Features({"first": Image(), "second": Image(), "name": Value("string")})
    data = next(iter(plain_photos(1).values()))
    record = {"first": {"bytes": data, "path": None}, "second": {"bytes": data, "path": None}, "name": "n"}
    Dataset.from_list([record], features=features).to_parquet(str(tmp_path / "train.parquet"))
    message = r"`image_column` must be an image column of .*, which has \['first', 'second'\]; got "
    with pytest.raises(ValueError, match=message + "None"):
        StreamSource(str(tmp_path))
    with pytest.raises(ValueError, match=message + "'name'"):
        StreamSource(str(tmp_path), "name")
    ((_, read),) = StreamSource(str(tmp_path), "first").photos()
    assert read() == data


def test_a_folder_of_pictures_streams_by_its_paths(tmp_path: Path):
    """The library's imagefolder hands out paths instead of bytes."""
    photos = write_photos(tmp_path / "imagefolder" / "train", plain_photos(2))
    (photos / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"{n:03d}.jpg"}) + "\n" for n in range(2)))
    found = [read() for _, read in StreamSource(str(tmp_path / "imagefolder")).photos()]
    assert found == list(plain_photos(2).values())
