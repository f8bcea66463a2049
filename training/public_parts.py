# SPDX-License-Identifier: Apache-2.0
"""Published weights: where they are, under which licence, at which revision, and what they ask of the pipeline.

Everything that is known about other people's weights is in the tables below; what is read from their files is refused
where it is not understood. The only file here that talks to the Hub for weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import httpx  # what the Hub's client raises when nobody answers
from transformers import AutoConfig, AutoImageProcessor, PretrainedConfig
from transformers.utils import logging as transformers_logging

from pipeline_zerostereo import DEPTH_PREDICTIONS

STEREOGEN = "Windsrain/ZeroStereo"
INPAINTING_BASE = "sd2-community/stable-diffusion-2-inpainting"
DEFAULT_DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
BASE_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
BASE_LAYOUTS = ("StereoGen/", "")  # folders of the parts inside a repository: ZeroStereo's, and the plain one


@dataclass(frozen=True)
class KnownRepository:
    """What is known of a repository of weights.

    Attributes:
        revision: commit that an export uses; "main" is resolved to a commit when it runs, and that commit is written.
        licence: identifier of the Hub; None where nobody knows.
        is_stated: the repository itself states the licence.
        note: where the licence is known from, for the card.
    """

    revision: str
    licence: str | None
    is_stated: bool
    note: str


KNOWN_REPOSITORIES = {
    STEREOGEN: KnownRepository(
        "main",
        "openrail++",
        False,
        "as far as known the repository states no licence; fine-tuned from Stable Diffusion 2 inpainting, whose terms "
        "bind what is derived from it",
    ),
    INPAINTING_BASE: KnownRepository(
        "5f74973cbb64c8568780732c17f43eb269d63a0d", "openrail++", True, "as stated on the repository"
    ),
    DEFAULT_DEPTH_MODEL: KnownRepository("main", "apache-2.0", True, "as stated by Depth Anything V2"),
    **{
        f"depth-anything/Depth-Anything-V2-{size}-hf": KnownRepository(
            "main", "cc-by-nc-4.0", True, "as stated by Depth Anything V2: no commercial use"
        )
        for size in ("Base", "Large")
    },
    "LiheYoung/depth-anything-large-hf": KnownRepository("main", "apache-2.0", True, "as stated by Depth Anything"),
}


@dataclass(frozen=True)
class Part:
    """A repository or folder that weights are taken from.

    Attributes:
        name: id of the repository; "local folder NAME" for a folder of this machine.
        revision: the commit; "not versioned" for a folder.
        licence: identifier of the Hub; None where it is not known.
        is_stated: whether its authors state it.
        note: where the licence is known from.
        files: names of the files at that commit; empty for a folder.
        folder: the local folder; None for a repository.
    """

    name: str
    revision: str
    licence: str | None
    is_stated: bool
    note: str
    files: tuple[str, ...] = ()
    folder: Path | None = None


class PartError(ValueError):
    """A part cannot be had, or is not understood; the message is one line."""


def resolve_part(option: str, value: str, revision: str | None) -> Part:
    """Find a repository on the Hub, or a folder, and pin it to a commit.

    Args:
        option: name of the command line option, for messages.
        value: id of a repository or path of a folder; a folder that exists goes first.
        revision: branch, tag or commit; None = the one of the table, else "main".

    Raises:
        PartError: neither exists, or the Hub cannot be reached; or a revision of a folder was asked for.
    """
    if Path(value).is_dir():
        if revision is not None:
            raise PartError(f"`{option}` must be a repository where a revision is given; got the folder {value}.")
        name = f"local folder {Path(value).resolve().name}"  # not its path, which is of this machine only
        return Part(name, "not versioned", None, False, "a local folder, not known", folder=Path(value))
    known = KNOWN_REPOSITORIES.get(value)
    wanted = revision or (known.revision if known else "main")
    try:
        info = HfApi().model_info(value, revision=wanted)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise PartError(_unreachable(option, value, wanted, error)) from error
    if info.sha is None:
        raise PartError(f"`{option}` must have a commit at revision {wanted!r}; the Hub names none for {value}.")
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    if known:
        return Part(value, info.sha, known.licence, known.is_stated, known.note, files)
    licence = info.card_data.get("license") if info.card_data else None
    note = "as its card says" if licence else "its card states no licence"
    return Part(value, info.sha, licence, licence is not None, note, files)


def choose_files(files: tuple[str, ...], folder: str) -> list[str]:
    """Choose what to download of a folder in a repository: settings, and its weights once.

    Safetensors go before pickled weights; variants such as `.fp16.` are left.

    Args:
        files: all names in the repository.
        folder: "unet/", or "" for the top level.
    """
    names = [name for name in files if name.startswith(folder) and "/" not in name[len(folder) :]]
    settings = [name for name in names if name.endswith((".json", ".txt", ".model"))]
    for kind in (".safetensors", ".bin"):
        weights = [name for name in names if name.endswith(kind) and name[len(folder) :].count(".") == 1]
        if weights:
            return settings + weights
    return settings


def fetch_base(
    option: str, part: Part, required: tuple[str, ...] = BASE_PARTS, optional: tuple[str, ...] = ()
) -> Path:
    """Return a local folder with the sub-folders of a base; downloads them if they are on the Hub.

    Args:
        option: name of the command line option, for messages.
        part: the base.
        required: sub-folders that it must have.
        optional: sub-folders that are downloaded too where it has them, and then its model_index.json.

    Raises:
        PartError: it has neither layout of BASE_LAYOUTS, lacks a sub-folder, or cannot be downloaded.
    """
    for layout in BASE_LAYOUTS:
        if part.folder is not None and (part.folder / layout / "unet").is_dir():
            missing = [name for name in required if not (part.folder / layout / name).is_dir()]
            folder = part.folder / layout
        elif any(name.startswith(f"{layout}unet/") for name in part.files):
            missing = [n for n in required if not any(f.startswith(f"{layout}{n}/") for f in part.files)]
            wanted = (*required, *optional)
            chosen = [file for name in wanted for file in choose_files(part.files, f"{layout}{name}/")]
            chosen += [f"{layout}model_index.json"] if optional else []
            folder = None if missing else _download(option, part, chosen) / layout
        else:
            continue
        if folder is None or missing:
            raise PartError(f"`{option}` must have the folders {list(required)}; {part.name} lacks {missing}.")
        return folder
    raise PartError(
        f"`{option}` must have the folders {list(required)} at its top or in StereoGen/; {part.name} has neither."
    )


def fetch_depth_model(option: str, part: Part, weights: bool = True) -> Path:
    """Return a local folder with config, processor and, unless told otherwise, weights of a depth model.

    Raises:
        PartError: it lacks config or processor, or cannot be downloaded.
    """
    names = set(part.files) if part.folder is None else {path.name for path in part.folder.iterdir()}
    missing = [name for name in ("config.json", "preprocessor_config.json") if name not in names]
    if missing:
        raise PartError(f"`{option}` must be a depth model of transformers; {part.name} lacks {missing}.")
    chosen = [name for name in choose_files(part.files, "") if weights or name.endswith(".json")]
    return part.folder or _download(option, part, chosen)


def push_folder(folder: Path, repo_id: str, private: bool = False, *, message: str) -> str:
    """Upload a folder to a model repository of the Hub, made if missing, in one commit; return the commit's URL."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


