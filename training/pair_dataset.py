# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs as training samples: our Parquet rows, local or on the Hub, the layout of MfS35K, true stereo data.

Every source gives samples of one form, a dict whose names are those of the published columns and of the arguments of
`zerostereo_loss`; H W are the pair's own:
    left_image, right_image    uint8 [3,H,W].
    disparity                  float32 [1,H,W], px at width W, left view, finite, >= 0; 0 where it is not valid.
    confidence                 float32 [1,H,W] in [0,1], left view.
    valid_disparity_mask       bool [1,H,W], left view.
    left_visible_mask          bool [1,H,W], left view, True where the pixel is seen in the right view.
    right_hole_mask            bool [1,H,W], right view, True where the picture was invented.
    name                       where it is from.
This is the one training file that knows how data sets are published (datasets_builder/schema.py and mfs35k.py). It
knows no augmentation, no order over the steps and no loss.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from huggingface_hub import HfApi, HfFileSystem
from torch import Tensor
from torch.utils.data import Dataset

from datasets_builder.mfs35k import read_file_list, read_sample
from datasets_builder.schema import decode_pair
from pipeline_zerostereo import forward_warp
from training.disparity_readers import DataFileError
from training.stereo_datasets import StereoDataset

COLUMNS = (  # what a sample is made of; the rest of a row is not read
    "id",
    "left_image",
    "right_image",
    "disparity",
    "disparity_png_scale",
    "confidence",
    "left_visible_mask",
    "right_hole_mask",
)
SHARD_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")
UNREADABLE = (pyarrow.ArrowException, OSError, SyntaxError, ValueError, EOFError)
FILE_LIST = "list.txt"


def permutation(length: int, generator: torch.Generator) -> Tensor:
    """Draw an order of 0 ... length-1."""
    return torch.randperm(length, generator=generator)


# ---------------------------------------------------------------------------------------------------------------------
# Our Parquet rows
# ---------------------------------------------------------------------------------------------------------------------


