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
    CREStereo,
    Driving,
    FallingThings,
    FlyingThings3D,
    Monkaa,
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
    elif path.suffix == ".npy":
        np.save(path, np.full((HEIGHT, WIDTH), 80 / disparity_px, dtype=np.float32))
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


# class -> the paths of its samples, in the order that the class gives: left, right, map
FILES: dict[type[StereoDataset], list[tuple[str, str, str]]] = {
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
FILES[SceneFlow] = FILES[FlyingThings3D] + FILES[Monkaa] + FILES[Driving]
CLASSES = list(FILES)
DISPARITIES = (8.0, 10.0, 5.0, 4.0, 2.5, 2.0)


def write_samples(root: Path, kind: type[StereoDataset]) -> Path:
    for number, (left, right, disparity) in enumerate(FILES[kind]):
        save_frame(root / left, 10 * number)
        save_frame(root / right, 10 * number + 5)
        save_map(root / disparity, DISPARITIES[number])
    return root


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
    searched = {pattern for layout in kind.layouts for pattern in layout[:3]}
    assert patterns_of_tree(kind.__doc__) == searched and len(searched) == 3 * len(kind.layouts)


@pytest.mark.parametrize("kind", CLASSES)
def test_patterns_of_a_layout_have_equal_stars(kind):
    assert all(len({pattern.count("*") for pattern in layout[:3]}) == 1 for layout in kind.layouts)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_layout_is_read(tmp_path, kind):
    dataset = kind(write_samples(tmp_path, kind))
    assert [tuple(files) for files in dataset.files] == FILES[kind]
    assert len(dataset) == len(FILES[kind]) and sum(dataset.counts.values()) == len(dataset)
    for number, (left, _, _) in enumerate(FILES[kind]):
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
    assert all(pattern in message for layout in kind.layouts for pattern in layout[:3])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_missing_partner(tmp_path, kind, gone):
    root = write_samples(tmp_path, kind)
    victim = FILES[kind][1]
    (root / victim[gone]).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        kind(root)
    message = str(caught.value)
    assert str(root) in message and all(victim[i] in message for i in range(3) if i != gone)
    layout = next(layout for layout in kind.layouts if f" of {layout.left}" in message)
    assert f"of {layout.left}" in message and f"of {layout.right}" in message and f"of {layout.disparity}" in message


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
