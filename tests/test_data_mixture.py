# SPDX-License-Identifier: Apache-2.0
"""Mixtures of data: what stands where is a pure function, and workers, resume and bad files do not change it."""

import pickle
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data_mixture import (
    DataMixture,
    PhotographFolder,
    SceneRequest,
    Slot,
    StatelessMixture,
    describe_bad_samples,
    epoch_order,
    open_source,
    render_request,
    render_sources,
)
from training.data_sources import DataSource
from training.disparity_readers import DataFileError
from training.stereo_datasets import CREStereo

CROP = (20, 24)


def save_picture(path: Path, width: int, height: int, seed: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


@pytest.fixture(scope="module")
def stereo_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stereo")
    for number in range(5):
        for view in ("left", "right"):
            save_picture(root / f"tree/{number}_{view}.jpg", 40, 30, seed=number)
        raw = np.random.default_rng(number).integers(0, 200, (30, 40)).astype(np.uint16)
        Image.fromarray(raw).save(root / f"tree/{number}_left.disp.png")
    return root


@pytest.fixture(scope="module")
def photo_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(3):
        save_picture(root / f"holidays/{number}.png", 33 + number, 26, seed=10 + number)
    return root


@pytest.fixture
def sources(stereo_root, photo_root) -> tuple[DataSource, ...]:
    return (
        DataSource("crestereo", str(stereo_root), 0.3),
        DataSource("photos", str(photo_root), 0.5),
        DataSource("procedural", None, 0.2),
    )


def make_mixture(sources, **options) -> DataMixture:
    return DataMixture(sources, **({"seed": 3, "batch_size": 5, "crop_size": CROP} | options))


def assert_equal_batches(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for kind, samples in first.items():
        if kind == "procedural":
            assert samples == second[kind]
            continue
        assert samples.keys() == second[kind].keys()
        for name, value in samples.items():
            same = torch.equal(value, second[kind][name]) if torch.is_tensor(value) else value == second[kind][name]
            assert same, (kind, name)


# ---------------------------------------------------------------------------------------------------------------------
# What stands where
# ---------------------------------------------------------------------------------------------------------------------


def row_of_slots(mixture: StatelessMixture, steps: int) -> list[Slot]:
    return [
        mixture.slot(step, rank, position)
        for step in range(steps)
        for rank in range(mixture.processes)
        for position in range(mixture.batch_size)
    ]


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1.0, 1.0, 2.0), (0.05, 0.5, 0.013, 0.437, 3.1)])
def test_shares_hold_after_any_number_of_places(weights):
    mixture = StatelessMixture([None] * len(weights), weights, seed=0, batch_size=4, processes=3)
    counts: Counter[int] = Counter()
    for place, slot in enumerate(row_of_slots(mixture, 80)):
        assert slot.index == counts[slot.source]  # an endless source counts up
        counts[slot.source] += 1
        for source, weight in enumerate(weights):
            share = weight / sum(weights)
            assert abs(counts[source] - (place + 1) * share) <= len(weights) - 1


def test_two_sources_known_answer():
    mixture = StatelessMixture([None, None], [1, 3], seed=0, batch_size=8)
    assert [mixture.slot(0, 0, position).source for position in range(8)] == [1, 0, 1, 1, 1, 0, 1, 1]


def test_every_sample_comes_once_in_each_round():
    mixture = StatelessMixture([7, 5], [0.25, 0.75], seed=4, batch_size=4, processes=2)
    rounds: dict[tuple[int, int], list[int]] = {}
    for slot in row_of_slots(mixture, 35):
        rounds.setdefault((slot.source, slot.epoch), []).append(slot.index)
    whole = {key: indices for key, indices in rounds.items() if len(indices) == (7, 5)[key[0]]}
    assert len(whole) == 10 + 42  # 70 samples of 7, 210 of 5
    assert all(sorted(indices) == list(range((7, 5)[key[0]])) for key, indices in whole.items())
    assert len({tuple(indices) for key, indices in whole.items() if key[0] == 1}) > 20  # the order changes


def test_seed_decides_the_order():
    def first_round(seed: int) -> list[int]:
        return [slot.index for slot in row_of_slots(StatelessMixture([50], [1], seed=seed, batch_size=5), 10)]

    assert first_round(1) == first_round(1) != first_round(2)
    assert epoch_order(1, 0, 0, 50).tolist() == first_round(1)
    assert not torch.equal(epoch_order(1, 0, 0, 50), epoch_order(1, 1, 0, 50))  # sources of equal length differ


