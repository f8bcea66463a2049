# SPDX-License-Identifier: Apache-2.0
"""Reading of the recorded outputs in tests/goldens/ (its README says what they are) and of the Motorcycle pair."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
import torch
from PIL import Image

GOLDEN_FOLDER = Path(__file__).parent / "goldens"
WARP_CASES = (
    "scene37x61 half quarter zero const3 wider_than_image tiny random_int inf_and_zero_patch ramp_up slope_plus1 "
    "scene48x80 scene33x127 s3x3 s1x5 s4x1"
).split()


class MotorcyclePair(NamedTuple):
    """The Motorcycle pair of Middlebury 2014 as scikit-image carries it."""

    left_image: torch.Tensor  # [1,3,500,741], float32, 0..255
    right_image: torch.Tensor  # [1,3,500,741], float32, 0..255
    disparity: torch.Tensor  # [1,1,500,741], pixels, left view; infinite where unknown


def load_golden(name: str) -> dict[str, np.ndarray]:
    """Return all arrays of tests/goldens/<name>.npz."""
    with np.load(GOLDEN_FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def image_to_tensor(image: np.ndarray) -> torch.Tensor:
    """Turn [H,W,C] numbers of any kind into a [1,C,H,W] float32 tensor of the same values."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def map_to_tensor(values: np.ndarray) -> torch.Tensor:
    """Turn an [H,W] array into a [1,1,H,W] tensor; bool stays bool, the rest becomes float32."""
    return torch.from_numpy(values if values.dtype == bool else values.astype(np.float32))[None, None]


def load_motorcycle() -> MotorcyclePair:
    """Read the pair and its true disparity out of the installed scikit-image."""
    folder = Path(skimage.__file__).parent / "data"
    with np.load(folder / "motorcycle_disp.npz") as arrays:
        disparity = arrays["arr_0"]
    left, right = (
        np.array(Image.open(folder / f"motorcycle_{view}.png").convert("RGB")) for view in ("left", "right")
    )
    return MotorcyclePair(image_to_tensor(left), image_to_tensor(right), map_to_tensor(disparity))
