# SPDX-License-Identifier: Apache-2.0
"""Stereo data sets on disk: small folders in each layout, and everything that can be wrong with one."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.disparity_readers import DataFileError
from training.stereo_datasets import (
    ETH3D,
    KITTI2012,
    KITTI2015,
    Booster,
    CREStereo,
    Driving,
    DrivingStereoCloudy,
    DrivingStereoFoggy,
    DrivingStereoRainy,
    DrivingStereoSunny,
    FallingThings,
    FlyingThings3D,
    Middlebury2021,
    MiddleburyF,
    MiddleburyH,
    MiddleburyQ,
    Monkaa,
    PicturePairs,
    SceneFlow,
    StereoDataset,
    TartanAir,
    VirtualKITTI2,
)

HEIGHT, WIDTH = 4, 6


def save_frame(path: Path, level: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level + 1, level + 2)).save(path, quality=100, subsampling=0)


def save_map(path: Path, disparity_px: float) -> None:
    """Write a constant map of this disparity in the format that its data set gives to such a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pfm":
        body = np.full((HEIGHT, WIDTH), disparity_px, dtype="<f4").tobytes()
        path.write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n-1\n".encode() + body)
        if path.name == "disp0GT.pfm":
            save_mask(path.with_name("mask0nocc.png"), disparity_px)
    elif path.suffix == ".npy":
        value = disparity_px if path.name == "disp_00.npy" else 80 / disparity_px
        np.save(path, np.full((HEIGHT, WIDTH), value, dtype=np.float32))
    elif any(part.startswith("disp") for part in path.parts) and "left.disp" not in path.name:
        Image.fromarray(np.full((HEIGHT, WIDTH), round(256 * disparity_px), dtype=np.uint16)).save(path)
    else:
        raw = {
            "left.disp": 32 * disparity_px,
            "left.depth": 700 * 600 / disparity_px,
            "depth": 725.0087 * 53.2725 / disparity_px,
        }
        kind = next(kind for kind in raw if kind in path.name)
        Image.fromarray(np.full((HEIGHT, WIDTH), round(raw[kind]), dtype=np.uint16)).save(path)
        if kind == "left.depth":
            settings = {"camera_settings": [{"intrinsic_settings": {"fx": 700.0}}]}
            (path.parent / "_camera_settings.json").write_text(json.dumps(settings))


