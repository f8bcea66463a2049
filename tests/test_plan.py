# SPDX-License-Identifier: Apache-2.0
"""The frozen plan: verdicts on the heads of photographs, ids, seeds, shards and batches."""

import hashlib
from pathlib import Path

import pytest

from datasets_builder.photo_files import open_photo
from datasets_builder.plan import (
    BuildOptions,
    Examined,
    Plan,
    Rejection,
    examine,
    make_plan,
    pair_seed,
    photo_id,
    plan_shard,
    write_atomically,
)
from datasets_builder.sources import FolderSource, Photo
from tests.odd_photos import encoded, picture, plain_photos, unusable_photos, usable_photos, write_photos

OPTIONS = BuildOptions(weights_id="w", pipeline_revision="r", batch_size=2, pairs_per_shard=3)
SOURCE = {"kind": "folder", "name": "photos"}


def plan_of(tmp_path: Path, photos: dict[str, bytes], options: BuildOptions = OPTIONS, output: str = "out") -> Plan:
    write_photos(tmp_path / "photos", photos)
    return make_plan(FolderSource(tmp_path / "photos"), options, tmp_path / output, SOURCE, progress=False)


# --- ids and seeds ---


def test_an_id_is_the_start_of_the_sha256_of_the_file():
    assert photo_id(b"abc") == hashlib.sha256(b"abc").hexdigest()[:16] == "ba7816bf8f01cfea"


