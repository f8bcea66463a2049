# SPDX-License-Identifier: Apache-2.0
"""Public stereo data sets as torch data sets: one base class, and one short class for each layout on disk.

A class names its files by patterns below a root folder. The patterns of a layout have the same stars in the same
order, and files belong together when their stars stand for the same names: nothing is paired by its place in a sorted
list, and no path is edited, so one missing file cannot shift the others and a folder called `left` anywhere else
changes nothing. How a disparity file becomes pixels is known by disparity_readers.py; cropping and colours by
augmentation.py; mixing by data_mixture.py. Sets to train on come first, sets to evaluate on (benchmarks) last.

Another data set is one reader there and one class here.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.disparity_readers import (
    DataFileError,
    DisparityMap,
    read_booster,
    read_crestereo,
    read_drivingstereo,
    read_eth3d,
    read_falling_things,
    read_kitti,
    read_kitti_visible,
    read_middlebury,
    read_middlebury_2021,
    read_picture,
    read_region_mask,
    read_scene_flow,
    read_tartanair,
    read_vkitti2,
)

SHOWN_PATHS = 3  # of the files without partner that a message names
NUMBERS = {2: "two", 3: "three", 4: "four"}  # in words, of files of a sample


class Layout(NamedTuple):
    """Glob patterns below the root, with equal stars in equal order.

    `*` stands for part of one name. `endings` are cut off what a pattern's last star stands for, where it ends so:
    they say which view or map a file is, and differ between files that belong together. `visible` is of the files
    that say which pixels both views see; None where a set has none. A pattern with fewer stars belongs to all
    samples whose first stars agree: several exposures of one scene share its map.
    """

    left: str
    right: str
    disparity: str
    endings: tuple[str, str, str] = ("", "", "")
    visible: str | None = None

    def patterns(self) -> tuple[str, ...]:
        """Give the patterns in the order of `StereoFiles`."""
        return (self.left, self.right, self.disparity, *filter(None, [self.visible]))


class StereoFiles(NamedTuple):
    """The files of one sample, below the root."""

    left: str
    right: str
    disparity: str
    visible: str | None = None


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


def match_files(root: Path, patterns: Sequence[str], endings: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Find the files that belong together, one of each pattern, in the order of the first pattern's paths.

    Args:
        root: where the patterns begin.
        patterns: the first one has as many stars as any other.
        endings: see `Layout`; for patterns beyond them there is none.

    Returns:
        the files of each sample; empty if no pattern matches anything.

    Raises:
        FileNotFoundError: a file has no partner; the message names patterns, counts and the first such files.
        ValueError: two files of one pattern have the same stars.
    """
    found = [find_by_stars(root, *one) for one in zip_longest(patterns, endings, fillvalue="")]
    stars = [pattern.count("*") for pattern in patterns]
    everywhere = [
        key for key in found[0] if all(key[:count] in paths for count, paths in zip(stars, found, strict=True))
    ]
    alone = []
    for count, paths in zip(stars, found, strict=True):
        used = {key[:count] for key in everywhere}
        alone += [name for key, name in paths.items() if key not in used]
    if alone:
        counts = ", ".join(f"{len(paths)} of {one}" for one, paths in zip(patterns, found, strict=True))
        raise FileNotFoundError(
            f"`root` must hold {NUMBERS[len(patterns)]} files for each sample; {root} has {counts}; without partner: "
            f"{', '.join(alone[:SHOWN_PATHS])}{' ...' if len(alone) > SHOWN_PATHS else ''}."
        )
    return sorted(tuple(paths[key[:count]] for count, paths in zip(stars, found, strict=True)) for key in everywhere)


class StereoDataset(Dataset[dict[str, Any]]):
    """Stereo pairs with the left view's disparity, read from a folder.

    A subclass sets `layouts` and `read_disparity`, and `read_visible` where its layout says what both views see; its
    docstring draws `layouts` as a tree.

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
    read_visible: ClassVar[Callable[[Path], np.ndarray]]

    def __init__(self, root: str | Path):
        self.root = Path(root)
        kind = type(self).__name__
        if not self.root.is_dir():
            raise FileNotFoundError(f"`root` must be the folder of {kind}; there is no folder {self.root}.")
        by_layout = {layout.left: match_files(self.root, layout.patterns(), layout.endings) for layout in self.layouts}
        self.counts = {pattern: len(files) for pattern, files in by_layout.items()}
        self.files = [StereoFiles(*sample) for files in by_layout.values() for sample in files]
        if not self.files:
            patterns = ", ".join(pattern for layout in self.layouts for pattern in layout.patterns())
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
            left_visible_mask: bool [1,H,W], True where both views see the pixel; only of sets that say so.
            name: path of the left frame below the root.

        Raises:
            DataFileError: a file is gone, truncated or of another kind, or sizes disagree.
        """
        files = self.files[index]
        paths = [self.root / name for name in files if name is not None]
        left, right = (read_picture(path) for path in paths[:2])
        disparity = type(self).read_disparity(paths[2])
        masks = [type(self).read_visible(path) for path in paths[3:]]
        shapes = [right.shape[:2], disparity.valid.shape, *(mask.shape for mask in masks)]
        for path, shape in zip(paths[1:], shapes, strict=True):
            if shape != left.shape[:2]:
                raise DataFileError(
                    path, f"must have the size of {paths[0].name}, {list(left.shape[:2])}; got {list(shape)}"
                )
        sample = {
            "left_image": _to_channels(left),
            "right_image": _to_channels(right),
            "left_disparity": torch.from_numpy(disparity.disparity)[None],
            "valid_disparity_mask": torch.from_numpy(disparity.valid)[None],
            "name": files.left,
        }
        return sample | ({"left_visible_mask": torch.from_numpy(masks[0])[None]} if masks else {})


