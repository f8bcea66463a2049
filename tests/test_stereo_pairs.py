# SPDX-License-Identifier: Apache-2.0
"""Tests of the builder class: what the library reads equals what the command makes, and nothing is made twice."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset

from datasets_builder import building, generate_pairs
from datasets_builder.options import DEFAULT_WEIGHTS, build_parser
from datasets_builder.pairs import make_pairs
from datasets_builder.schema import FEATURES, LABEL_FEATURES, decode_pair
from datasets_builder.shards import claim
from datasets_builder.stereo_pairs import StereoPairs

BUILD = {"batch_size": 2, "pairs_per_shard": 2, "seed": 3, "device": "cpu", "license": "CC0-1.0"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs of 96x64: shards of two, two and one."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:64, 0:96]
    for number in range(5):
        pixels = np.stack([(x * (number + 2)) % 256, (y * 3 + number * 40) % 256, (x + y) % 256], axis=-1)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made_by_command(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("command")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in BUILD.items()]
    assert generate_pairs.main(["--photos", str(photos), "--output", str(output), *options]) == 0
    return output


@pytest.fixture
def builder(photos: Path, tmp_path: Path) -> StereoPairs:
    return StereoPairs(photos=str(photos), output=str(tmp_path / "pairs"), cache_dir=str(tmp_path / "cache"), **BUILD)


class CountedPairs:
    """`make_pairs` that counts its photographs and may be interrupted after some."""

    def __init__(self, interrupt_after: int | None = None):
        self.made, self.interrupt_after = 0, interrupt_after

    def __call__(self, pipe: Any, photographs: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        if self.interrupt_after is not None and self.made >= self.interrupt_after:
            raise KeyboardInterrupt
        self.made += len(photographs.pixels)
        return make_pairs(pipe, photographs, *arguments, **keywords)


def rows(dataset: Any) -> list[dict[str, Any]]:
    """Return all rows with pictures as bytes of their files."""
    for name, kind in FEATURES.items():
        if isinstance(kind, datasets.Image) and name in dataset.features:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    stored = [dict(row) for row in dataset]
    return [
        {key: value["bytes"] if isinstance(value, dict) else value for key, value in row.items()} for row in stored
    ]


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_prepared_data_set_holds_the_rows_of_the_command(
    builder: StereoPairs, made_by_command: Path, tmp_path: Path, file_format: str
):
    builder.download_and_prepare(str(tmp_path / "prepared"), file_format=file_format)
    assert (tmp_path / "pairs/manifest.json").read_bytes() == (made_by_command / "manifest.json").read_bytes()
    expected = rows(load_dataset(str(made_by_command), split="train", cache_dir=str(tmp_path / "cache")))
    assert len(expected) == 5 and {row["license"] for row in expected} == {"CC0-1.0"}
    if file_format == "parquet":
        files = [str(path) for path in sorted((tmp_path / "prepared").glob("*.parquet"))]
        prepared = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        assert rows(prepared) == expected
    else:
        dataset = builder.as_dataset(split="train")
        assert dataset.features == FEATURES
        assert rows(dataset) == expected


def test_stream_builds_first_and_decodes(builder: StereoPairs, made_by_command: Path):
    stream = builder.as_streaming_dataset(split="train")
    assert stream.num_shards == 3
    pair = decode_pair(next(iter(stream)))
    assert pair["disparity"].shape == (1, 64, 96) and pair["disparity"].max() > 0
    assert rows(stream) == rows(load_dataset(str(made_by_command), split="train", streaming=True))


def test_interrupted_build_goes_on_where_it_was(
    builder: StereoPairs, made_by_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Shards of two, two and one; interrupted in the second: two photographs are kept, three are made."""
    interrupted = CountedPairs(interrupt_after=2)
    monkeypatch.setattr(building, "make_pairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        builder.download_and_prepare(str(tmp_path / "prepared"), file_format="parquet")
    assert interrupted.made == 2
    assert not (tmp_path / "prepared").exists() and not (tmp_path / "prepared.incomplete").exists()
    kept = list((tmp_path / "pairs" / "data").iterdir())
    assert [path.name for path in kept] == ["train-00000-of-00003.parquet"]
    going_on = CountedPairs()
    monkeypatch.setattr(building, "make_pairs", going_on)
    builder.download_and_prepare(str(tmp_path / "prepared"), file_format="parquet")
    assert going_on.made == 3
    assert (tmp_path / "pairs/manifest.json").read_bytes() == (made_by_command / "manifest.json").read_bytes()
    assert builder.info.splits is not None and builder.info.splits["train"].num_examples == 5
    streamed = list(builder.as_streaming_dataset(split="train"))
    assert len(streamed) == 5 and going_on.made == 3


def test_labels_only_has_other_columns(photos: Path, tmp_path: Path):
    builder = StereoPairs(
        photos=photos, output=tmp_path / "pairs", cache_dir=str(tmp_path / "cache"), labels_only=True, **BUILD
    )
    builder.download_and_prepare()
    assert builder.as_dataset(split="train").features == LABEL_FEATURES


def test_several_processes_are_refused_with_the_reason(builder: StereoPairs, tmp_path: Path):
    with pytest.raises(ValueError, match="`num_proc` must be 1 or None; got 2.*forks its workers.*torch"):
        builder.download_and_prepare(str(tmp_path / "prepared"), num_proc=2)
    assert not (tmp_path / "pairs").exists()


def test_shards_in_other_hands_are_not_read(builder: StereoPairs, tmp_path: Path):
    with claim(tmp_path / "pairs", "shard-00001"), pytest.raises(ValueError, match="1 shards of .* are in the hands"):
        builder.as_streaming_dataset(split="train")


def test_options_of_a_frozen_plan_are_kept(builder: StereoPairs, photos: Path, tmp_path: Path):
    builder.as_streaming_dataset(split="train")
    other = StereoPairs(photos=photos, output=tmp_path / "pairs", **{**BUILD, "seed": 4})
    with pytest.raises(ValueError, match="seed 3 -> 4"):
        other.as_streaming_dataset(split="train")


def test_every_option_of_the_command_is_one_of_the_configuration():
    command = vars(build_parser("").parse_args(["--photos", "p", "--output", "o"]))
    configured = set(StereoPairs.BUILDER_CONFIG_CLASS.__dataclass_fields__)
    assert set(command) - configured == {"retry_rejected", "layout"}
    config = StereoPairs.BUILDER_CONFIG_CLASS(photos="p", output=Path("o"))
    known = {name: value for name, value in command.items() if name in configured}
    assert {name: getattr(config, name) for name in known} == {**known, "weights": DEFAULT_WEIGHTS}
