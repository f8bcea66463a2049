# SPDX-License-Identifier: Apache-2.0
"""Carrying out a plan: order, rejections, memory, retries; with a stand-in for the networks that counts its calls."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset

from datasets_builder.building import (
    ProgressBar,
    ReadAhead,
    Worker,
    build_shards,
    describe_machine,
    is_out_of_memory,
    make_worker,
    retry_shard,
    split_off,
)
from datasets_builder.manifest import read_manifest, rejected_photos, unfinished_shards, write_manifest
from datasets_builder.pairs import Pair
from datasets_builder.plan import BuildOptions, Plan, PlannedPhoto, make_plan, pair_seed
from datasets_builder.schema import decode_pair, encode_disparity
from datasets_builder.shards import claim, file_digest, read_record
from datasets_builder.sources import FolderSource
from pipeline_zerostereo import (
    Photographs,
    StereoImageProcessor,
    ZeroStereoPipeline,
    fill_from_background,
    forward_warp,
)
from tests.odd_photos import plain_photos, unusable_photos, usable_photos, write_photos

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "zerostereo-tiny"
OPTIONS = BuildOptions(weights_id="w", pipeline_revision="r", batch_size=2, pairs_per_shard=4)
MACHINE = {"device": "cpu TEST", "torch": "0"}


class StandIn:
    """In the place of the networks: a ramp for a disparity, holes filled from the background; counts its calls."""

    def __init__(self, fails: Callable[[list[int], str], BaseException | None] = lambda seeds, fill: None):
        self.calls: list[tuple[int, str]] = []
        self.fails = fails

    def __call__(self, photographs: Photographs, seeds: list[int], fill: str) -> list[Pair]:
        """See `make_pairs`."""
        self.calls.append((len(seeds), fill))
        error = self.fails(seeds, fill)
        if error is not None:
            raise error
        pixels = photographs.pixels
        B, _, H, W = pixels.shape
        strength = torch.tensor([seed % 7 + 1 for seed in seeds], dtype=torch.float32).view(B, 1, 1, 1)
        disparity = (strength * torch.linspace(0, 1, H).view(1, 1, H, 1) * 256).round().div(256).expand(B, 1, H, W)
        warp = forward_warp(pixels, disparity.contiguous())
        right = fill_from_background(warp.right_image, warp.right_hole_mask, warp.right_disparity)
        views = StereoImageProcessor.postprocess(right, "pil", photographs.icc_profiles)
        encoded = [encode_disparity(one) for one in disparity[:, 0].numpy()]
        return [
            Pair(
                disparity_png=encoded[i].png,
                disparity_png_scale=encoded[i].png_scale,
                disparity=encoded[i].disparity,
                confidence=np.ones((H, W), np.float32),
                right_image=views[i],
                right_hole_mask=warp.right_hole_mask[i, 0].numpy(),
                left_visible_mask=warp.left_visible_mask[i, 0].numpy(),
                disparity_scale=float(strength[i]) / W,
                flip_agreement=(0.5 + seeds[i] % 5 / 10, 0.1, 1.0),
            )
            for i in range(B)
        ]


class Build:
    """A build in a temporary folder."""

    def __init__(self, folder: Path, photos: dict[str, bytes], options: BuildOptions = OPTIONS):
        self.source = FolderSource(write_photos(folder / "photos", photos))
        self.output = folder / "out"
        self.plan = make_plan(self.source, options, self.output, {"kind": "folder"}, progress=False)

    def run(self, networks: Callable, **counts: list) -> list[int]:
        def progress(**reported) -> None:
            for name, value in reported.items():
                counts.setdefault(name, []).append(value)

        return build_shards(Plan(self.output), self.source, Worker(networks, MACHINE), progress)

    def digests(self) -> list[str]:
        return [file_digest(path) for path in sorted((self.output / "data").iterdir())]

    def rows(self) -> list[dict]:
        return list(load_dataset(str(self.output), split="train", streaming=True))


# --- order and content ---


def test_every_photograph_gets_a_row_in_the_order_of_its_batches(tmp_path: Path):
    build, networks, pairs = Build(tmp_path, plain_photos(7)), StandIn(), []
    assert build.run(networks, pairs=pairs) == []
    rows = build.rows()
    wanted = [photo for shard in range(2) for photo in sorted(build.plan.shard(shard), key=lambda photo: photo.batch)]
    assert [row["id"] for row in rows] == [photo.id for photo in wanted]
    assert sum(pairs) == 7 and sum(count for count, _ in networks.calls) == 7
    for row, photo in zip(rows, wanted, strict=True):
        assert row["seed"] == pair_seed(0, photo.id)
        assert (row["width"], row["height"]) == row["left_image"].size == (photo.width, photo.height)
        # the ramp of this very seed: pictures and maps belong to the row's photograph
        assert decode_pair(row)["disparity"].max() == pytest.approx(row["seed"] % 7 + 1, abs=1 / 256)


def test_finished_shards_are_not_made_again(tmp_path: Path):
    build = Build(tmp_path, plain_photos(9))
    build.run(StandIn())
    before = build.digests()
    build.plan.shard_file(1).unlink()
    networks = StandIn()
    build.run(networks)
    assert build.digests() == before
    assert sum(count for count, _ in networks.calls) == len(build.plan.shard(1)) == 4


def test_a_shard_in_other_hands_is_left_alone(tmp_path: Path):
    build, networks = Build(tmp_path, plain_photos(9)), StandIn()
    with claim(build.output, "shard-00001") as mine:
        assert mine and build.run(networks) == [1]
    assert unfinished_shards(build.plan) == [1]
    assert build.run(networks) == [] and unfinished_shards(build.plan) == []


def test_an_error_of_the_networks_ends_the_run_and_publishes_nothing(tmp_path: Path):
    build = Build(tmp_path, plain_photos(3))
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="a fault in the code"):
        build.run(StandIn(lambda seeds, fill: RuntimeError("a fault in the code")))
    assert not list((build.output / "data").glob("*")) and threading.active_count() == threads


# --- verdicts ---


def test_every_odd_photograph_gets_a_row_or_a_reason(tmp_path: Path):
    bad = unusable_photos()
    photos = usable_photos() | {name: data for name, (data, _) in bad.items()}
    photos["twin.jpg"] = photos["plain.jpg"]
    build = Build(tmp_path, photos)
    assert build.run(StandIn()) == []
    assert {row["source"] for row in build.rows()} == set(usable_photos())
    rejected = {one.source: one.kind for one in rejected_photos(build.plan)}
    assert rejected == {name: kind for name, (_, kind) in bad.items()} | {"twin.jpg": "duplicate"}


def test_a_file_that_vanished_or_changed_is_rejected(tmp_path: Path):
    build = Build(tmp_path, plain_photos(3))
    (tmp_path / "photos" / "000.jpg").unlink()
    (tmp_path / "photos" / "001.jpg").write_bytes(b"something else")
    build.run(StandIn())
    assert [row["source"] for row in build.rows()] == ["002.jpg"]
    assert {one.source: one.kind for one in rejected_photos(build.plan)} == {
        "000.jpg": "unreadable",
        "001.jpg": "changed",
    }


def test_the_quality_gate_rejects_by_its_thresholds(tmp_path: Path):
    options = BuildOptions(**{**vars(OPTIONS), "min_flip_agreement": 0.65, "max_hole_share": 0.03})
    build = Build(tmp_path, plain_photos(12), options)
    build.run(StandIn())
    for row in build.rows():
        assert row["flip_agreement"] >= 0.65
        assert np.asarray(row["right_hole_mask"]).mean() / 255 <= 0.03
    rejected = rejected_photos(build.plan)
    assert {one.kind for one in rejected} == {"low_agreement", "many_holes"}
    low = next(one for one in rejected if one.kind == "low_agreement")
    assert low.reason.endswith("at least 0.65 is asked for")
    assert len(rejected) + len(build.rows()) == 12
    assert write_manifest(build.plan, progress=False)["options"]["max_hole_share"] == 0.03


# --- memory ---


def too_large_for(fill: str, victims: set[int]) -> Callable[[list[int], str], BaseException | None]:
    """Out of memory whenever one of the victims is to be filled this way, alone or with others."""

    def fails(seeds: list[int], used: str) -> BaseException | None:
        return torch.OutOfMemoryError("out of memory") if used == fill and victims & set(seeds) else None

    return fails


def test_out_of_memory_rejects_the_photograph_by_name(tmp_path: Path):
    build = Build(tmp_path, plain_photos(8, sizes=((96, 72),)))
    victim = build.plan.shard(0)[1]
    networks = StandIn(too_large_for("whole", {pair_seed(0, victim.id)}))
    build.run(networks)
    assert len(build.rows()) == 7
    (rejected,) = rejected_photos(build.plan)
    assert (rejected.source, rejected.kind) == (victim.source, "out_of_memory")
    assert rejected.reason == "fill 'whole' needs more memory than there is"
    assert read_record(build.plan.shard_file(0)).split_batches == [victim.batch]
    assert networks.calls[:3] == [(2, "whole"), (1, "whole"), (1, "whole")]  # the batch, then one by one


def test_a_retry_makes_only_what_did_not_fit(tmp_path: Path):
    build = Build(tmp_path, plain_photos(8, sizes=((96, 72),)))
    victim = build.plan.shard(0)[1]
    build.run(StandIn(too_large_for("whole", {pair_seed(0, victim.id)})))
    before = {row["id"]: decode_pair(row) for row in build.rows()}
    networks = StandIn()
    taken = [
        retry_shard(build.plan, index, "tiled", build.source, Worker(networks, MACHINE), lambda **_: None)
        for index in range(2)
    ]
    assert taken == [1, 0] and networks.calls == [(1, "tiled")]
    rows = {row["id"]: decode_pair(row) for row in build.rows()}
    assert len(rows) == 8 and rejected_photos(build.plan) == [] and unfinished_shards(build.plan) == []
    for id, pair in before.items():
        assert np.array_equal(pair["right_image"], rows[id]["right_image"])
    after_retry = build.digests()
    build.plan.shard_file(0).unlink()  # a build of the new plan from nothing gives the same bytes
    build.run(StandIn())
    assert build.digests() == after_retry


def test_a_retry_that_fails_again_keeps_its_reason(tmp_path: Path):
    build = Build(tmp_path, plain_photos(4, sizes=((96, 72),)))
    victim = build.plan.shard(0)[2]
    fails = too_large_for("whole", {pair_seed(0, victim.id)})
    build.run(StandIn(fails))
    worker = Worker(StandIn(too_large_for("tiled", {pair_seed(0, victim.id)})), MACHINE)
    assert retry_shard(build.plan, 0, "tiled", build.source, worker, lambda **_: None) == 1
    (rejected,) = rejected_photos(build.plan)
    assert rejected.id == victim.id and rejected.reason.startswith("fill 'tiled'")


def test_split_batches_fall_apart_for_good():
    photos = [PlannedPhoto(f"{n}", f"{n}", "", "", "", 9, 9, n // 2, "whole") for n in range(6)]
    changed = split_off(photos, {"2"}, {1}, "tiled")
    assert [photo.batch for photo in changed] == [0, 0, 3, 4, 2, 2]
    assert [photo.fill for photo in changed] == ["whole", "whole", "tiled", "whole", "whole", "whole"]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes disagree"), False),
        (ValueError("no"), False),
    ],
)
def test_memory_errors_are_told_from_others(error: BaseException, wanted: bool):
    assert is_out_of_memory(error) is wanted


# --- reading ahead ---


def test_reading_stops_when_the_reader_leaves_early(tmp_path: Path):
    build = Build(tmp_path, plain_photos(40), BuildOptions(**{**vars(OPTIONS), "pairs_per_shard": 40}))
    threads = threading.active_count()
    with ReadAhead(build.plan.shard(0), build.source, OPTIONS) as batches:
        first = next(iter(batches))
        assert first.number == 0 and len(first.photos) == len(first.decoded) == 2
    assert threading.active_count() == threads


def test_what_the_source_cannot_do_is_raised_in_the_main_thread(tmp_path: Path):
    class Broken(FolderSource):
        def read_many(self, locators):
            raise ConnectionError("the Hub is gone")

    build = Build(tmp_path, plain_photos(2))
    build.source = Broken(tmp_path / "photos")
    with pytest.raises(ConnectionError, match="the Hub is gone"):
        build.run(StandIn())


# --- the manifest ---


def test_the_manifest_counts_and_hashes(tmp_path: Path):
    build = Build(tmp_path, plain_photos(6) | {"bad.jpg": b"", "worse.jpg": b"no"})
    with pytest.raises(ValueError, match=r"`output` must hold every shard of its plan; 2 .*missing, first \[0, 1\]"):
        write_manifest(build.plan, progress=False)
    build.run(StandIn())
    manifest = write_manifest(build.plan, progress=False)
    assert read_manifest(build.output) == manifest
    assert manifest["counts"] == {"photos": 8, "pairs": 6, "rejected": {"unreadable": 2}}
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 2]
    assert [shard["sha256"] for shard in manifest["shards"]] == build.digests()
    assert manifest["made_on"] == [{**MACHINE, "shards": [0, 1]}]
    assert manifest["options"]["batch_size"] == 2
    lines = (build.output / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["bad.jpg", "worse.jpg"]


def test_what_is_no_manifest_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="`folder` must hold a complete build with its manifest.json; got "):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match="`folder` must hold a whole manifest.json; got "):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="must hold a manifest.json of format 1; got 9"):
        read_manifest(tmp_path)


# --- the real worker ---


def test_the_pipeline_is_a_worker(tmp_path: Path):
    pipe = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    build = Build(tmp_path, plain_photos(3, sizes=((96, 72),)))
    worker = make_worker(pipe, OPTIONS)
    assert build_shards(build.plan, build.source, worker, lambda **_: None) == []
    rows = build.rows()
    assert len(rows) == 3 and all(0 <= row["disparity_scale"] <= 0.2 for row in rows)
    assert worker.made_on == describe_machine(torch.device("cpu")) == read_record(build.plan.shard_file(0)).made_on
    assert worker.made_on["device"].startswith("cpu ") and worker.made_on["torch"] == torch.__version__


def test_the_bar_counts_rejections_as_done(capsys: pytest.CaptureFixture):
    bar = ProgressBar(total=5, done=1)
    bar(pairs=2)
    bar(rejected=2, waited_s=0.0)
    bar.close()
    assert bar.bar.n == 5 and "rejected 2" in capsys.readouterr().err