def test_processes_share_one_row():
    one = StatelessMixture([9, None], [1, 2], seed=0, batch_size=6)
    two = StatelessMixture([9, None], [1, 2], seed=0, batch_size=3, processes=2)
    assert row_of_slots(one, 20) == row_of_slots(two, 20)


def test_far_steps_are_found_at_once():
    mixture = StatelessMixture([100, None], [0.3, 0.7], seed=0, batch_size=10)
    slots = [mixture.slot(10**9, 0, position) for position in range(10)]
    assert Counter(slot.source for slot in slots) == {0: 3, 1: 7}
    assert {slot.epoch for slot in slots if slot.source == 0} == {3 * 10**9 // 100}


def test_candidates_are_the_rest_of_the_round_in_a_circle():
    mixture = StatelessMixture([6, None], [1, 1], seed=0, batch_size=1)
    order = epoch_order(0, 0, 2, 6).tolist()
    assert list(mixture.candidates(Slot(0, order[4], 2))) == [*order[4:], *order[:4]]
    assert list(mixture.candidates(Slot(1, 17, 0))) == [17]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [], "weights": []}, "one number for each source; got 0 and 0"),
        ({"lengths": [3]}, "one number for each source; got 1 and 2"),
        ({"lengths": [3, 0]}, r"`lengths` must be at least 1; got \[3, 0\]"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1; got \[0\]"),
        ({"processes": 0}, r"`processes` must be at least 1; got \[0\]"),
        ({"weights": [1, 0]}, r"`weights` must be > 0; got \[1, 0\]"),
    ],
)
def test_a_mixture_that_breaks_a_rule(options, message):
    with pytest.raises(ValueError, match=message):
        StatelessMixture(**({"lengths": [3, None], "weights": [1, 1], "seed": 0, "batch_size": 2} | options))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((-1, 0, 0), "`step` must be >= 0; got -1"),
        ((0, 2, 0), "`rank` must be >= 0 and < 2; got 2"),
        ((0, 0, 3), "`position` must be >= 0 and < 3; got 3"),
    ],
)
def test_a_place_that_is_none(place, message):
    mixture = StatelessMixture([4], [1], seed=0, batch_size=3, processes=2)
    with pytest.raises(ValueError, match=message):
        mixture.slot(*place)


# ---------------------------------------------------------------------------------------------------------------------
# Photographs
# ---------------------------------------------------------------------------------------------------------------------


def test_photographs_are_upright_rgb_and_sorted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    stored = Image.new("RGB", (30, 20), (200, 0, 0))
    stored.paste((0, 0, 200), (0, 0, 15, 20))
    stored.save(tmp_path / "b.JPG", exif=exif, quality=100)
    (tmp_path / "a").mkdir()
    Image.new("L", (5, 4), 77).save(tmp_path / "a/grey.png")
    Image.new("I;16", (5, 4), 65535).save(tmp_path / "a/deep.png")
    (tmp_path / "notes.txt").write_text("no photograph")
    save_picture(tmp_path / ".hidden/x.png", 5, 4, seed=0)
    folder = PhotographFolder(tmp_path)
    assert folder.names == ["a/deep.png", "a/grey.png", "b.JPG"] and len(folder) == 3
    samples = {sample["name"]: sample["photograph"] for sample in (folder[i] for i in range(3))}
    assert all(photograph.dtype == torch.uint8 for photograph in samples.values())
    assert torch.equal(samples["a/grey.png"], torch.full((3, 4, 5), 77, dtype=torch.uint8))
    assert torch.equal(samples["a/deep.png"], torch.full((3, 4, 5), 255, dtype=torch.uint8))
    upright = samples["b.JPG"]
    assert upright.shape == (3, 30, 20)
    assert upright[2, 3, 10] > 150 > upright[0, 3, 10]  # the left half is on top
    assert upright[0, 26, 10] > 150 > upright[2, 26, 10]


