# SPDX-License-Identifier: Apache-2.0
"""Rows of published pairs: codes of maps, and every form in which `datasets` hands rows to `decode_pair`."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Image, load_dataset
from datasets.distributed import split_dataset_by_node

from datasets_builder.schema import (
    CONFIDENCE_SCALE,
    FEATURES,
    LABEL_FEATURES,
    PREVIEW_SIDE,
    decode_codes,
    decode_pair,
    encode_confidence,
    encode_disparity,
    encode_mask,
    encode_preview,
    encode_view,
)
from datasets_builder.shards import ShardRecord, write_shard

HEIGHT, WIDTH = 5, 9
ARRAYS = {
    "left_image": ((3, HEIGHT, WIDTH), np.float32),
    "right_image": ((3, HEIGHT, WIDTH), np.float32),
    "disparity": ((1, HEIGHT, WIDTH), np.float32),
    "valid_disparity_mask": ((1, HEIGHT, WIDTH), np.bool_),
    "confidence": ((1, HEIGHT, WIDTH), np.float32),
    "right_hole_mask": ((1, HEIGHT, WIDTH), np.bool_),
    "left_visible_mask": ((1, HEIGHT, WIDTH), np.bool_),
}


def codes_of(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)))


def make_row(number: int, left_format: str = "PNG", mode: str = "RGB") -> dict:
    """A row of known content: pixel values, disparities and masks that differ at every place and in every row."""
    left = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3) + number
    picture = PIL.Image.fromarray(left).convert(mode)
    file = io.BytesIO()
    picture.save(file, left_format)
    disparity = np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH) / 4 + number
    disparity[1, 2] = np.inf
    encoded = encode_disparity(disparity)
    holes = np.zeros((HEIGHT, WIDTH), bool)
    holes[3, 7] = True
    values = {
        "id": f"{number:016x}",
        "left_image": file.getvalue(),
        "right_image": encode_view(PIL.Image.fromarray(255 - left)),
        "disparity": encoded.png,
        "disparity_png_scale": encoded.png_scale,
        "confidence": encode_confidence(np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)),
        "right_hole_mask": encode_mask(holes),
        "left_visible_mask": encode_mask(~holes),
        "preview": encode_preview(picture, encoded.disparity),
        "width": WIDTH,
        "height": HEIGHT,
        "seed": number,
    }
    blank = {"string": "", "float32": 0.5}
    return {name: values[name] if name in values else blank[kind.dtype] for name, kind in FEATURES.items()}


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Two shards of three rows each on disk."""
    for shard in range(2):
        rows = [make_row(3 * shard + number) for number in range(3)]
        path = tmp_path / "data" / f"train-{shard:05d}-of-00002.parquet"
        write_shard(path, rows, FEATURES, lambda: ShardRecord("", [], [], {}))
    return str(tmp_path)


def assert_is_pair(pair: dict, number: int) -> None:
    """Compare with what `make_row` put in, value by value where it is known by hand."""
    for name, (shape, dtype) in ARRAYS.items():
        assert (np.asarray(pair[name]).shape, np.asarray(pair[name]).dtype) == (shape, dtype), name
    assert pair["left_image"][2, 1, 3] == pytest.approx(((WIDTH + 3) * 3 + 2 + number) / 255)
    assert pair["right_image"][0, 0, 1] == pytest.approx((252 - number) / 255)
    assert pair["disparity"][0, 2, 1] == (2 * WIDTH + 1) / 4 + number
    assert pair["disparity"][0, 1, 2] == 0 and not pair["valid_disparity_mask"][0, 1, 2]
    assert np.asarray(pair["valid_disparity_mask"]).sum() == HEIGHT * WIDTH - 1
    assert pair["confidence"][0, 0, 0] == 0 and pair["confidence"][0, 4, 8] == 1
    assert np.argwhere(np.asarray(pair["right_hole_mask"])).tolist() == [[0, 3, 7]]
    assert np.asarray(pair["left_visible_mask"]).sum() == HEIGHT * WIDTH - 1
    assert pair["id"] == f"{number:016x}" and "preview" not in pair


# --- codes ---


def test_codes_of_a_disparity_are_known():
    disparity = np.array([[0.0, 1.0, 2.5], [np.inf, np.nan, 0.25]], np.float32)
    encoded = encode_disparity(disparity)
    assert encoded.png_scale == 256
    assert codes_of(encoded.png).tolist() == [[1, 257, 641], [0, 0, 65]]
    assert encoded.disparity.tolist() == [[0, 1, 2.5], [0, 0, 0.25]]
    assert encoded.valid.tolist() == [[True, True, True], [False, False, True]]


