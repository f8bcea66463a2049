# SPDX-License-Identifier: Apache-2.0
"""Public stereo data sets as torch data sets: one base class, and one short class for each layout on disk.

A class names its files by patterns below a root folder. The three patterns of a layout have the same stars in the same
order, and files belong together when their stars stand for the same names: nothing is paired by its place in a sorted
list, and no path is edited, so one missing file cannot shift the others and a folder called `left` anywhere else
changes nothing. How a disparity file becomes pixels is known by disparity_readers.py; cropping and colours by
augmentation.py; mixing by data_mixture.py.

Another data set is one reader there and one class here.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.disparity_readers import (
    DataFileError,
    DisparityMap,
    read_crestereo,
    read_falling_things,
    read_picture,
    read_scene_flow,
    read_tartanair,
    read_vkitti2,
)

SHOWN_PATHS = 3  # of the files without partner that a message names


class Layout(NamedTuple):
    """Three glob patterns below the root, with equal stars in equal order.

    `*` stands for part of one name. `endings` are cut off what a pattern's last star stands for, where it ends so:
    they say which view or map a file is, and differ between files that belong together.
    """

    left: str
    right: str
    disparity: str
    endings: tuple[str, str, str] = ("", "", "")


class StereoFiles(NamedTuple):
    """The files of one sample, below the root."""

    left: str
    right: str
    disparity: str


def find_by_stars(root: Path, pattern: str, ending: str) -> dict[tuple[str, ...], str]:
    """Find the files of a pattern below root, by what its stars stand for; hidden files are left out."""
    stars = re.compile("([^/]*)".join(re.escape(part) for part in pattern.split("*")))
    found: dict[tuple[str, ...], str] = {}
    for path in sorted(glob.glob(pattern, root_dir=root)):
        name = Path(path).as_posix()
        match = stars.fullmatch(name)
        if match is not None:
            *folders, last = match.groups()
            key = (*folders, last.removesuffix(ending))
            if key in found:
                raise ValueError(
                    f"`root` must hold one file of {pattern} for each sample; {root} has {found[key]} and {name}."
                )
            found[key] = name
    return found


def pair_files(root: Path, layout: Layout) -> list[StereoFiles]:
    """Find the samples of one layout, in the order of the left frames' paths.

    Returns:
        the samples; empty if no pattern matches anything.

    Raises:
        FileNotFoundError: a file has no partner; the message names patterns, counts and the first such files.
        ValueError: two files of one pattern have the same stars.
    """
    patterns = layout[:3]
    found = [find_by_stars(root, *one) for one in zip(patterns, layout.endings, strict=True)]
    everywhere = set.intersection(*map(set, found))
    alone = [name for paths in found for key, name in paths.items() if key not in everywhere]
    if alone:
        counts = ", ".join(f"{len(paths)} of {one}" for one, paths in zip(patterns, found, strict=True))
        raise FileNotFoundError(
            f"`root` must hold three files for each sample; {root} has {counts}; without partner: "
            f"{', '.join(alone[:SHOWN_PATHS])}{' ...' if len(alone) > SHOWN_PATHS else ''}."
        )
    return sorted(StereoFiles(*(paths[key] for paths in found)) for key in everywhere)


class StereoDataset(Dataset[dict[str, Any]]):
    """Stereo pairs with the left view's disparity, read from a folder.

    A subclass sets `layouts` and `read_disparity`, and its docstring draws `layouts` as a tree.

    Args:
        root: the data set's folder, see the tree of the class. It is searched once, here.

    Attributes:
        files: the samples' files, sorted by layout and left path.
        counts: how many samples each layout has, by its left pattern. A set of several layouts may lack some of them.

    Raises:
        FileNotFoundError: `root` is no folder, nothing below it matches, or a file has no partner.
        ValueError: two files claim the same place in a sample.
    """

    layouts: ClassVar[tuple[Layout, ...]]
    read_disparity: ClassVar[Callable[[Path], DisparityMap]]

    def __init__(self, root: str | Path):
        self.root = Path(root)
        kind = type(self).__name__
        if not self.root.is_dir():
            raise FileNotFoundError(f"`root` must be the folder of {kind}; there is no folder {self.root}.")
        by_layout = {layout.left: pair_files(self.root, layout) for layout in self.layouts}
        self.counts = {pattern: len(files) for pattern, files in by_layout.items()}
        self.files = [sample for files in by_layout.values() for sample in files]
        if not self.files:
            patterns = ", ".join(pattern for layout in self.layouts for pattern in layout[:3])
            raise FileNotFoundError(
                f"`root` must hold {kind} in its layout; {self.root} has 0 files of each of {patterns}."
            )

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample.

        Returns:
            left_image, right_image: uint8 [3,H,W], pixels as stored (no EXIF orientation, see `read_picture`).
            left_disparity: float32 [1,H,W], px at width W, finite, >= 0; 0 where it is not valid. A warp may take
                it as it is: nearly all that is not valid in these sets is sky or otherwise too far to measure.
            valid_disparity_mask: bool [1,H,W].
            name: path of the left frame below the root.

        Raises:
            DataFileError: a file is gone, truncated or of another kind, or sizes disagree.
        """
        paths = [self.root / name for name in self.files[index]]
        left, right = (read_picture(path) for path in paths[:2])
        disparity = type(self).read_disparity(paths[2])
        for path, shape in ((paths[1], right.shape[:2]), (paths[2], disparity.valid.shape)):
            if shape != left.shape[:2]:
                raise DataFileError(
                    path, f"must have the size of {paths[0].name}, {list(left.shape[:2])}; got {list(shape)}"
                )
        return {
            "left_image": _to_channels(left),
            "right_image": _to_channels(right),
            "left_disparity": torch.from_numpy(disparity.disparity)[None],
            "valid_disparity_mask": torch.from_numpy(disparity.valid)[None],
            "name": self.files[index].left,
        }