def save_mask(path: Path, disparity_px: float) -> None:
    """Write what both views see, all but column 2, in the format that its data set gives to such a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name in ("mask0nocc.png", "mask_00.png"):
        values = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
        values[:, 2] = 128
    else:
        values = np.full((HEIGHT, WIDTH), round(256 * disparity_px), dtype=np.uint16)
        values[:, 2] = 0
    Image.fromarray(values).save(path)


# class -> the paths of its samples, in the order that the class gives: left, right, map and, of some, the mask
FILES: dict[type[StereoDataset], list[tuple[str, ...]]] = {
    FlyingThings3D: [
        (
            f"frames_finalpass/TRAIN/{scene}/left/0006.png",
            f"frames_finalpass/TRAIN/{scene}/right/0006.png",
            f"disparity/TRAIN/{scene}/left/0006.pfm",
        )
        for scene in ("A/0000", "B/0001")
    ],
    Monkaa: [
        (
            f"frames_finalpass/TRAIN/{scene}/left/0000.png",
            f"frames_finalpass/TRAIN/{scene}/right/0000.png",
            f"disparity/TRAIN/{scene}/left/0000.pfm",
        )
        for scene in ("eating_x2", "rain_x2")
    ],
    Driving: [
        (
            f"frames_finalpass/TRAIN/{scene}/left/0800.png",
            f"frames_finalpass/TRAIN/{scene}/right/0800.png",
            f"disparity/TRAIN/{scene}/left/0800.pfm",
        )
        for scene in ("15mm_focallength/scene_backwards/fast", "35mm_focallength/scene_forwards/slow")
    ],
    TartanAir: [
        (
            f"ocean/ocean/{flight}/image_left/000003_left.png",
            f"ocean/ocean/{flight}/image_right/000003_right.png",
            f"ocean/ocean/{flight}/depth_left/000003_left_depth.npy",
        )
        for flight in ("Easy/P000", "Hard/P012")
    ],
    CREStereo: [
        (f"{part}/a7_left.jpg", f"{part}/a7_right.jpg", f"{part}/a7_left.disp.png") for part in ("hole", "tree")
    ],
    VirtualKITTI2: [
        (
            f"{scene}/frames/rgb/Camera_0/rgb_00002.jpg",
            f"{scene}/frames/rgb/Camera_1/rgb_00002.jpg",
            f"{scene}/frames/depth/Camera_0/depth_00002.png",
        )
        for scene in ("Scene01/clone", "Scene20/rain")
    ],
    FallingThings: [
        (f"{scene}/000009.left.jpg", f"{scene}/000009.right.jpg", f"{scene}/000009.left.depth.png")
        for scene in ("mixed/kitchen_0", "single/002_can_16k/temple_1")
    ],
}
FILES[KITTI2012] = [
    tuple(f"training/{folder}/{frame}_10.png" for folder in ("colored_0", "colored_1", "disp_occ", "disp_noc"))
    for frame in ("000000", "000003")
]
FILES[KITTI2015] = [
    tuple(f"training/{folder}/{frame}_10.png" for folder in ("image_2", "image_3", "disp_occ_0", "disp_noc_0"))
    for frame in ("000000", "000003")
]
for one_size in (MiddleburyF, MiddleburyH, MiddleburyQ):
    FILES[one_size] = [
        tuple(
            f"training{one_size.__name__[-1]}/{scene}/{file}"
            for file in ("im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png")
        )
        for scene in ("ArtL", "Teddy")
    ]
FILES[Middlebury2021] = [
    tuple(f"{scene}/{file}" for file in ("im0.png", "im1.png", "disp0.pfm")) for scene in ("artroom1", "chess2")
]
FILES[ETH3D] = [
    tuple(
        f"two_view_training{file}"
        for file in (
            f"/{scene}/im0.png",
            f"/{scene}/im1.png",
            f"_gt/{scene}/disp0GT.pfm",
            f"_gt/{scene}/mask0nocc.png",
        )
    )
    for scene in ("forest_2s", "playground_1l")
]
FILES[Booster] = [
    tuple(
        f"train/balanced/{scene}/{file}"
        for file in ("camera_00/im0.png", "camera_02/im0.png", "disp_00.npy", "mask_00.png")
    )
    for scene in ("Bathroom", "Pots")
]
for one_weather in (DrivingStereoSunny, DrivingStereoCloudy, DrivingStereoRainy, DrivingStereoFoggy):
    FILES[one_weather] = [
        tuple(
            f"{one_weather.__name__.removeprefix('DrivingStereo').lower()}/{folder}-half-size/2018-{frame}.{suffix}"
            for folder, suffix in (("left-image", "jpg"), ("right-image", "jpg"), ("disparity-map", "png"))
        )
        for frame in ("07-16", "08-17")
    ]
FILES[SceneFlow] = FILES[FlyingThings3D] + FILES[Monkaa] + FILES[Driving]
CLASSES = list(FILES)
DISPARITIES = (8.0, 10.0, 5.0, 4.0, 2.5, 2.0)


def write_samples(root: Path, kind: type[StereoDataset]) -> Path:
    for number, (left, right, disparity, *masks) in enumerate(FILES[kind]):
        save_frame(root / left, 10 * number)
        save_frame(root / right, 10 * number + 5)
        save_map(root / disparity, DISPARITIES[number])
        for mask in masks:
            save_mask(root / mask, DISPARITIES[number])
    return root


def names_of(dataset: StereoDataset) -> list[tuple[str, ...]]:
    return [tuple(name for name in files if name is not None) for files in dataset.files]


def patterns_of_tree(docstring: str) -> set[str]:
    """Read the tree in a class's docstring: a line that does not end in a slash is a pattern below its folders."""
    lines = inspect.cleandoc(docstring).split("\n")
    start = lines.index("Layout, below root (a star is part of one name):") + 1
    folders: list[tuple[int, str]] = []
    patterns = set()
    for line in filter(str.strip, lines[start:]):
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = [folder for folder in folders if folder[0] < depth]
        if name.endswith("/"):
            folders.append((depth, name))
        else:
            patterns.add("".join(folder for _, folder in folders) + name)
    return patterns