def test_large_photographs_are_reduced(tmp_path):
    Image.new("RGB", (90, 40), (10, 20, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (29, 30), (10, 20, 30)).save(tmp_path / "b.png")
    folder = PhotographFolder(tmp_path, longest_side=30)
    assert folder[0]["photograph"].shape == (3, 13, 30) and folder[1]["photograph"].shape == (3, 30, 29)
    assert folder[0]["photograph"][:, 6, 7].tolist() == [10, 20, 30]


def test_inverse_depth_comes_along_at_the_photographs_size(tmp_path):
    save_picture(tmp_path / "a.png", 40, 20, seed=0)
    asked = []

    def read(path: Path) -> torch.Tensor:
        asked.append(path)
        return (torch.arange(40.0) / 39).expand(1, 20, 40)

    sample = PhotographFolder(tmp_path, longest_side=20, read_inverse_depth=read)[0]
    assert asked == [tmp_path / "a.png"]
    depth = sample["normalized_inverse_depth"]
    assert depth.shape == (1, 10, 20) and depth.dtype == torch.float32
    torch.testing.assert_close(depth[0, 4, 1:-1], (0.5 + 2 * torch.arange(20.0))[1:-1] / 39)  # not scaled by the width


def test_folders_without_photographs(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"must be a folder of photographs; .* {tmp_path}/gone"):
        PhotographFolder(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has 0 files of \*.jpg, .*\*.heif below it"):
        PhotographFolder(tmp_path)
    with pytest.raises(ValueError, match="`longest_side` must be at least 1 px; got 0"):
        PhotographFolder(tmp_path, longest_side=0)


@pytest.mark.parametrize("content", [b"", b"no photograph", None])
def test_a_file_that_is_no_photograph(tmp_path, content):
    path = tmp_path / "a.png"
    save_picture(path, 40, 30, seed=0)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(DataFileError, match=f"^{path}: must be a photograph; it cannot be used"):
        PhotographFolder(tmp_path)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Procedural scenes
# ---------------------------------------------------------------------------------------------------------------------


def test_a_request_is_rendered_as_stereo_samples():
    request = SceneRequest(seed=12, first_index=7, count=2, height=24, width=40)
    state = torch.get_rng_state()
    samples = render_request(request, "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("left_image", "right_image"):
        assert samples[name].shape == (2, 3, 24, 40) and samples[name].dtype == torch.uint8
        assert samples[name].float().std() > 5
    disparity = samples["left_disparity"]
    assert disparity.shape == (2, 1, 24, 40) and disparity.dtype == torch.float32
    assert 0 <= disparity.min() and 0.03 * 40 <= disparity.max() <= 0.2 * 40
    assert samples["valid_disparity_mask"].dtype == torch.bool and samples["valid_disparity_mask"].all()
    assert samples["name"] == ["12/7", "12/8"]
    again = render_request(request, "cpu")
    assert all(torch.equal(samples[name], again[name]) for name in samples if name != "name")
    other = render_request(request._replace(first_index=8), "cpu")
    assert not torch.equal(samples["left_image"], other["left_image"])


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def test_batches_hold_what_they_say(sources):
    mixture = make_mixture(sources, batch_size=10)
    batch = next(mixture.batches())
    assert batch.keys() == {"stereo", "photos", "procedural"}
    stereo, photos = batch["stereo"], batch["photos"]
    assert stereo["left_image"].shape == stereo["right_image"].shape == (3, 3, *CROP)
    assert stereo["left_image"].dtype == torch.uint8
    assert stereo["left_disparity"].shape == (3, 1, *CROP) and stereo["left_disparity"].dtype == torch.float32
    assert stereo["valid_disparity_mask"].shape == (3, 1, *CROP)
    assert torch.equal(stereo["valid_disparity_mask"], stereo["left_disparity"] > 0)
    assert len(set(stereo["name"])) == 3 and all(name.startswith("tree/") for name in stereo["name"])
    assert photos["photograph"].shape == (5, 3, *CROP) and photos["photograph"].dtype == torch.uint8
    assert photos.keys() == {"photograph", "photograph_width", "name"}
    widths = {f"holidays/{number}.png": 33 + number for number in range(3)}
    assert photos["photograph_width"].tolist() == [widths[name] for name in photos["name"]]
    (request,) = batch["procedural"]
    assert request.first_index == 0 and request[2:] == (2, *CROP)
    assert mixture.bad_samples == {} and describe_bad_samples(mixture.bad_samples) == ""


def test_scenes_count_up_over_the_steps(sources):
    requests = [batch["procedural"][0] for batch in islice(make_mixture(sources, batch_size=10).batches(), 4)]
    assert [request.first_index for request in requests] == [0, 2, 4, 6]
    assert len({request.seed for request in requests}) == 1
    other_seed = next(make_mixture(sources, seed=4, batch_size=10).batches())["procedural"][0].seed
    assert other_seed != requests[0].seed


def test_two_procedural_sources_show_different_scenes():
    mixture = make_mixture([DataSource("procedural", None, 1.0)] * 2, batch_size=4)
    first, second = next(mixture.batches())["procedural"]
    assert first.count == second.count == 2 and first.seed != second.seed
    samples = render_sources({"procedural": [first, second]}, "cpu")["procedural"]
    assert samples["left_image"].shape == (4, 3, *CROP) and len(set(samples["name"])) == 4


def test_render_sources_keeps_what_is_loaded(sources):
    batch = next(make_mixture(sources, batch_size=10).batches())
    before = pickle.dumps({kind: samples for kind, samples in batch.items() if kind == "procedural"})
    rendered = render_sources(batch, "cpu")
    assert rendered.keys() == batch.keys()
    assert rendered["procedural"].keys() == batch["stereo"].keys()
    assert all(
        rendered["procedural"][name].dtype == batch["stereo"][name].dtype
        and rendered["procedural"][name].shape[1:] == batch["stereo"][name].shape[1:]
        for name in batch["stereo"]
        if name != "name"
    )
    for kind in ("stereo", "photos"):
        assert_equal_batches({kind: rendered[kind]}, {kind: batch[kind]})
    assert pickle.dumps({"procedural": batch["procedural"]}) == before


def test_small_photographs_are_enlarged_and_say_their_width(tmp_path):
    save_picture(tmp_path / "a.png", 30, 10, seed=0)
    options = {"read_inverse_depth": lambda path: torch.full((1, 10, 30), 0.5)}
    photos = next(make_mixture([DataSource("photos", str(tmp_path), 1)], batch_size=1, **options).batches())["photos"]
    assert photos["photograph"].shape == (1, 3, 20, 24)
    assert photos["photograph_width"].tolist() == [63]  # 21 / 10 of 30
    torch.testing.assert_close(photos["normalized_inverse_depth"], torch.full((1, 1, 20, 24), 0.5))


def test_depth_is_cropped_with_its_photograph(tmp_path):
    stripes = np.where(np.arange(60) % 12 == 5, 200, 20).astype(np.uint8)  # survive any change of colour
    Image.fromarray(np.repeat(np.broadcast_to(stripes, (50, 60))[..., None], 3, axis=2)).save(tmp_path / "a.png")
    options = {"read_inverse_depth": lambda path: (torch.arange(60.0) / 60).expand(1, 50, 60)}
    mixture = make_mixture([DataSource("photos", str(tmp_path), 1)], batch_size=6, **options)
    photos = next(mixture.batches())["photos"]
    columns = (60 * photos["normalized_inverse_depth"][:, 0]).round().long()  # [6,*CROP]
    assert len(columns[:, 0, 0].unique()) > 3
    assert torch.equal(columns, (columns[:, :1, :1] + torch.arange(CROP[1])).expand(6, *CROP))
    brightest = photos["photograph"].float().mean((1, 2)).argmax(1)  # [6], the place of a stripe in the crop
    assert ((columns[:, 0, 0] + brightest) % 12 == 5).all()


def test_a_mixture_travels_to_another_process(sources):
    mixture = make_mixture(sources)
    copy = pickle.loads(pickle.dumps(mixture))
    assert_equal_batches(copy.load_step(2).batch, mixture.load_step(2).batch)


@pytest.mark.parametrize("first_step", [0, 3])
def test_workers_and_a_new_start_change_nothing(sources, first_step):
    state = torch.get_rng_state()
    here = list(islice(make_mixture(sources).batches(), 6))
    workers = list(islice(make_mixture(sources, workers=2).batches(first_step), 6 - first_step))
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(here[first_step:], workers, strict=True):
        assert_equal_batches(first, second)


def test_processes_share_the_batch_of_one(sources):
    whole = make_mixture(sources, batch_size=6)
    halves = [make_mixture(sources, batch_size=3, rank=rank, processes=2) for rank in range(2)]
    for step in range(4):
        parts = [half.load_step(step).batch for half in halves]
        expected = whole.load_step(step).batch
        for kind, name in (("stereo", "left_image"), ("photos", "photograph")):
            found = [part[kind][name] for part in parts if kind in part]
            assert torch.equal(torch.cat(found), expected[kind][name])


def test_a_sample_looks_different_in_every_round(stereo_root):
    mixture = make_mixture([DataSource("crestereo", str(stereo_root), 1.0)], batch_size=5)
    first, second = (mixture.load_step(step).batch["stereo"] for step in range(2))
    assert sorted(first["name"]) == sorted(second["name"])
    for name, image in zip(first["name"], first["left_image"], strict=True):
        assert not torch.equal(image, second["left_image"][second["name"].index(name)])


# ---------------------------------------------------------------------------------------------------------------------
# Bad samples
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path) -> DataSource:
    for number in range(4):
        save_picture(tmp_path / f"{number}.png", 30, 25, seed=number)
    (tmp_path / "2.png").write_bytes(b"no photograph")
    return DataSource("photos", str(tmp_path), 1.0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_ends_the_run(broken, workers):
    mixture = make_mixture([broken], batch_size=1, workers=workers)
    with pytest.raises(DataFileError, match=f"^{broken.root}/2.png: must be a photograph"):
        list(islice(mixture.batches(), 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_counted_and_listed(broken, workers):
    mixture = make_mixture([broken], batch_size=2, workers=workers, on_bad_sample="skip")
    names = [name for batch in islice(mixture.batches(), 6) for name in batch["photos"]["name"]]
    expected = []
    for epoch in range(3):
        order = epoch_order(3, 0, epoch, 4).tolist()
        place = order.index(2)
        order[place] = order[(place + 1) % 4]
        expected += [f"{index}.png" for index in order]
    assert names == expected
    path = f"{broken.root}/2.png"
    assert mixture.bad_samples.keys() == {path} and mixture.bad_samples[path][1] == 3
    lines = describe_bad_samples(mixture.bad_samples).split("\n")
    assert lines[0] == "3 samples were replaced because of 1 bad files:"
    assert len(lines) == 2 and lines[1].startswith(f"  {path}: must be a photograph") and lines[1].endswith("(3 x)")


def test_a_truncated_map_is_a_bad_sample(stereo_root, tmp_path):
    shutil.copytree(stereo_root, tmp_path / "copy")
    path = tmp_path / "copy/tree/3_left.disp.png"
    path.write_bytes(path.read_bytes()[:100])
    sources = [DataSource("crestereo", str(tmp_path / "copy"), 1.0)]
    with pytest.raises(DataFileError, match=f"^{path}: must be a 16-bit grey PNG"):
        next(make_mixture(sources).batches())
    mixture = make_mixture(sources, on_bad_sample="skip")
    assert "tree/3_left.jpg" not in next(mixture.batches())["stereo"]["name"]
    assert mixture.bad_samples.keys() == {str(path)}


def test_a_stand_in_is_cropped_otherwise_than_in_its_own_place(broken):
    mixture = make_mixture([broken], batch_size=4, on_bad_sample="skip")
    photos = mixture.load_step(0).batch["photos"]
    twice = max(photos["name"], key=photos["name"].count)
    first, second = (photos["photograph"][i] for i in range(4) if photos["name"][i] == twice)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_a_good_sample_ends_the_run(broken, workers):
    for number in range(4):
        (Path(broken.root) / f"{number}.png").write_bytes(b"")  # pyright: ignore[reportArgumentType]
    mixture = make_mixture([broken], workers=workers, on_bad_sample="skip")
    with pytest.raises(DataFileError, match=f"^{broken.root}: must hold a sample that can be read; the last: .*png"):
        next(mixture.batches())


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_sample": "ignore"}, '`on_bad_sample` must be "raise" or "skip"; got \'ignore\''),
        ({"workers": -1}, r"`workers` must be >= 0.*; got -1, \(20, 24\), and 0 of 1"),
        ({"crop_size": (0, 8)}, r"`crop_size` >= 1 px.*; got 0, \(0, 8\)"),
        ({"rank": 2, "processes": 2}, "`rank` in 0 ... processes-1; .*and 2 of 2"),
    ],
)
def test_options_that_break_a_rule(sources, options, message):
    with pytest.raises(ValueError, match=message):
        make_mixture(sources, **options)


def test_sources_are_opened_by_their_kind(stereo_root, photo_root, tmp_path):
    assert isinstance(open_source(DataSource("crestereo", str(stereo_root), 1)), CREStereo)
    assert isinstance(open_source(DataSource("photos", str(photo_root), 1)), PhotographFolder)
    assert open_source(DataSource("procedural", None, 1)) is None
    for kind in ("sceneflow", "tartanair", "vkitti2", "fallingthings"):
        with pytest.raises(FileNotFoundError, match=f"in its layout; {tmp_path} has 0 files"):
            open_source(DataSource(kind, str(tmp_path), 1))