def _download(option: str, part: Part, files: list[str]) -> Path:
    """Download files of a repository at its commit into the Hub's cache."""
    try:
        return Path(snapshot_download(part.name, revision=part.revision, allow_patterns=files))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise PartError(_unreachable(option, part.name, part.revision, error)) from error


def _unreachable(option: str, name: str, revision: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0] or "no reason given"
    return (
        f"`{option}` must be a local folder or a repository that the Hub gives out; got {name!r} at revision "
        f"{revision!r}: {type(error).__name__}: {reason}"
    )


# --- what a depth model asks of the pipeline ---


@dataclass(frozen=True)
class DepthSettings:
    """Configuration of `ZeroStereoPipeline` that belongs to a depth model; the names are the pipeline's."""

    depth_prediction: str
    depth_mean: tuple[float, ...]
    depth_std: tuple[float, ...]
    depth_size_multiple: int
    default_depth_resolution: int
    depth_position_embedding: str


KNOWN_KINDS = (
    "depth_anything (relative: inverse depth; metric: metres), glpn (metres), zoedepth (metres), "
    "dpt with a BEiT or Swin v2 backbone (MiDaS 3.1: inverse depth)"
)
MIDAS_BACKBONES = ("beit", "swinv2")
INVERSE_RESCALE = 255