@pytest.mark.parametrize("kind", CLASSES)
def test_tree_of_the_docstring_is_what_is_searched(kind):
    searched = [pattern for layout in kind.layouts for pattern in layout.patterns()]
    assert patterns_of_tree(kind.__doc__) == set(searched) and len(set(searched)) == len(searched)


@pytest.mark.parametrize("kind", CLASSES)
def test_patterns_of_a_layout_have_equal_stars(kind):
    for layout in kind.layouts:
        stars = [pattern.count("*") for pattern in layout.patterns()]
        assert stars[0] == stars[1] and stars[2:] == [1 if kind is Booster else stars[0]] * len(stars[2:])


@pytest.mark.parametrize("kind", CLASSES)
def test_each_layout_is_read(tmp_path, kind):
    dataset = kind(write_samples(tmp_path, kind))
    assert names_of(dataset) == FILES[kind]
    assert len(dataset) == len(FILES[kind]) and sum(dataset.counts.values()) == len(dataset)
    for number, (left, _, _, *masks) in enumerate(FILES[kind]):
        sample = dataset[number]
        assert sample["name"] == left
        for key, level in (("left_image", 10 * number), ("right_image", 10 * number + 5)):
            assert sample[key].dtype == torch.uint8 and sample[key].shape == (3, HEIGHT, WIDTH)
            expected = torch.tensor([level, level + 1, level + 2])
            assert (sample[key][:, 1, 4] - expected).abs().max() <= 2  # JPEG
        assert sample["left_disparity"].dtype == torch.float32
        assert sample["left_disparity"].shape == sample["valid_disparity_mask"].shape == (1, HEIGHT, WIDTH)
        expected = torch.full((1, HEIGHT, WIDTH), DISPARITIES[number])
        torch.testing.assert_close(sample["left_disparity"], expected, rtol=1e-3, atol=0)
        assert sample["valid_disparity_mask"].dtype == torch.bool and sample["valid_disparity_mask"].all()
        assert ("left_visible_mask" in sample) == bool(masks)
        if masks:
            visible = sample["left_visible_mask"]
            assert visible.dtype == torch.bool and visible.shape == (1, HEIGHT, WIDTH)
            assert visible[0, 1].tolist() == [True, True, False, True, True, True]


def test_invalid_pixels_hold_zero(tmp_path):
    root = write_samples(tmp_path, Monkaa)
    values = np.full((HEIGHT, WIDTH), 3, dtype="<f4")
    values[-1, 2] = np.inf  # stored from the bottom: the top row
    (root / FILES[Monkaa][1][2]).write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n-1\n".encode() + values.tobytes())
    sample = Monkaa(root)[1]
    assert (~sample["valid_disparity_mask"]).nonzero().tolist() == [[0, 0, 2]]
    assert sample["left_disparity"][0, 0].tolist() == [3, 3, 0, 3, 3, 3]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_folder_called_left_higher_up_changes_nothing(tmp_path, kind):
    plain = kind(write_samples(tmp_path / "plain", kind))
    nested = kind(write_samples(tmp_path / "left/image_left/frames_finalpass/data[1]_left", kind))
    assert nested.files == plain.files
    assert torch.equal(nested[0]["right_image"], plain[0]["right_image"])


