# SPDX-License-Identifier: Apache-2.0
"""Mixtures of pairs: shares, rounds, every kind of source, and nothing that depends on how it is loaded."""

from pathlib import Path

import pytest
import torch

from datasets_builder.mfs35k import write_file_list, write_pair
from tests.loopback_hub import LoopbackHub
from tests.test_mfs35k import make_sample
from tests.test_pair_dataset import ROOT, write_rows
from training import pair_mixture
from training.data_sources import DataSource, parse_source
from training.disparity_readers import DataFileError
from training.pair_dataset import MfsPairs, ParquetPairs
from training.pair_mixture import EXAMPLE_SOURCE, KINDS, PairMixture, open_source

CROP = (24, 32)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """14 rows."""
    return write_rows(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    """5 samples in the layout of MfS35K."""
    root = tmp_path_factory.mktemp("mfs")
    samples = [make_sample(seed, f"left/{seed}.png", 40, 50) for seed in range(5)]
    write_file_list(root / "list.txt", [write_pair(root, sample) for sample in samples])
    return root


def make_mixture(*texts: str, **changes) -> PairMixture:
    options = {"seed": 3, "batch_size": 4, "crop_size": CROP} | changes
    return PairMixture([parse_source(text, KINDS, EXAMPLE_SOURCE) for text in texts], **options)


def finished(mixture: PairMixture, steps: int, first: int = 0) -> list[dict]:
    batches = mixture.batches(first)
    return [mixture.finish(next(batches), "cpu") for _ in range(steps)]


def assert_equal_batches(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


def kind_of(name: str) -> str:
    return "mfs35k" if name.startswith("left/") else "pairs" if "build" in name else "procedural"


# --- sources ---


def test_kinds_are_opened_by_their_reader(build, layout):
    assert isinstance(open_source(DataSource("pairs", str(build), 1)), ParquetPairs)
    assert isinstance(open_source(DataSource("mfs35k", str(layout), 1)), MfsPairs)
    assert open_source(DataSource("procedural", None, 1)) is None
    assert {"sceneflow", "tartanair", "crestereo", "vkitti2", "fallingthings"} < set(KINDS)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_source(DataSource("tartanair", "/nowhere", 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "`workers` must be >= 0, .*; got -1, "),
        ({"crop_size": (0, 5)}, r"`crop_size` >= 1 px .*\(0, 5\)"),
        ({"rank": 2, "processes": 2}, "`rank` in 0 ... processes-1; got .* 2 of 2"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got"),
    ],
)
def test_numbers_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make_mixture("procedural:1", **changes)


# --- what stands where ---


def test_shares_follow_the_weights_and_rounds_have_every_sample_once(build, layout):
    mixture = make_mixture(f"pairs:{build}:2", f"mfs35k:{layout}:1", "procedural:1", batch_size=8)
    places = [mixture.place(step, position) for step in range(28) for position in range(8)]
    by_source = [[place for place in places if place.source == number] for number in range(3)]
    assert [len(mine) for mine in by_source] == [112, 56, 56]
    for mine, length in zip(by_source, (14, 5, None), strict=True):
        if length is None:
            assert [place.index for place in mine] == list(range(56)) and {place.epoch for place in mine} == {0}
            continue
        rounds = [mine[start : start + length] for start in range(0, len(mine) - length + 1, length)]
        assert all(sorted(place.index for place in one) == list(range(length)) for one in rounds)
        assert all({place.epoch for place in one} == {number} for number, one in enumerate(rounds))
        assert [place.index for place in rounds[0]] != [place.index for place in rounds[1]]


def test_a_mixture_says_what_it_opened(build, layout):
    found = make_mixture(f"pairs:{build}:1", f"mfs35k:{layout / 'list.txt'}:2", "procedural:3").identity()
    assert found == {
        f"pairs:{build}:1.0": f"14 samples of {build}",
        f"mfs35k:{layout / 'list.txt'}:2.0": f"5 samples of {layout}",
        "procedural:3.0": "without end",
    }


def test_processes_share_one_row_of_places(build):
    alone = make_mixture(f"pairs:{build}:1", batch_size=6)
    both = [make_mixture(f"pairs:{build}:1", batch_size=3, rank=rank, processes=2) for rank in range(2)]
    for step in range(9):
        expected = [alone.place(step, position) for position in range(6)]
        assert [both[rank].place(step, position) for rank in range(2) for position in range(3)] == expected


def test_orders_of_old_rounds_are_forgotten(layout):
    mixture = make_mixture(f"mfs35k:{layout}:1")
    for step in range(20):
        mixture.place(step, 0)
    assert len(mixture._orders) == 2
    assert mixture.place(0, 1) == make_mixture(f"mfs35k:{layout}:1").place(0, 1)


# --- batches ---


def test_a_batch_has_all_sources_in_one_form(build, layout):
    mixture = make_mixture(f"pairs:{build}:1", f"mfs35k:{layout}:1", "procedural:2")
    state = torch.get_rng_state()
    for batch in finished(mixture, 2):
        assert sorted(map(kind_of, batch["name"])) == ["mfs35k", "pairs", "procedural", "procedural"]
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items() if name != "name"}
        pictures = ("left_image", "right_image", "clean_left_image", "clean_right_image")
        masks = ("valid_disparity_mask", "left_visible_mask", "right_hole_mask")
        assert shapes == {
            **dict.fromkeys(pictures, (torch.uint8, (4, 3, *CROP))),
            **dict.fromkeys(("disparity", "confidence"), (torch.float32, (4, 1, *CROP))),
            **dict.fromkeys(masks, (torch.bool, (4, 1, *CROP))),
        }
    assert torch.equal(torch.get_rng_state(), state)


def test_scenes_are_trusted_and_their_views_belong_to_each_other():
    (batch,) = finished(make_mixture("procedural:1", batch_size=3), 1)
    assert (batch["confidence"] > 1 - 1e-6).all() and not batch["right_hole_mask"].any()
    assert batch["disparity"].max() > 1 and 0.5 < batch["left_visible_mask"].float().mean() < 1
    names = finished(make_mixture("procedural:1", batch_size=3), 1, first=1)[0]["name"]
    assert [name.split("/")[1] for name in batch["name"] + names] == list("012345")


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_workers_nor_a_restart_change_anything(build, layout, workers):
    texts = (f"pairs:{build}:1", f"mfs35k:{layout}:2", "procedural:1")
    expected = finished(make_mixture(*texts), 5)
    found = finished(make_mixture(*texts, workers=workers), 3, first=2)
    for one, other in zip(found, expected[2:], strict=True):
        assert_equal_batches(one, other)


def test_the_same_sample_is_augmented_anew_in_every_round(layout):
    batches = finished(make_mixture(f"mfs35k:{layout}:1", batch_size=5), 2)
    places = [{name: i for i, name in enumerate(batch["name"])} for batch in batches]
    assert places[0].keys() == places[1].keys()
    for name, i in places[0].items():
        assert not torch.equal(batches[0]["left_image"][i], batches[1]["left_image"][places[1][name]])


def test_another_seed_gives_other_batches(layout):
    one, other = (finished(make_mixture(f"mfs35k:{layout}:1", seed=seed), 1)[0] for seed in (1, 2))
    assert not torch.equal(one["disparity"], other["disparity"])


@pytest.mark.parametrize("weather", ["right", "both"])
def test_weather_spoils_half_of_the_samples_before_the_rest_of_the_augmentation(layout, monkeypatch, weather):
    seen = []

    def note(sample, crop_size, *, generator):
        seen.append({name: sample.get(name) for name in ("left_image", "clean_left_image", "right_image")})
        seen[-1]["spoilt"] = not torch.equal(sample["right_image"], sample["clean_right_image"])
        seen[-1]["left_spoilt"] = not torch.equal(sample["left_image"], sample["clean_left_image"])
        return augment(sample, crop_size, generator=generator)

    augment = pair_mixture.augment_pair
    monkeypatch.setattr(pair_mixture, "augment_pair", note)
    finished(make_mixture(f"mfs35k:{layout}:1", "procedural:1", weather=weather), 6)
    spoilt = [one["spoilt"] for one in seen]
    assert len(spoilt) == 24 and 6 < sum(spoilt) < 18
    assert sum(one["left_spoilt"] for one in seen) == (sum(spoilt) if weather == "both" else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_ends_the_run_and_is_named(tmp_path, workers):
    samples = [make_sample(seed, f"left/{seed}.png", 30, 40) for seed in range(2)]
    write_file_list(tmp_path / "list.txt", [write_pair(tmp_path, sample) for sample in samples])
    (tmp_path / "disparity/1.npy").write_bytes(b"no")
    with pytest.raises(DataFileError, match="left/1.png: must be a whole sample"):
        finished(make_mixture(f"mfs35k:{tmp_path}:1", workers=workers), 2)


@pytest.mark.slow
def test_rows_of_the_hub_are_mixed_and_each_group_is_fetched_once_a_round(build, tmp_path):
    script = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("me/pairs", repo_type="dataset")
api.upload_folder(repo_id="me/pairs", repo_type="dataset", folder_path={str(build)!r})
from training.data_sources import DataSource
from training.pair_mixture import PairMixture
sources = [DataSource("hub", "me/pairs", 1), DataSource("procedural", None, 1)]
names = []
for workers in (0, 2):
    mixture = PairMixture(sources, seed=1, batch_size=4, crop_size=(24, 32), workers=workers)
    batches = mixture.batches()
    names.append([name for _ in range(7) for name in mixture.finish(next(batches), "cpu")["name"]])
rows = [name for name in names[0] if name.startswith("me/pairs@")]
assert names[0] == names[1] and len(rows) == len(set(rows)) == 14, names
reads = []
mixture = PairMixture(sources, seed=1, batch_size=4, crop_size=(24, 32))
read = mixture.datasets[0].filesystem.open
mixture.datasets[0].filesystem.open = lambda *a, **n: reads.append(a) or read(*a, **n)
batches = mixture.batches()
for _ in range(7):
    next(batches)
print(len(reads))
"""
    with LoopbackHub(tmp_path / "hub") as hub:
        printed = hub.run_python(script, home=tmp_path / "home", PYTHONPATH=str(ROOT))
    assert printed.split() == ["3"]
