# SPDX-License-Identifier: Apache-2.0
"""Small folders in the layout of each stereo data set, with a constant disparity in each pair."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

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