@pytest.mark.parametrize("kind", CLASSES)
def test_missing_root(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=f"`root` must be the folder of {kind.__name__}; .*{tmp_path}/gone"):
        kind(tmp_path / "gone")


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_in_the_layout(tmp_path, kind):
    with pytest.raises(FileNotFoundError) as caught:
        kind(tmp_path)
    message = str(caught.value)
    assert f"must hold {kind.__name__} in its layout" in message and str(tmp_path) in message
    assert all(pattern in message for layout in kind.layouts for pattern in layout.patterns())


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("gone", [0, 1, 2, -1])
def test_missing_partner(tmp_path, kind, gone):
    root = write_samples(tmp_path, kind)
    victim = FILES[kind][1]
    (root / victim[gone]).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        kind(root)
    message = str(caught.value)
    left_over = [name for name in victim if name != victim[gone]]
    assert str(root) in message and all(name in message for name in left_over[:3])
    layout = next(layout for layout in kind.layouts if f" of {layout.left}" in message)
    assert all(f" of {pattern}" in message for pattern in layout.patterns())


def test_unequal_counts_are_printed(tmp_path):
    root = write_samples(tmp_path, CREStereo)
    for number in range(4):
        save_frame(root / f"tree/b{number}_right.jpg", 1)
    with pytest.raises(FileNotFoundError) as caught:
        CREStereo(root)
    assert str(caught.value) == (
        f"`root` must hold three files for each sample; {root} has 2 of */*_left.jpg, 6 of */*_right.jpg, "
        "2 of */*_left.disp.png; without partner: tree/b0_right.jpg, tree/b1_right.jpg, tree/b2_right.jpg ...."
    )


def test_a_shifted_file_is_not_paired_with_its_neighbour(tmp_path):
    root = write_samples(tmp_path, CREStereo)  # counts stay equal, so sorted lists would pair what does not belong
    (root / "tree/a7_right.jpg").rename(root / "tree/a8_right.jpg")
    with pytest.raises(FileNotFoundError, match=r"2 of \*/\*_left.jpg, 2 of .*: tree/a7_left.jpg, tree/a8_right"):
        CREStereo(root)


def test_names_without_view_belong_together_as_well(tmp_path):
    for folder, save in (("image_left", save_frame), ("image_right", save_frame), ("depth_left", save_map)):
        save(tmp_path / f"sea/sea/Easy/P001/{folder}/12.{'npy' if folder == 'depth_left' else 'png'}", 7)
    assert len(TartanAir(tmp_path)) == 1
    save_frame(tmp_path / "sea/sea/Easy/P001/image_left/12_left.png", 1)
    with pytest.raises(ValueError, match="must hold one file of .*image_left.* has .*12.png and .*12_left.png"):
        TartanAir(tmp_path)


def test_hidden_files_are_no_samples(tmp_path):
    root = write_samples(tmp_path, CREStereo)
    save_frame(root / "tree/._a7_left.jpg", 1)
    assert len(CREStereo(root)) == 2


def test_scene_flow_takes_the_parts_that_are_there(tmp_path):
    dataset = SceneFlow(write_samples(tmp_path, Driving))
    assert len(dataset) == 2
    assert dataset.counts == {
        "frames_finalpass/TRAIN/*/*/left/*.png": 0,
        "frames_finalpass/TRAIN/*/left/*.png": 0,
        "frames_finalpass/TRAIN/*/*/*/left/*.png": 2,
    }


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("content", [b"foreign", b""])
def test_foreign_file(tmp_path, kind, broken, content):
    root = write_samples(tmp_path, kind)
    name = FILES[kind][1][broken]
    (root / name).write_bytes(content)
    dataset = kind(root)
    assert dataset[0]["name"] == FILES[kind][0][0]
    with pytest.raises(DataFileError, match=f"^{root / name}: must be"):
        dataset[1]


@pytest.mark.parametrize("kind", CLASSES)
def test_truncated_map(tmp_path, kind):
    root = write_samples(tmp_path, kind)
    path = root / FILES[kind][0][2]
    path.write_bytes(path.read_bytes()[:-24])
    with pytest.raises(DataFileError, match=f"^{path}: must "):
        kind(root)[0]


def test_a_file_that_went_away_after_the_search(tmp_path):
    dataset = CREStereo(write_samples(tmp_path, CREStereo))
    (tmp_path / "hole/a7_right.jpg").unlink()
    with pytest.raises(DataFileError, match="a7_right.jpg: .*No such file"):
        dataset[0]