class ParquetPairs(Dataset[dict[str, Any]]):
    """Rows of a published build, read one by one from Parquet files wherever they lie.

    The footers are read here, everything else when a row is asked for: the row group that it is in, which is kept
    until another one is needed.

    Args:
        files: paths in the file system, in the order of the rows.
        filesystem: where they are.
        origin: what messages and names call the place.
        group_wise: `order` keeps the rows of a row group together, so that each group is fetched once a round.

    Raises:
        FileNotFoundError: no files, or some of a numbered set are missing.
        ValueError: a file is not Parquet, or its rows lack columns, or there are no rows.
    """

    def __init__(self, files: Sequence[str], filesystem: Any, *, origin: str, group_wise: bool):
        self.files, self.filesystem, self.root, self.group_wise = tuple(files), filesystem, origin, group_wise
        check_shards(files, origin)
        self.footers = [self._read_footer(file) for file in files]
        self.groups = [  # (file, row group) of each group of rows
            (number, group) for number, footer in enumerate(self.footers) for group in range(footer.num_row_groups)
        ]
        rows = [self.footers[number].row_group(group).num_rows for number, group in self.groups]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])  # first row of each group, and the end
        if len(self) == 0:
            raise ValueError(f"`root` must hold at least one row; the {len(files)} files of {origin} hold none.")
        self._kept: tuple[int, int, Any] = (-1, -1, None)  # process, group, its table

    def __len__(self) -> int:
        """Count the rows."""
        return int(self.starts[-1])

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw the order of one round, [rows]: every row once; whole groups by chance, and rows by chance in each."""
        if not self.group_wise:
            return permutation(len(self), generator)
        groups = permutation(len(self.groups), generator).tolist()
        rows = [
            self.starts[g] + permutation(int(self.starts[g + 1] - self.starts[g]), generator).numpy() for g in groups
        ]
        return torch.from_numpy(np.concatenate(rows))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one row as a sample, see the top of this file.

        Raises:
            IndexError: there is no such row.
            DataFileError: the file cannot be read any more, or a picture in the row is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in 0 ... {len(self) - 1}; got {index}.")
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        file, place = self.files[self.groups[group][0]], index - int(self.starts[group])
        try:
            row = self._read_group(group).slice(place, 1).to_pylist()[0]
            return sample_of_row(row, origin=self.root)
        except UNREADABLE as error:
            problem = f"must hold whole rows of a build; row {index} cannot be used ({error})"
            raise DataFileError(f"{self.root}/{os.path.basename(file)}", problem) from error

    def _read_group(self, group: int) -> pyarrow.Table:
        process, kept, table = self._kept
        if (process, kept) != (os.getpid(), group):
            number, place = self.groups[group]
            with (
                self.filesystem.open(self.files[number], "rb") as opened,
                pyarrow.parquet.ParquetFile(opened, metadata=self.footers[number], pre_buffer=True) as parquet,
            ):
                table = parquet.read_row_group(place, columns=list(COLUMNS))
            self._kept = (os.getpid(), group, table)
        return table

    def _read_footer(self, file: str) -> pyarrow.parquet.FileMetaData:
        try:
            with self.filesystem.open(file, "rb") as opened, pyarrow.parquet.ParquetFile(opened) as parquet:
                names, footer = set(parquet.schema_arrow.names), parquet.metadata
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"`root` must hold whole Parquet files; got {file}: {error}.") from error
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(
                f"`root` must hold rows of a build with pictures; {file} lacks the columns {missing}. "
                "Builds of labels only get their pictures by datasets_builder.attach."
            )
        return footer


def check_shards(files: Sequence[str], origin: str) -> None:
    """Raise unless there are files, and where they are numbered -00002-of-00008, all of them."""
    if not files:
        raise FileNotFoundError(f"`root` must hold Parquet files, in data/ or at its top; {origin} has none.")
    numbered = [match.groups() for match in map(SHARD_NAME.search, files) if match]
    for total in sorted({total for _, total in numbered}):
        found = {int(number) for number, of in numbered if of == total}
        missing = sorted(set(range(int(total))) - found)
        if missing:
            raise FileNotFoundError(
                f"`root` must hold all {int(total)} files of its set; {origin} lacks {len(missing)} of them, first "
                f"-{missing[0]:05d}-of-{total}.parquet."
            )


def open_parquet_folder(root: str | Path) -> ParquetPairs:
    """Open the rows of a build in a folder: data/*.parquet, or *.parquet at its top.

    Raises:
        FileNotFoundError: no such folder, or no files, or some are missing.
        ValueError: see `ParquetPairs`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be the folder of a build; there is no folder {root}.")
    files = sorted(root.glob("data/*.parquet")) or sorted(root.glob("*.parquet"))
    return ParquetPairs(list(map(str, files)), fsspec.filesystem("file"), origin=str(root), group_wise=False)


def open_hub_pairs(repository: str) -> ParquetPairs:
    """Open the rows of a data set on the Hub, to be fetched group by group when they are needed; nothing is kept.

    Each group of rows is fetched about once a round by all processes together, so its rows come close to each other:
    the order is by groups (about 8 rows), and by rows inside them.

    Args:
        repository: ORG/REPO or ORG/REPO@REVISION. Without a revision it is the newest commit when this is called, so
            name one where a run shall be repeated or resumed exactly.

    Raises:
        FileNotFoundError: the Hub does not give out such a data set or revision, or it has no Parquet files.
        ValueError: see `ParquetPairs`.
    """
    name, _, revision = repository.partition("@")
    try:
        commit = HfApi().dataset_info(name, revision=revision or None).sha
    except (OSError, ValueError) as error:  # the client's errors are of these kinds
        raise FileNotFoundError(
            "`root` must be ORG/REPO or ORG/REPO@REVISION of a data set that the Hub gives out; "
            f"got {repository!r}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        ) from error
    filesystem, top = HfFileSystem(), f"datasets/{name}@{commit}"
    files = sorted(filesystem.glob(f"{top}/data/*.parquet")) or sorted(filesystem.glob(f"{top}/*.parquet"))
    return ParquetPairs(list(map(str, files)), filesystem, origin=f"{name}@{commit}", group_wise=True)


def sample_of_row(row: Mapping[str, Any], *, origin: str = "") -> dict[str, Any]:
    """Turn a row of a build into a sample, see the top of this file.

    A stored 0 px is a true disparity here (sky); the official training takes 0 for invalid, see `sample_of_mfs`.
    """
    pair = decode_pair(row)
    sample: dict[str, Any] = {
        name: torch.from_numpy(np.ascontiguousarray(pair[name]))
        for name in ("disparity", "confidence", "valid_disparity_mask", "left_visible_mask", "right_hole_mask")
    }
    for name in ("left_image", "right_image"):
        sample[name] = torch.from_numpy(np.rint(pair[name] * 255).astype(np.uint8))
    return sample | {"name": f"{origin}/{row['id']}"}


# ---------------------------------------------------------------------------------------------------------------------
# MfS35K
# ---------------------------------------------------------------------------------------------------------------------


class MfsPairs(Dataset[dict[str, Any]]):
    """Samples in the layout of MfS35K, see datasets_builder/mfs35k.py.

    Args:
        root: the folder, which holds list.txt, or a file list in that folder.

    Raises:
        FileNotFoundError: there is no list, or a file that it names is missing; counted here, before any is read.
        ValueError: the list cannot be read.
    """

    def __init__(self, root: str | Path):
        path = Path(root)
        file_list = path / FILE_LIST if path.is_dir() else path
        if not file_list.is_file():
            raise FileNotFoundError(
                f"`root` must be a file list of MfS35K's layout or the folder of {FILE_LIST}; there is no {file_list}."
            )
        self.root = file_list.parent
        self.samples = read_file_list(file_list)
        missing = [name for paths in self.samples for name in paths if not os.path.isfile(self.root / name)]
        if missing:
            count = sum(map(len, self.samples))
            raise FileNotFoundError(
                f"`root` must hold the {count} files that {file_list} names; {len(missing)} are missing, first "
                f"{missing[0]}."
            )

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.samples)

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw the order of one round."""
        return permutation(len(self), generator)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample, see the top of this file. Valid is what is above 0 px, as in the official training.

        Raises:
            DataFileError: a file is gone or cannot be used.
        """
        paths = self.samples[index]
        try:
            found = read_sample(self.root, paths)
        except (ValueError, OSError) as error:
            raise DataFileError(self.root / paths.left_image, f"must be a whole sample ({error})") from error
        sample: dict[str, Any] = {
            name: torch.from_numpy(getattr(found, name)).movedim(-1, 0).contiguous()
            for name in ("left_image", "right_image")
        }
        for name in ("disparity", "confidence", "left_visible_mask", "right_hole_mask"):
            sample[name] = torch.from_numpy(getattr(found, name))[None]
        return sample | {"valid_disparity_mask": sample["disparity"] > 0, "name": found.name}


# ---------------------------------------------------------------------------------------------------------------------
# Data with true disparity
# ---------------------------------------------------------------------------------------------------------------------


class TruePairs(Dataset[dict[str, Any]]):
    """A public stereo data set as samples: fully trusted, and nothing on the right is invented.

    Args:
        dataset: one of stereo_datasets.py.
    """

    def __init__(self, dataset: StereoDataset):
        self.dataset, self.root = dataset, dataset.root

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.dataset)

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw the order of one round."""
        return permutation(len(self), generator)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one sample, see the top of this file.

        Raises:
            DataFileError: a file is gone or cannot be used.
        """
        return trust_pair(self.dataset[index])


def trust_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Make a sample of a pair with true disparity.

    Args:
        pair: left_image, right_image, left_disparity, valid_disparity_mask and name, as stereo_datasets.py gives
            them; unchanged.

    Returns:
        a sample, see the top of this file: confidence 1, no holes; what is visible on the right is seen by warping.
    """
    disparity, valid = pair["left_disparity"], pair["valid_disparity_mask"]
    warp = forward_warp(pair["left_image"][None].float(), disparity[None])
    return {
        "left_image": pair["left_image"],
        "right_image": pair["right_image"],
        "disparity": disparity,
        "confidence": torch.ones_like(disparity),
        "valid_disparity_mask": valid,
        "left_visible_mask": warp.left_visible_mask[0] & valid,
        "right_hole_mask": torch.zeros_like(valid),
        "name": pair["name"],
    }
