# SPDX-License-Identifier: Apache-2.0
"""Join your own copies of photographs to the rows of a build that was published without them (`--labels-only`).

    from datasets import load_dataset
    from datasets_builder.attach import attach_photos

    labels = load_dataset("USER/LABELS", split="train", streaming=True)
    pairs = attach_photos(labels, "photos/")

A photograph belongs to the row whose id is the hash of its file, whatever its name. The right views can be made again,
too, with the weights that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from datasets import Dataset, Features, Image, IterableDataset
from torch import Tensor

from datasets_builder.pairs import decode_photo, weights_id
from datasets_builder.plan import BuildOptions, Examined, PlannedPhoto, fill_of, photo_id
from datasets_builder.schema import FEATURES, decode_pair, encode_view
from datasets_builder.sources import FolderSource
from pipeline_zerostereo import (
    Photographs,
    StereoImageProcessor,
    ZeroStereoPipeline,
    forward_warp,
    sample_disparity_scale,
)

Row = dict[str, Any]
NAMED_IDS = 3  # missing photographs that an error names


def index_photos(folder: str | Path) -> dict[str, Path]:
    """Hash every photograph below a folder; returns path by id.

    Raises:
        FileNotFoundError: no such folder, or no photograph in it.
    """
    source = FolderSource(folder)
    return {photo_id(read()): source.root / str(photo.locator) for photo, read in source.photos()}


@overload
def attach_photos(
    rows: Dataset | IterableDataset,
    photos: str | Path,
    pipe: ZeroStereoPipeline | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    missing: Literal["raise", "skip"] = "raise",
) -> IterableDataset: ...


@overload
def attach_photos(
    rows: Iterable[Mapping[str, Any]],
    photos: str | Path,
    pipe: ZeroStereoPipeline | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    missing: Literal["raise", "skip"] = "raise",
) -> Iterator[Row]: ...


def attach_photos(
    rows: Any,
    photos: str | Path,
    pipe: ZeroStereoPipeline | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    missing: Literal["raise", "skip"] = "raise",
) -> Any:
    """Give rows their photographs, and on request their right views.

    Every photograph is hashed, and the ids of all rows are read, before this returns; the pictures are read when the
    rows are.

    Args:
        rows: of a `--labels-only` build: a Dataset, an IterableDataset, or anything that can be iterated over twice.
        photos: folder with your copies, any nesting, any names.
        pipe: the pipeline with the weights and the dtype that made the rows: makes `right_image` again. None = no
            right views.
        options: `options` of the build's manifest.json: how holes were filled. Needed with `pipe`.
        missing: what to do with rows whose photograph is not there: "raise", or "skip" them.

    Returns:
        IterableDataset for data sets, else an iterator of rows. New columns, as in a full build: `left_image`, the
        photograph as the pipeline sees it, without metadata, and with `pipe` `right_image`, which on the machine of
        the build has the same bytes if `batch_size` was 1 and the number of threads is the same; otherwise invented
        pixels differ by rounding. Photographs that were filled anew by `--retry-rejected --fill` are filled here as
        `options` say.

    Raises:
        FileNotFoundError: no photograph in the folder; or photographs are missing: their number and the first ids.
        TypeError: `rows` can be iterated over only once.
        ValueError: another word for `missing`, or `pipe` without `options`; later, at its row: other weights than
            those of the row, or a photograph that cannot be decoded here.
    """
    if missing not in ("raise", "skip"):
        raise ValueError(f'`missing` must be "raise" or "skip"; got {missing!r}.')
    if pipe is not None and options is None:
        raise ValueError("`options` must be given with `pipe`: the `options` of the build's manifest.json; got None.")
    if iter(rows) is rows:
        raise TypeError(
            f"`rows` must be something that can be iterated over twice; got {type(rows).__name__}. Make a list of it."
        )
    paths = index_photos(photos)
    lacking = [id for id in _ids(rows) if id not in paths]
    if lacking and missing == "raise":
        raise FileNotFoundError(
            f"`photos` must hold the photograph of every row; {len(lacking)} are missing, first ids "
            f'{", ".join(lacking[:NAMED_IDS])}. missing="skip" leaves these rows out.'
        )
    build = None if options is None else BuildOptions(**options)
    attach = partial(
        attach_photo, paths=paths, pipe=pipe, options=build, own_weights=None if pipe is None else weights_id(pipe)
    )
    if not isinstance(rows, (Dataset, IterableDataset)):
        return ({**row, **_opened(row, attach)} for row in rows if row["id"] in paths)
    stream = rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows
    if lacking:
        stream = stream.filter(partial(_is_there, paths=paths), input_columns=["id"])
    made = ("left_image", "right_image") if pipe is not None else ("left_image",)
    features = Features({**(stream.features or {}), **{name: FEATURES[name] for name in made}})
    return stream.map(partial(_opened, attach=attach), features=features)


def _ids(rows: Any) -> Iterator[str]:
    """Read the ids of rows without their pictures."""
    if isinstance(rows, (Dataset, IterableDataset)):
        rows = rows.select_columns(["id"])
    return (row["id"] for row in rows)


def _is_there(id: str, paths: Mapping[str, Path]) -> bool:
    return id in paths


def _opened(row: Mapping[str, Any], attach: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Row:
    """Return the new columns of a row as pictures of Pillow, as data sets hand them out."""
    return {name: Image(mode="RGB").decode_example(value) for name, value in attach(row).items()}


def attach_photo(
    row: Mapping[str, Any],
    paths: Mapping[str, Path],
    pipe: ZeroStereoPipeline | None = None,
    options: BuildOptions | None = None,
    own_weights: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Make the new columns of one row, as files: `left_image`, and with `pipe` `right_image`.

    Args:
        row: in any form that `decode_pair` takes.
        paths: of the photographs, by id.
        pipe: see `attach_photos`.
        options: of the build; needed with `pipe`.
        own_weights: weights_id of `pipe`.

    Raises:
        ValueError: the row was made by other weights.
        UnusablePhotoError: the photograph cannot be decoded here as it was by the build.
    """
    size = (int(row["width"]), int(row["height"]))
    path = paths[row["id"]]
    planned = PlannedPhoto(row["id"], path.name, row["source"], row["license"], row["attribution"], *size, 0, "whole")
    decoded = decode_photo(path.read_bytes(), planned)
    made = {"left_image": {"bytes": decoded.published, "path": None}}
    if pipe is None or options is None:
        return made
    if row["weights_id"] != own_weights:
        raise ValueError(
            f"`pipe` must have the weights that made the rows, {row['weights_id']} for {row['id']}; got {own_weights}."
        )
    pair = decode_pair(row)
    right = make_right_view(
        pipe,
        decoded.photographs,
        torch.from_numpy(pair["disparity"])[None],
        seed=int(row["seed"]),
        fill=fill_of(Examined(row["id"], *size), options),
        steps=options.steps,
    )
    view = StereoImageProcessor.postprocess(right, "pil", decoded.photographs.icc_profiles)[0]
    return {**made, "right_image": {"bytes": encode_view(view), "path": None}}


@torch.no_grad()
def make_right_view(
    pipe: ZeroStereoPipeline, photographs: Photographs, disparity: Tensor, seed: int, fill: str, steps: int | None
) -> Tensor:
    """Make one right view again from the stored disparity, with the random numbers of its pair.

    Args:
        pipe: the pipeline.
        photographs: one photograph.
        disparity: [1,1,H,W] float32, px, as stored.
        seed: of the row. The scale was drawn from it first, so it is drawn here, too; then follows the noise.
        fill: as in the pipeline.
        steps: denoising steps; None = as the weights are configured.

    Returns:
        [1,3,H,W] float32 in [0,1], in the colours of the photograph.
    """
    generators = [torch.Generator().manual_seed(seed)]
    sample_disparity_scale(1, generators)
    pixels = photographs.pixels.to(pipe.device)
    warp = forward_warp(pixels, disparity.to(pixels))
    return pipe.inpaint(
        Photographs(warp.right_image, photographs.icc_profiles),
        warp.right_hole_mask,
        warp.right_disparity,
        fill=fill,
        num_inference_steps=None if fill == "background" else steps,
        generator=generators,
    )
