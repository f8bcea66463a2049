# SPDX-License-Identifier: Apache-2.0
"""From one file to one row, with the embedded weights: decoding, the pair, encoding."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from datasets_builder.pairs import (
    DecodedPhoto,
    Pair,
    UnusablePhotoError,
    decode_photo,
    encode_row,
    make_pairs,
    pair_constants,
    pipeline_revision,
    weights_id,
)
from datasets_builder.photo_files import open_photo
from datasets_builder.plan import PlannedPhoto, photo_id
from datasets_builder.schema import FEATURES, LABEL_FEATURES, decode_pair
from pipeline_zerostereo import Photographs, ZeroStereoPipeline, forward_warp, sample_disparity_scale
from tests.odd_photos import PLANTED, encoded, picture, pixels, plain_photos, unusable_photos, usable_photos

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"


@pytest.fixture(scope="module")
def pipe() -> ZeroStereoPipeline:
    pipe = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def planned(data: bytes, width: int = 96, height: int = 72) -> PlannedPhoto:
    return PlannedPhoto(photo_id(data), "a.jpg", "a.jpg", "CC0-1.0", "Ann", width, height, 0, "whole")


def stored(row: dict) -> dict:
    """The row as a reader meets it."""
    return {name: {"bytes": value} if isinstance(value, bytes) else value for name, value in row.items()}


def row_of(pipe: ZeroStereoPipeline, data: bytes, seed: int = 4) -> tuple[dict, Pair, DecodedPhoto]:
    decoded = decode_photo(data, planned(data))
    (pair,) = make_pairs(pipe, decoded.photographs, [seed], "whole", None)
    return encode_row(planned(data), decoded, pair, pair_constants(0, photo_id(data), "r", "w")), pair, decoded


# --- decoding ---


@pytest.mark.parametrize("name", usable_photos())
def test_a_reader_sees_the_pixels_that_the_pipeline_saw(name: str):
    data = usable_photos()[name]
    decoded = decode_photo(data, planned(data))
    seen = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(decoded.published))).convert("RGB"))
    used = (decoded.photographs.pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    original = np.asarray(PIL.ImageOps.exif_transpose(open_photo(data)).convert("RGB"))
    assert seen.shape == (72, 96, 3)
    assert np.array_equal(seen, used) and np.array_equal(seen, original)


@pytest.mark.parametrize("name", ["plain.jpg", "deep/nested/turned.jpeg", "opaque_alpha.png", "picture.webp"])
def test_what_the_file_says_beside_its_pixels_is_not_published(name: str):
    data = usable_photos()[name]
    assert PLANTED in data
    assert PLANTED not in decode_photo(data, planned(data)).published
    assert decode_photo(data, planned(data), keep_metadata=True).published == data


@pytest.mark.parametrize("name", [n for n, (_, kind) in unusable_photos().items() if kind in ("unreadable", "colors")])
def test_unusable_photographs_say_why(name: str):
    data, kind = unusable_photos()[name]
    with pytest.raises(UnusablePhotoError) as caught:
        decode_photo(data, planned(data))
    assert caught.value.kind == kind and str(caught.value) and "0x" not in str(caught.value)


def test_a_file_that_changed_since_the_plan_is_refused():
    data = encoded(picture(0), "PNG")
    with pytest.raises(UnusablePhotoError, match="not the one that was planned") as caught:
        decode_photo(data, planned(encoded(picture(1), "PNG")))
    assert caught.value.kind == "changed"


def test_a_size_that_is_not_the_planned_one_is_refused():
    data = encoded(picture(0), "PNG")
    with pytest.raises(UnusablePhotoError, match="96 x 72 px decoded, 95 x 72 announced"):
        decode_photo(data, planned(data, width=95))


# --- pairs ---


@pytest.fixture(scope="module")
def made(pipe: ZeroStereoPipeline) -> tuple[dict, Pair, DecodedPhoto]:
    return row_of(pipe, encoded(picture(0), "JPEG", quality=90))


def test_the_warp_of_a_reader_is_the_right_view_outside_the_holes(made: tuple[dict, Pair, DecodedPhoto]):
    pair = decode_pair(stored(made[0]))
    left, disparity = (torch.from_numpy(pair[name])[None] for name in ("left_image", "disparity"))
    warp = forward_warp(left, disparity)
    assert np.array_equal(warp.right_hole_mask[0].numpy(), pair["right_hole_mask"])
    assert np.array_equal(warp.left_visible_mask[0].numpy(), pair["left_visible_mask"])
    known = ~pair["right_hole_mask"]
    levels = (warp.right_image[0].numpy() * 255).round(), (pair["right_image"] * 255).round()
    assert np.array_equal(levels[0] * known, levels[1] * known)
    assert 0 < pair["right_hole_mask"].mean() < 0.5 and pair["disparity"].max() > 0


def test_the_row_holds_what_the_pipeline_made(made: tuple[dict, Pair, DecodedPhoto], pipe: ZeroStereoPipeline):
    row, pair, decoded = made
    whole = pipe(
        decoded.photographs,
        disparity=torch.from_numpy(pair.disparity),
        generator=after_the_scale(4),
        output_type="pil",
    )
    assert np.array_equal(np.asarray(whole.right_image[0]), np.asarray(pair.right_image))
    estimate, flip = pipe.estimate_inverse_depth(decoded.photographs)
    assert row["flip_agreement"] == pytest.approx(float(flip.agreement.mean()))
    assert row["flip_agreement_min"] == pytest.approx(float(flip.agreement.min()))
    assert row["flip_agreement_max"] == pytest.approx(float(flip.agreement.max()))
    disparity = pipe.select_disparity(estimate, row["disparity_scale"])[0, 0].numpy()
    assert np.abs(disparity - pair.disparity).max() <= 0.5 / row["disparity_png_scale"]


def after_the_scale(seed: int) -> torch.Generator:
    """A generator from which the scale has been drawn already."""
    generator = torch.Generator().manual_seed(seed)
    sample_disparity_scale(1, generator)
    return generator


def test_a_batch_equals_its_photographs_one_by_one(pipe: ZeroStereoPipeline):
    photographs = [decode_photo(data, planned(data)).photographs for data in list(plain_photos(4).values())[::2]]
    both = Photographs(torch.cat([one.pixels for one in photographs]), [None, None])
    together = make_pairs(pipe, both, [5, 6], "whole", None)
    for seed, alone, pair in zip((5, 6), photographs, together, strict=True):
        (single,) = make_pairs(pipe, alone, [seed], "whole", None)
        assert single.disparity_scale == pair.disparity_scale
        assert np.abs(single.disparity - pair.disparity).max() <= 1 / 256  # a sum in another order, at most
    assert together[0].disparity_scale != together[1].disparity_scale


def test_the_right_view_keeps_the_colour_profile(pipe: ZeroStereoPipeline):
    row, pair, _ = row_of(pipe, usable_photos()["profile.png"])
    profiles = [
        PIL.Image.open(io.BytesIO(row[name])).info.get("icc_profile") for name in ("left_image", "right_image")
    ]
    assert profiles[0] and profiles[0] == profiles[1] == pair.right_image.info["icc_profile"]


def test_the_photograph_handed_in_is_not_changed(pipe: ZeroStereoPipeline):
    data = encoded(picture(0), "PNG")
    photographs = decode_photo(data, planned(data)).photographs
    before = photographs.pixels.clone()
    make_pairs(pipe, photographs, [1], "background", None)
    assert torch.equal(before, photographs.pixels)


# --- rows ---


def test_a_row_has_every_column_and_the_constants(made: tuple[dict, Pair, DecodedPhoto]):
    row, _, decoded = made
    assert list(row) == list(FEATURES)
    assert (row["width"], row["height"], row["license"], row["attribution"]) == (96, 72, "CC0-1.0", "Ann")
    assert (row["pipeline_revision"], row["weights_id"], row["source"]) == ("r", "w", "a.jpg")
    assert row["left_image"] == decoded.published
    assert row["id"] == photo_id(encoded(picture(0), "JPEG", quality=90))


def test_labels_only_leaves_the_pictures_out(made: tuple[dict, Pair, DecodedPhoto]):
    _, pair, decoded = made
    row = encode_row(planned(b""), decoded, pair, pair_constants(0, "0", "r", "w"), labels_only=True)
    assert list(row) == list(LABEL_FEATURES)


# --- which pipeline ---


def test_the_weights_id_names_weights_and_settings_not_places(pipe: ZeroStereoPipeline, tmp_path: Path):
    pipe.save_pretrained(tmp_path / "copy")
    first = weights_id(pipe)
    assert len(first) == 16 and weights_id(ZeroStereoPipeline.from_pretrained(tmp_path / "copy")) == first
    other = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    with torch.no_grad():
        next(other.unet.parameters())[0] += 1
    assert weights_id(other) != first
    changed = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    changed.register_to_config(masked_fill="zero")
    assert weights_id(changed) != first


def test_the_revision_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    first = pipeline_revision()
    (tmp_path / "pipeline_zerostereo.py").write_text("# another")
    monkeypatch.setattr("pipeline_zerostereo.__file__", str(tmp_path / "pipeline_zerostereo.py"))
    assert len(first) == 16 and pipeline_revision() != first


def test_scenes_of_these_tests_are_not_flat():
    assert pixels(0).std() > 20