def test_sizes_that_disagree(tmp_path):
    root = write_samples(tmp_path, CREStereo)
    save_frame(root / "hole/a7_right.jpg", 5, size=(7, 4))
    with pytest.raises(DataFileError, match=r"a7_right.jpg: must have the size of a7_left.jpg, \[4, 6\]; .*\[4, 7\]"):
        CREStereo(root)[0]
    save_frame(root / "hole/a7_right.jpg", 5)
    Image.fromarray(np.ones((3, 6), dtype=np.uint16)).save(root / "hole/a7_left.disp.png")
    with pytest.raises(DataFileError, match=r"a7_left.disp.png: must have the size .*\[4, 6\]; got \[3, 6\]"):
        CREStereo(root)[0]


def test_a_mask_of_another_size(tmp_path):
    root = write_samples(tmp_path, KITTI2015)
    Image.fromarray(np.ones((3, 6), dtype=np.uint16)).save(root / "training/disp_noc_0/000003_10.png")
    with pytest.raises(DataFileError, match=r"disp_noc_0/000003_10.png: must have the size .*\[4, 6\]; got \[3, 6\]"):
        KITTI2015(root)[1]


@pytest.mark.parametrize(("kind", "name"), [(KITTI2012, "disp_noc/000003_10.png"), (Booster, "Pots/mask_00.png")])
def test_a_foreign_mask(tmp_path, kind, name):
    root = write_samples(tmp_path, kind)
    next(root.rglob(name)).write_bytes(b"foreign")
    with pytest.raises(DataFileError, match=f"{name}: must be"):
        kind(root)[1]


def test_frames_of_kitti_without_disparity_are_left_out(tmp_path):
    root = write_samples(tmp_path, KITTI2015)
    for folder in ("image_2", "image_3"):
        save_frame(root / f"training/{folder}/000000_11.png", 9)
    assert len(KITTI2015(root)) == 2


def test_pairs_of_one_scene_share_its_map(tmp_path):
    root = write_samples(tmp_path, Booster)
    for camera in ("camera_00", "camera_02"):
        save_frame(root / f"train/balanced/Pots/{camera}/im1.png", 70)
    dataset = Booster(root)
    assert [Path(files.left).name for files in dataset.files] == ["im0.png", "im0.png", "im1.png"]
    assert [files.disparity for files in dataset.files[1:]] == ["train/balanced/Pots/disp_00.npy"] * 2
    assert [files.visible for files in dataset.files[1:]] == ["train/balanced/Pots/mask_00.png"] * 2
    assert torch.equal(dataset[1]["left_disparity"], dataset[2]["left_disparity"])


def test_pairs_without_a_map_are_read(tmp_path):
    for scene, level in (("Crusade", 3), ("Bicycle2", 7)):
        save_frame(tmp_path / f"testH/{scene}/im0.png", level)
        save_frame(tmp_path / f"testH/{scene}/im1.png", level + 20)
    pairs = PicturePairs(tmp_path, "testH/*/im0.png", "testH/*/im1.png")
    assert len(pairs) == 2 and len(PicturePairs(tmp_path, "testF/*/im0.png", "testF/*/im1.png")) == 0
    sample = pairs[1]
    assert sample.keys() == {"left_image", "right_image", "name"} and sample["name"] == "testH/Crusade/im0.png"
    assert sample["left_image"][0, 0, 0] == 3 and sample["right_image"][0, 0, 0] == 23


def test_pairs_without_a_map_that_cannot_be_used(tmp_path):
    save_frame(tmp_path / "testH/Crusade/im0.png", 1)
    with pytest.raises(
        FileNotFoundError, match=r"must hold two files .* 1 of testH/\*/im0.png, 0 of testH/\*/im1.png"
    ):
        PicturePairs(tmp_path, "testH/*/im0.png", "testH/*/im1.png")
    save_frame(tmp_path / "testH/Crusade/im1.png", 1, size=(6, 5))
    with pytest.raises(DataFileError, match=r"im1.png: must have the size of im0.png, \[4, 6\]; got \[5, 6\]"):
        PicturePairs(tmp_path, "testH/*/im0.png", "testH/*/im1.png")[0]