def test_a_seed_depends_on_base_seed_and_id_only():
    seeds = [pair_seed(base, id) for base in (0, 1) for id in ("ba7816bf8f01cfea", "0000000000000000")]
    assert len(set(seeds)) == 4 and seeds == [pair_seed(b, i) for b in (0, 1) for i in ("ba7816bf8f01cfea", "0" * 16)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    digest = hashlib.sha256(b"7:ba7816bf8f01cfea").digest()
    assert pair_seed(7, "ba7816bf8f01cfea") == int.from_bytes(digest[:8], "little") // 2


# --- verdicts ---


@pytest.mark.parametrize("name", usable_photos())
def test_usable_photographs_are_measured_upright(name: str):
    data = usable_photos()[name]
    assert examine(data, OPTIONS) == Examined(photo_id(data), 96, 72)
    stored = open_photo(data).size
    assert stored == ((72, 96) if "turned" in name else (96, 72))  # EXIF stands the turned one upright


@pytest.mark.parametrize("name", [n for n, (_, kind) in unusable_photos().items() if kind != "colors"])
def test_unusable_photographs_get_a_kind_and_a_reason(name: str):
    data, kind = unusable_photos()[name]
    verdict = examine(data, OPTIONS)
    if name == "truncated.jpg":  # found when it is decoded
        assert isinstance(verdict, Examined)
        return
    assert isinstance(verdict, Rejection) and verdict.kind == kind and verdict.id == photo_id(data)
    assert verdict.reason and "0x" not in verdict.reason


def test_a_multi_picture_jpeg_is_one_photograph():
    data = encoded(picture(1), "MPO", save_all=True, append_images=[picture(2)])
    assert isinstance(examine(data, OPTIONS), Examined)


def test_the_bounds_are_those_of_the_options():
    data = encoded(picture(0), "PNG")  # 96 x 72
    assert isinstance(examine(data, BuildOptions(weights_id="", pipeline_revision="", min_side=72)), Examined)
    small = examine(data, BuildOptions(weights_id="", pipeline_revision="", min_side=73))
    assert small == Rejection("", "too_small", "96 x 72 px; the shorter side must be 73", photo_id(data))
    large = examine(data, BuildOptions(weights_id="", pipeline_revision="", max_megapixels=0.006))
    assert large == Rejection("", "too_large", "96 x 72 px; at most 0.006 megapixels are taken", photo_id(data))


def test_a_postscript_file_is_not_run():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 72\n%%EndComments\n"
    verdict = examine(data, OPTIONS)
    assert isinstance(verdict, Rejection) and verdict.kind == "unreadable"


# --- batches ---


def shard_of(sizes: list[tuple[int, int]]) -> list:
    return [(Photo(str(n), str(n)), Examined(f"{n:016x}", *size)) for n, size in enumerate(sizes)]


def test_photographs_of_one_size_share_batches_numbered_as_they_fill():
    a, b, c = (10, 20), (30, 20), (10, 21)
    planned = plan_shard(shard_of([a, b, c, b, a, a, b, c]), OPTIONS)
    # b is full first (places 1, 3), then a (0, 4), then c (2, 7); a (5) and b (6) stay incomplete, in this order
    assert [photo.batch for photo in planned] == [1, 0, 2, 0, 1, 3, 4, 2]


def test_large_photographs_are_filled_in_tiles_and_apart():
    options = BuildOptions(weights_id="", pipeline_revision="", tiled_above=100, batch_size=4, fill="background")
    planned = plan_shard(shard_of([(100, 20), (101, 20), (20, 100), (20, 101)]), options)
    assert [photo.fill for photo in planned] == ["background", "tiled", "background", "tiled"]
    assert len({photo.batch for photo in planned}) == 4


# --- the plan of a folder ---


def test_the_plan_does_not_depend_on_names(tmp_path: Path):
    photos = plain_photos(5)
    first = plan_of(tmp_path / "a", photos)
    renamed = {f"sub/{name[::-1]}.jpg": data for name, data in photos.items()}
    second = plan_of(tmp_path / "b", renamed)
    ids = [[photo.id for shard in range(plan.shard_count) for photo in plan.shard(shard)] for plan in (first, second)]
    assert ids[0] == ids[1] == sorted(photo_id(data) for data in photos.values())
    assert first.shard_count == 2 and [len(first.shard(i)) for i in range(2)] == [3, 2]


def test_duplicates_and_bad_photographs_are_listed_once(tmp_path: Path):
    photos = plain_photos(2) | {"z.jpg": plain_photos(1)["000.jpg"], "empty.jpg": b""}
    plan = plan_of(tmp_path, photos)
    assert plan.photo_count == 2
    kinds = {one.source: (one.kind, one.reason) for one in plan.rejected()}
    assert kinds == {
        "z.jpg": ("duplicate", "the same file as 000.jpg"),
        "empty.jpg": ("unreadable", "the file is empty"),
    }


def test_the_plan_is_read_back_as_it_was_made(tmp_path: Path):
    made = plan_of(tmp_path, plain_photos(4))
    read = Plan(tmp_path / "out")
    assert read.options == OPTIONS and read.source == SOURCE
    assert [read.shard(i) for i in range(2)] == [made.shard(i) for i in range(2)]
    assert read.shard_file(1) == tmp_path / "out" / "data" / "train-00001-of-00002.parquet"


def test_a_digest_changes_with_whatever_decides_a_shard(tmp_path: Path):
    photos = plain_photos(4)
    plan = plan_of(tmp_path, photos)
    other = plan_of(tmp_path, photos, BuildOptions(**{**vars(OPTIONS), "seed": 1}), "other")
    digests = {plan.shard_digest(0), plan.shard_digest(1), other.shard_digest(0), other.shard_digest(1)}
    assert len(digests) == 4
    before = plan.shard_digest(0)
    plan.replace_shard(0, [photo._replace(fill="tiled") for photo in plan.shard(0)])
    assert plan.shard_digest(0) != before and plan.shard(0)[0].fill == "tiled"


def test_other_options_are_refused_by_name(tmp_path: Path):
    plan = plan_of(tmp_path, plain_photos(2))
    plan.check_same(OPTIONS, SOURCE)
    with pytest.raises(ValueError, match=r"frozen: seed 0 -> 5, source name 'photos' -> 'more'. Give the same"):
        plan.check_same(BuildOptions(**{**vars(OPTIONS), "seed": 5}), {**SOURCE, "name": "more"})


def test_nothing_usable_is_an_error_and_leaves_no_plan(tmp_path: Path):
    with pytest.raises(ValueError, match="`photos` must hold a photograph that can be used; got .*the file is empty"):
        plan_of(tmp_path, {"a.jpg": b""})
    assert not (tmp_path / "out").exists()


def test_what_is_no_plan_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"`output` must hold a plan, .build/plan/plan.json; got "):
        Plan(tmp_path)
    plan = plan_of(tmp_path, plain_photos(2))
    with pytest.raises(ValueError, match="`index` must lie in 0 to 0; got 1"):
        plan.shard(1)
    path = tmp_path / "out" / ".build" / "plan" / "plan.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="must hold a plan of format 1; got 2"):
        Plan(tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"threads": 0}, "`threads` must be at least 1; got 0"),
        ({"pairs_per_shard": 0}, "`pairs_per_shard` must be at least 1; got 0"),
        ({"min_side": 0}, "`min_side` must be at least 1; got 0"),
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"tiled_above": 0}, "`tiled_above` must be at least 1; got 0"),
        ({"fill": "magic"}, "`fill` must be one of whole, tiled, background; got magic"),
        ({"max_megapixels": 0}, "`max_megapixels` must be above 0; got 0"),
        ({"min_flip_agreement": 1.5}, r"`min_flip_agreement` must lie in \[0, 1\]; got 1.5"),
        ({"max_hole_share": -0.1}, r"`max_hole_share` must lie in \[0, 1\]; got -0.1"),
    ],
)
def test_options_out_of_range_are_refused(option: dict, message: str):
    with pytest.raises(ValueError, match=message):
        BuildOptions(weights_id="", pipeline_revision="", **option)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "folder" / "file.json"
    write_atomically(path, "old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new and longer")
    assert path.read_text() == "old"
