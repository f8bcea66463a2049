# SPDX-License-Identifier: Apache-2.0
"""Stereo data sets on disk: small folders in each layout, and everything that can be wrong with one."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stereo_dataset_files import CLASSES, DISPARITIES, FILES, HEIGHT, WIDTH, save_frame, save_map, write_samples
from training.disparity_readers import DataFileError
from training.stereo_datasets import (
    KITTI2012,
    KITTI2015,
    Booster,
    CREStereo,
    Driving,
    Monkaa,
    PicturePairs,
    SceneFlow,
    StereoDataset,
    TartanAir,
)


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