def test_zero_px_is_a_valid_disparity():
    encoded = encode_disparity(np.zeros((2, 3), np.float32))
    assert (codes_of(encoded.png) == 1).all() and encoded.valid.all() and not encoded.disparity.any()


def test_a_stored_disparity_is_off_by_at_most_half_a_code_up_to_255_9_px():
    disparity = np.random.default_rng(3).uniform(0, 255.9, (40, 70)).astype(np.float32)
    disparity[0, 0] = 255.9
    encoded = encode_disparity(disparity)
    assert encoded.png_scale == 256
    assert np.abs(encoded.disparity.astype(np.float64) - disparity).max() <= 1 / 512


@pytest.mark.parametrize(("largest", "png_scale"), [(255.99, 256), (256.5, 128), (511.9, 128), (600.0, 64)])
def test_wider_photographs_halve_the_scale(largest: float, png_scale: float):
    """ADS passes 256 px above 1280 px width: nothing is cut off, the step grows."""
    encoded = encode_disparity(np.array([[0.0, largest]], np.float32))
    assert encoded.png_scale == png_scale
    assert encoded.disparity[0, 1] == pytest.approx(largest, abs=0.5 / png_scale)


def test_quantising_twice_changes_nothing():
    disparity = np.random.default_rng(5).uniform(0, 300, (7, 11)).astype(np.float32)
    once = encode_disparity(disparity)
    again = encode_disparity(once.disparity)
    assert again.png == once.png and np.array_equal(again.disparity, once.disparity)


def test_codes_of_a_confidence_are_known():
    png = encode_confidence(np.array([[0.0, 1.0, 0.5, np.nan]]))
    assert codes_of(png).tolist() == [[1, 65535, 32768, 0]]
    values, valid = decode_codes(codes_of(png), CONFIDENCE_SCALE)
    assert values.tolist() == [[0, 1, 0.5, 0]] and valid.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_disparity(np.zeros((1, 2, 3))), r"`disparity` must have shape \[H,W\]; got \[1, 2, 3\]"),
        (lambda: encode_disparity(np.full((2, 2), -1.0)), "negative"),
        (lambda: encode_confidence(np.zeros(4)), r"`confidence` must have shape \[H,W\]; got \[4\]"),
        (lambda: encode_confidence(np.full((1, 2), 1.5)), r"`confidence` must lie in \[0, 1\]; got 1.5 to 1.5"),
        (lambda: encode_mask(np.zeros((2, 2))), r"`mask` must be bool of shape \[H,W\]; got float64 \[2, 2\]"),
        (lambda: decode_codes(np.zeros((2, 2)), 256), "`codes` must be integers; got float64"),
        (lambda: decode_codes(np.zeros((2, 2), int), 0), "`scale` must be above 0 codes per unit; got 0"),
    ],
)
def test_what_is_no_map_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


# --- pictures ---


def test_the_view_is_stored_bit_for_bit_with_its_profile():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    view = PIL.Image.fromarray(pixels)
    view.info["icc_profile"] = b"a profile"
    stored = PIL.Image.open(io.BytesIO(encode_view(view)))
    assert np.array_equal(np.asarray(stored), pixels) and stored.info["icc_profile"] == b"a profile"