class PicturePairs(Dataset[dict[str, Any]]):
    """Stereo pairs without a disparity, read from a folder: the test sets of benchmarks.

    Args:
        root: the folder; may hold no pair.
        left: glob pattern of the left frames.
        right: of the right frames, with equal stars.

    Raises:
        FileNotFoundError: a frame has no partner.
    """

    def __init__(self, root: str | Path, left: str, right: str):
        self.root, self.files = Path(root), match_files(Path(root), (left, right))

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one pair: left_image, right_image and name as in `StereoDataset`.

        Raises:
            DataFileError: a file is gone, truncated or of another kind, or sizes disagree.
        """
        paths = [self.root / name for name in self.files[index]]
        left, right = (read_picture(path) for path in paths)
        if right.shape != left.shape:
            raise DataFileError(
                paths[1], f"must have the size of {paths[0].name}, {list(left.shape[:2])}; got {list(right.shape[:2])}"
            )
        return {
            "left_image": _to_channels(left),
            "right_image": _to_channels(right),
            "name": self.files[index][0],
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


# ---------------------------------------------------------------------------------------------------------------------
# Benchmarks
# ---------------------------------------------------------------------------------------------------------------------


class KITTI2012(StereoDataset):
    """KITTI 2012, training part: https://www.cvlibs.net/datasets/kitti/eval_stereo_flow.php?benchmark=stereo.

    Layout, below root (a star is part of one name):
        training/
          colored_0/
            *_10.png                000000_10.png; frames *_11.png have no disparity
          colored_1/
            *_10.png
          disp_occ/
            *_10.png                1/256 px, all pixels measured
          disp_noc/
            *_10.png                those that both views see
    """

    layouts = (
        Layout(
            "training/colored_0/*_10.png",
            "training/colored_1/*_10.png",
            "training/disp_occ/*_10.png",
            visible="training/disp_noc/*_10.png",
        ),
    )
    read_disparity = read_kitti
    read_visible = read_kitti_visible


class KITTI2015(StereoDataset):
    """KITTI 2015, training part: https://www.cvlibs.net/datasets/kitti/eval_scene_flow.php?benchmark=stereo.

    Layout, below root (a star is part of one name):
        training/
          image_2/
            *_10.png                000000_10.png; frames *_11.png have no disparity
          image_3/
            *_10.png
          disp_occ_0/
            *_10.png                1/256 px, all pixels measured
          disp_noc_0/
            *_10.png                those that both views see
    """

    layouts = (
        Layout(
            "training/image_2/*_10.png",
            "training/image_3/*_10.png",
            "training/disp_occ_0/*_10.png",
            visible="training/disp_noc_0/*_10.png",
        ),
    )
    read_disparity = read_kitti
    read_visible = read_kitti_visible


def _middlebury_layout(folder: str, truth_folder: str) -> Layout:
    """Give the layout of scenes in folders of their own, whose truth may lie in another folder."""
    return Layout(
        f"{folder}/*/im0.png",
        f"{folder}/*/im1.png",
        f"{truth_folder}/*/disp0GT.pfm",
        visible=f"{truth_folder}/*/mask0nocc.png",
    )


class MiddleburyF(StereoDataset):
    """Middlebury 2014 (MiddEval3), training part, full size: https://vision.middlebury.edu/stereo/submit3.

    The root is the folder MiddEval3.

    Layout, below root (a star is part of one name):
        trainingF/
          */                        Adirondack, ArtL, ...
            im0.png
            im1.png
            disp0GT.pfm             px at this size
            mask0nocc.png           255 = seen by both views, 128 = by the left one, 0 = unknown
    """

    layouts = (_middlebury_layout("trainingF", "trainingF"),)
    read_disparity = read_middlebury
    read_visible = read_region_mask


class MiddleburyH(StereoDataset):
    """Middlebury 2014 (MiddEval3), training part, half size: the Midd-T of ZeroStereo.

    The root is the folder MiddEval3.

    Layout, below root (a star is part of one name):
        trainingH/
          */                        Adirondack, ArtL, ...
            im0.png
            im1.png
            disp0GT.pfm             px at this size
            mask0nocc.png
    """

    layouts = (_middlebury_layout("trainingH", "trainingH"),)
    read_disparity = read_middlebury
    read_visible = read_region_mask


class MiddleburyQ(StereoDataset):
    """Middlebury 2014 (MiddEval3), training part, quarter size.

    The root is the folder MiddEval3.

    Layout, below root (a star is part of one name):
        trainingQ/
          */                        Adirondack, ArtL, ...
            im0.png
            im1.png
            disp0GT.pfm             px at this size
            mask0nocc.png
    """

    layouts = (_middlebury_layout("trainingQ", "trainingQ"),)
    read_disparity = read_middlebury
    read_visible = read_region_mask


class Middlebury2021(StereoDataset):
    """Middlebury 2021, scenes taken with a phone: https://vision.middlebury.edu/stereo/data/scenes2021.

    The set says nothing of what both views see.

    Layout, below root (a star is part of one name):
        */                          artroom1, bandsaw1, ...
          im0.png
          im1.png
          disp0.pfm                 px, infinite = unknown
    """

    layouts = (Layout("*/im0.png", "*/im1.png", "*/disp0.pfm"),)
    read_disparity = read_middlebury_2021


class ETH3D(StereoDataset):
    """ETH3D two-view, training part: https://www.eth3d.net/datasets.

    Layout, below root (a star is part of one name):
        two_view_training/
          */                        delivery_area_1l, ...
            im0.png
            im1.png
        two_view_training_gt/
          */
            disp0GT.pfm             px
            mask0nocc.png           255 = seen by both views, 128 = by the left one, 0 = unknown
    """

    layouts = (_middlebury_layout("two_view_training", "two_view_training_gt"),)
    read_disparity = read_eth3d
    read_visible = read_region_mask


class Booster(StereoDataset):
    """Booster, mirrors and glass at 12 Mpx (Zama Ramirez et al., CVPR 2022): the balanced training part.

    Several pairs of one scene, taken in other light, share the scene's disparity. The pictures are 4112x3008 px:
    evaluate with `--correlation on_the_fly`.

    Layout, below root (a star is part of one name):
        train/
          balanced/
            */                      Bathroom, ...
              camera_00/
                im*.png             im0.png, im1.png, ...
              camera_02/
                im*.png
              disp_00.npy           px
              mask_00.png           255 = seen by both views
    """

    layouts = (
        Layout(
            "train/balanced/*/camera_00/im*.png",
            "train/balanced/*/camera_02/im*.png",
            "train/balanced/*/disp_00.npy",
            visible="train/balanced/*/mask_00.png",
        ),
    )
    read_disparity = read_booster
    read_visible = read_region_mask


def _drivingstereo_layout(weather: str) -> Layout:
    """Give the layout of the 500 frames of one weather at half size."""
    return Layout(
        f"{weather}/left-image-half-size/*.jpg",
        f"{weather}/right-image-half-size/*.jpg",
        f"{weather}/disparity-map-half-size/*.png",
    )


class DrivingStereoSunny(StereoDataset):
    """DrivingStereo, frames in sunshine at half size: https://drivingstereo-dataset.github.io.

    Layout, below root (a star is part of one name):
        sunny/
          left-image-half-size/
            *.jpg
          right-image-half-size/
            *.jpg
          disparity-map-half-size/
            *.png                   1/256 px at half size
    """

    layouts = (_drivingstereo_layout("sunny"),)
    read_disparity = read_drivingstereo


class DrivingStereoCloudy(StereoDataset):
    """DrivingStereo, frames under clouds at half size.

    Layout, below root (a star is part of one name):
        cloudy/
          left-image-half-size/
            *.jpg
          right-image-half-size/
            *.jpg
          disparity-map-half-size/
            *.png
    """

    layouts = (_drivingstereo_layout("cloudy"),)
    read_disparity = read_drivingstereo


class DrivingStereoRainy(StereoDataset):
    """DrivingStereo, frames in rain at half size.

    Layout, below root (a star is part of one name):
        rainy/
          left-image-half-size/
            *.jpg
          right-image-half-size/
            *.jpg
          disparity-map-half-size/
            *.png
    """

    layouts = (_drivingstereo_layout("rainy"),)
    read_disparity = read_drivingstereo


class DrivingStereoFoggy(StereoDataset):
    """DrivingStereo, frames in fog at half size.

    Layout, below root (a star is part of one name):
        foggy/
          left-image-half-size/
            *.jpg
          right-image-half-size/
            *.jpg
          disparity-map-half-size/
            *.png
    """

    layouts = (_drivingstereo_layout("foggy"),)
    read_disparity = read_drivingstereo