def _to_channels(picture: np.ndarray) -> Tensor:
    """Turn [H,W,3] into a tensor [3,H,W]."""
    return torch.from_numpy(picture).movedim(-1, 0).contiguous()


def _scene_flow_layout(folders: str) -> Layout:
    """Give the layout of a part of Scene Flow, whose frames lie this many folders deep."""
    frames = f"frames_finalpass/TRAIN/{folders}"
    return Layout(f"{frames}/left/*.png", f"{frames}/right/*.png", f"disparity/TRAIN/{folders}/left/*.pfm")


class FlyingThings3D(StereoDataset):
    """FlyingThings3D of Scene Flow: https://lmb.informatik.uni-freiburg.de/resources/datasets/SceneFlowDatasets.en.html.

    Layout, below root (a star is part of one name):
        frames_finalpass/
          TRAIN/
            */                      A, B, C
              */                    0000, 0001, ...
                left/
                  *.png
                right/
                  *.png
        disparity/
          TRAIN/
            */
              */
                left/
                  *.pfm             px
    """

    layouts = (_scene_flow_layout("*/*"),)
    read_disparity = read_scene_flow


class Monkaa(StereoDataset):
    """Monkaa of Scene Flow, below the same two folders as FlyingThings3D.

    Layout, below root (a star is part of one name):
        frames_finalpass/
          TRAIN/
            */                      a_rain_of_stones_x2, ...
              left/
                *.png
              right/
                *.png
        disparity/
          TRAIN/
            */
              left/
                *.pfm               px
    """

    layouts = (_scene_flow_layout("*"),)
    read_disparity = read_scene_flow


class Driving(StereoDataset):
    """Driving of Scene Flow, below the same two folders as FlyingThings3D.

    Layout, below root (a star is part of one name):
        frames_finalpass/
          TRAIN/
            */                      15mm_focallength, ...
              */                    scene_backwards, ...
                */                  fast, slow
                  left/
                    *.png
                  right/
                    *.png
        disparity/
          TRAIN/
            */
              */
                */
                  left/
                    *.pfm           px
    """

    layouts = (_scene_flow_layout("*/*/*"),)
    read_disparity = read_scene_flow