def test_the_preview_shows_both_halves_and_carries_no_metadata():
    left = PIL.Image.new("RGB", (800, 400), (200, 30, 30))
    left.getexif()[0x010E] = "SECRET"
    disparity = np.tile(np.linspace(0, 60, 800, dtype=np.float32), (400, 1))
    data = encode_preview(left, disparity)
    preview = PIL.Image.open(io.BytesIO(data))
    assert preview.size == (2 * PREVIEW_SIDE, PREVIEW_SIDE // 2)
    assert b"SECRET" not in data and not preview.getexif()
    pixels = np.asarray(preview).astype(int)
    assert np.abs(pixels[90, 100] - (200, 30, 30)).max() < 12
    assert pixels[90, PREVIEW_SIDE + 10].sum() < pixels[90, 2 * PREVIEW_SIDE - 10].sum()  # far is dark, near is bright


# --- rows ---


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("format", [None, "numpy", "torch"])
def test_rows_decode_in_every_format(shards: str, streaming: bool, format: str | None):
    rows = load_dataset(shards, split="train", streaming=streaming).with_format(format)
    for number, row in enumerate(rows):
        assert_is_pair(decode_pair(row), number)
    assert number == 5


def test_rows_decode_from_their_bytes(shards: str):
    rows = load_dataset(shards, split="train", streaming=True)
    for name in FEATURES:
        if isinstance(FEATURES[name], Image):
            rows = rows.cast_column(name, Image(decode=False))
    assert_is_pair(decode_pair(next(iter(rows))), 0)


def test_the_features_are_kept_in_the_file(shards: str):
    assert load_dataset(shards, split="train").features == FEATURES


def test_map_gives_arrays_to_a_loader_with_workers(shards: str):
    rows = load_dataset(shards, split="train", streaming=True).map(decode_pair).with_format("torch")
    rows = rows.remove_columns([name for name in FEATURES if name not in (*ARRAYS, "id")])
    loader = torch.utils.data.DataLoader(rows, batch_size=3, num_workers=2)
    batches = list(loader)
    assert sorted(name for batch in batches for name in batch["id"]) == [f"{number:016x}" for number in range(6)]
    assert batches[0]["left_image"].shape == (3, 3, HEIGHT, WIDTH) and batches[0]["left_image"].dtype == torch.float32
    assert batches[0]["disparity"].shape == (3, 1, HEIGHT, WIDTH)
    assert batches[0]["right_hole_mask"].dtype == torch.bool


def test_map_of_a_set_in_memory(shards: str):
    mapped = load_dataset(shards, split="train").map(decode_pair, remove_columns=["preview"])
    assert_is_pair(mapped.with_format("numpy")[4], 4)


def test_nodes_share_the_rows(shards: str):
    rows = load_dataset(shards, split="train", streaming=True).map(decode_pair)
    seen = [[row["seed"] for row in split_dataset_by_node(rows, rank, 2)] for rank in range(2)]
    assert seen == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("format", [None, "torch"])
def test_photographs_of_other_modes_arrive_as_rgb(tmp_path: Path, mode: str, format: str | None):
    row = make_row(0, mode=mode)
    write_shard(tmp_path / "data" / "train.parquet", [row], FEATURES, lambda: ShardRecord("", [], [], {}))
    stored = next(iter(load_dataset(str(tmp_path), split="train", streaming=True).with_format(format)))
    wanted = np.asarray(PIL.Image.open(io.BytesIO(row["left_image"])).convert("RGB"), np.float32) / 255
    assert np.array_equal(decode_pair(stored)["left_image"], wanted.transpose(2, 0, 1))


def test_a_turned_photograph_stands_upright(tmp_path: Path):
    row = make_row(0)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = io.BytesIO()
    PIL.Image.open(io.BytesIO(row["left_image"])).transpose(PIL.Image.Transpose.ROTATE_90).save(
        turned, "PNG", exif=exif
    )
    row["left_image"] = turned.getvalue()
    write_shard(tmp_path / "data" / "train.parquet", [row], FEATURES, lambda: ShardRecord("", [], [], {}))
    rows = load_dataset(str(tmp_path), split="train", streaming=True)
    assert_is_pair(decode_pair(next(iter(rows))), 0)
    assert_is_pair(decode_pair(next(iter(rows.cast_column("left_image", Image(decode=False))))), 0)


def test_rows_of_labels_have_no_pictures():
    row = {name: value for name, value in make_row(1).items() if name in LABEL_FEATURES}
    stored = {
        name: {"bytes": row[name], "path": None} if isinstance(kind, Image) else row[name]
        for name, kind in LABEL_FEATURES.items()
    }
    rows = Dataset.from_list([stored], features=LABEL_FEATURES)
    pair = decode_pair(rows[0])
    assert "left_image" not in pair and "right_image" not in pair and pair["disparity"].shape == (1, HEIGHT, WIDTH)


def test_a_row_that_does_not_fit_together_is_refused(shards: str):
    row = dict(next(iter(load_dataset(shards, split="train", streaming=True))))
    with pytest.raises(ValueError, match="`disparity` must be a 16-bit grey picture; got uint8"):
        decode_pair(row | {"disparity": row["right_hole_mask"]})
    with pytest.raises(ValueError, match="`row` must hold pictures and maps of one size"):
        decode_pair(row | {"left_visible_mask": row["left_visible_mask"].crop((0, 0, 4, 4))})