def read_depth_settings(
    folder: Path, prediction: str | None = None, resolution: int | None = None, size_multiple: int | None = None
) -> DepthSettings:
    """Read what a depth model asks for from its config.json and preprocessor_config.json; nothing is guessed.

    Args:
        folder: of the depth model.
        prediction: the user's word for what it predicts, one of DEPTH_PREDICTIONS; None = by its config.
        resolution: the user's bound of its short side in px, 0 = none; None = short side of its processor's size, and
            none where the processor has no size.
        size_multiple: the user's; None = least common multiple of patch size and the processor's multiples.

    Raises:
        PartError: no depth model or processor that transformers knows; kind of prediction not known; a processor that
            does not scale to [0,1] first; a size multiple that cannot be read; a DPT that takes squares only.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        processor = _load_processor(folder)
    except (OSError, ValueError, KeyError) as error:
        raise PartError(f"`--depth-model` must be a depth model of transformers; {_first_line(error)}") from error
    _check_aspect_ratios(config)
    chosen = prediction or kind_of_prediction(config)
    multiple = size_multiple or _size_multiple(config, processor)
    mean, std = _normalization(processor)
    if resolution is None:
        resolution = _processor_resolution(processor)
    is_official = config.model_type == "depth_anything" and chosen == "inverse_depth" and _backbone(config) == "dinov2"
    return DepthSettings(
        chosen, mean, std, multiple, resolution, depth_position_embedding="official" if is_official else "transformers"
    )


def _load_processor(folder: Path) -> Any:
    """Load the image processor; its notes on a torchvision that nobody needs are not shown."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil")
    finally:
        transformers_logging.set_verbosity(verbosity)


def kind_of_prediction(config: PretrainedConfig) -> str:
    """Tell from the configuration of a depth model what it predicts, one of DEPTH_PREDICTIONS.

    Raises:
        PartError: the configuration does not say it. That includes DPT on DINOv2, whose published weights predict
            metres after training on one data set, while their configuration is that of any DPT.
    """
    kind = config.model_type
    if kind == "depth_anything":
        known = {"relative": "inverse_depth", "metric": "metric_depth"}
        if config.depth_estimation_type in known:
            return known[config.depth_estimation_type]
    elif kind in ("glpn", "zoedepth"):
        return "metric_depth"
    elif kind == "dpt" and _backbone(config) in MIDAS_BACKBONES:
        return "inverse_depth"
    found = f"{kind} with a {_backbone(config)} backbone" if kind == "dpt" else kind
    raise PartError(
        f"`--depth-model` must be of a kind whose prediction is known: {KNOWN_KINDS}; got {found}. "
        f"Say what it predicts with --depth-prediction {'|'.join(DEPTH_PREDICTIONS)}."
    )


def _check_aspect_ratios(config: PretrainedConfig) -> None:
    """Refuse a DPT of transformers that would take the patches of any picture for a square."""
    if config.model_type == "dpt" and (config.is_hybrid or config.backbone_config is None):
        raise PartError(
            "`--depth-model` must take pictures of any aspect ratio; got a DPT on a plain or hybrid vision "
            "transformer, which transformers runs on squares only. MiDaS 3.1 on BEiT or Swin v2 takes any."
        )


def _backbone(config: PretrainedConfig) -> str | None:
    return getattr(getattr(config, "backbone_config", None), "model_type", None)


def _normalization(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel for pictures in [0,1]; 0 and 1 where the processor has none."""
    factor = getattr(processor, "rescale_factor", None)
    if not processor.do_rescale or factor is None or not math.isclose(factor * INVERSE_RESCALE, 1, rel_tol=1e-6):
        raise PartError(
            "`--depth-model` must have a processor that scales pictures from 0..255 to 0..1; "
            f"got do_rescale={processor.do_rescale}, rescale_factor={factor}."
        )
    if not processor.do_normalize:
        return (0.0,) * 3, (1.0,) * 3
    mean, std = processor.image_mean, processor.image_std
    if mean is None or std is None or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise PartError(
            f"`--depth-model` must have a processor with mean and positive std of 3 channels; got {mean} and {std}."
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _size_multiple(config: PretrainedConfig, processor: Any) -> int:
    """Least common multiple of what the network's patches and its processor ask for."""
    backbone = getattr(config, "backbone_config", None)
    patch = getattr(config, "patch_size", None) if backbone is None else getattr(backbone, "patch_size", None)
    asked = [patch, getattr(processor, "ensure_multiple_of", None), getattr(processor, "size_divisor", None)]
    if isinstance(patch, int) and config.model_type == "dpt":
        # Its neck halves the map of patches and doubles it again: odd counts come back one too large and shifted.
        # Swin halves its own map once per stage beside.
        asked.append(2 * patch if _backbone(config) != "swinv2" else patch * 2 ** len(backbone.depths))  # type: ignore[union-attr]
    numbers = [number for number in asked if isinstance(number, int) and number > 1]
    if not numbers:
        raise PartError(
            "`--depth-model` must say which sizes it takes (patch_size, ensure_multiple_of or size_divisor); "
            f"{config.model_type} says none. Say it with --depth-size-multiple."
        )
    return math.lcm(*numbers)


def _processor_resolution(processor: Any) -> int:
    """Short side in px of the size that the processor resizes to; 0 where it has none."""
    size = getattr(processor, "size", None)
    sides = [getattr(size, side, None) for side in ("height", "width", "shortest_edge")]
    return min((int(side) for side in sides if side), default=0)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