class SceneFlow(StereoDataset):
    """All of Scene Flow that is there: FlyingThings3D, Monkaa and Driving under one root, as many as there are.

    Layout, below root (a star is part of one name):
        frames_finalpass/
          TRAIN/
            */                      Monkaa: a_rain_of_stones_x2, ...
              left/
                *.png
              right/
                *.png
              */                    FlyingThings3D: A/0000, ...
                left/
                  *.png
                right/
                  *.png
                */                  Driving: 15mm_focallength/scene_backwards/fast, ...
                  left/
                    *.png
                  right/
                    *.png
        disparity/
          TRAIN/
            */
              left/
                *.pfm               px
              */
                left/
                  *.pfm
                */
                  left/
                    *.pfm
    """

    layouts = FlyingThings3D.layouts + Monkaa.layouts + Driving.layouts
    read_disparity = read_scene_flow


class TartanAir(StereoDataset):
    """TartanAir, synthetic flights: https://theairlab.org/tartanair-dataset.

    Layout, below root (a star is part of one name):
        */                          abandonedfactory
          */                        abandonedfactory
            */                      Easy, Hard
              */                    P000, ...
                image_left/
                  *.png             000000_left.png
                image_right/
                  *.png             000000_right.png
                depth_left/
                  *.npy             000000_left_depth.npy, metres
    """

    layouts = (
        Layout(
            "*/*/*/*/image_left/*.png",
            "*/*/*/*/image_right/*.png",
            "*/*/*/*/depth_left/*.npy",
            endings=("_left", "_right", "_left_depth"),
        ),
    )
    read_disparity = read_tartanair


class CREStereo(StereoDataset):
    """The training set of CREStereo: https://github.com/megvii-research/CREStereo.

    Layout, below root (a star is part of one name):
        */                          hole, reflective, shapenet, tree
          *_left.jpg
          *_right.jpg
          *_left.disp.png           1/32 px
    """

    layouts = (Layout("*/*_left.jpg", "*/*_right.jpg", "*/*_left.disp.png"),)
    read_disparity = read_crestereo


class VirtualKITTI2(StereoDataset):
    """Virtual KITTI 2: https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2.

    Layout, below root (a star is part of one name):
        Scene*/                     Scene01, Scene02, Scene06, Scene18, Scene20
          */                        clone, fog, ...
            frames/
              rgb/
                Camera_0/
                  rgb*.jpg          rgb_00000.jpg
                Camera_1/
                  rgb*.jpg
              depth/
                Camera_0/
                  depth*.png        depth_00000.png, cm
    """

    layouts = (
        Layout(
            "Scene*/*/frames/rgb/Camera_0/rgb*.jpg",
            "Scene*/*/frames/rgb/Camera_1/rgb*.jpg",
            "Scene*/*/frames/depth/Camera_0/depth*.png",
        ),
    )
    read_disparity = read_vkitti2


class FallingThings(StereoDataset):
    """Falling Things of NVIDIA (Tremblay et al., CVPR workshops 2018, https://arxiv.org/abs/1804.06534).

    Layout, below root (a star is part of one name):
        */                          mixed
          */                        kitchen_0, ...
            *left.jpg               000000.left.jpg
            *right.jpg
            *left.depth.png         0.1 mm; _camera_settings.json beside it
            */                      one level deeper: single/002_master_chef_can_16k/kitchen_0
              *left.jpg
              *right.jpg
              *left.depth.png
    """

    layouts = (
        Layout("*/*/*left.jpg", "*/*/*right.jpg", "*/*/*left.depth.png"),
        Layout("*/*/*/*left.jpg", "*/*/*/*right.jpg", "*/*/*/*left.depth.png"),
    )
    read_disparity = read_falling_things
