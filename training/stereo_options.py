# SPDX-License-Identifier: Apache-2.0
"""Options of the stereo training, the paper's preset, and the network made ready.

It knows nothing of how data are read (pair_mixture.py), of a step (stereo_training.py) or of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from training.data_sources import DataSource, parse_source
from training.pair_mixture import EXAMPLE_SOURCE, KINDS
from training.run import RunConfig, changed, option, require
from training.stereo_inference import load_stereo_network
from training.stereo_loss import PHOTOMETRIC_RANGES, PHOTOMETRIC_WEIGHT
from training.stereo_networks.igev_stereo import IGEVStereo
from training.stereo_networks.raft_stereo import RAFTStereo
from training.stereo_training import TRAINING_ITERATIONS, VALIDATION_ITERATIONS, StepOptions

StereoNetwork = RAFTStereo | IGEVStereo

NETWORKS: Mapping[str, type[RAFTStereo] | type[IGEVStereo]] = {"raft": RAFTStereo, "igev": IGEVStereo}
MAX_DISPARITY_PX = {"raft": 700, "igev": 192}  # of the official training
OFFICIAL_SUFFIXES = (".pth", ".safetensors")
SMALLEST_CROP_PX = 32  # what the networks pad smaller pictures to

# ZeroStereo (arXiv 2501.08654) and its official script: 8 pairs a step over all processes. Nothing is known of the
# weight decay but that the optimiser is AdamW: .01 is torch's default.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "batch_size": 8,
        "total_batch_size": 8,
        "max_steps": 200_000,
        "learning_rate": 2e-4,
        "schedule": "one-cycle",
        "warmup_steps": 2000,
        "weight_decay": 0.01,
        "max_gradient_norm": 1.0,
        "ema_decay": None,
        "mixed_precision": "fp16",
        "crop_size": (384, 512),
        "iterations": 22,
        "validation_iterations": 32,
        "loss": "zerostereo",
        "photometric_range": 255,
        "photometric_weight": 0.1,
        "weather": None,
        "max_disparity_px": None,
        "save_every_steps": 5000,
        "seed": 666,
    }
}


@dataclass(frozen=True, kw_only=True)
class StereoConfig(RunConfig):
    """Options of `train_stereo`."""

    network: Literal["raft", "igev"] | None = option(
        None, help="train this network from random weights; none = start from --base", group="network"
    )
    base: str | None = option(
        None,
        help="what to start from: a folder or repository ORG/REPO[@REVISION] of this project's networks, or an "
        "official checkpoint (.pth, .safetensors); none = --network from random weights",
        group="network",
    )
    trunk_channels: tuple[int, ...] = option(
        (64, 96, 128),
        help="raft: channels of the encoders at full, half and quarter size",
        group="network",
        at_least=1,
    )
    feature_channels: int = option(256, help="raft: channels of the features compared", group="network", at_least=1)
    hidden_channels: int = option(128, help="channels of each GRU, even", group="network", at_least=4)
    correlation_levels: int | None = option(
        None, help="levels of the correlation pyramid; none = 4 of raft, 2 of igev", group="network", at_least=1
    )
    correlation_radius: int = option(4, help="reach of a lookup, px of its level", group="network", at_least=1)
    max_disparity_px: int | None = option(
        None,
        help="larger disparities are not learnt; of igev from random weights also the end of the cost volume; none = "
        "700 of raft, 192 or that of --base of igev",
        group="network",
        at_least=1,
    )
    iterations: int = option(TRAINING_ITERATIONS, help="refinements in training", group="network", at_least=1)
    validation_iterations: int = option(
        VALIDATION_ITERATIONS, help="refinements in validation", group="network", at_least=1
    )

    data: tuple[str, ...] = option(
        help="KIND:ROOT:WEIGHT, more than once for a mixture; kinds: pairs (folder of a build), hub "
        "(ORG/REPO[@REVISION] of a build, streamed), mfs35k (folder with list.txt, or a file list), sceneflow, "
        "tartanair, crestereo, vkitti2, fallingthings, and procedural:WEIGHT",
        group="data",
    )
    crop_size: tuple[int, int] = option(
        (384, 512), help="height and width of a sample, px", group="data", at_least=SMALLEST_CROP_PX
    )
    weather: Literal["right", "both"] | None = option(
        None,
        help="show half of the samples in rain, fog, low light or noise, in the right view or in both; none = not",
        group="data",
    )
    workers: int = option(4, help="processes that load data, for each training process", group="data", at_least=0)
    validation_scenes: int = option(8, help="held-out scenes, rendered at the start", group="data", at_least=1)

    loss: Literal["zerostereo", "supervised", "unsupervised"] = option(
        "zerostereo",
        help="disparity where it is trusted and pictures elsewhere; disparity alone; pictures alone",
        group="optimisation",
    )
    photometric_range: int = option(
        255, help="255 compares pictures as published, 1 in the range that SSIM is meant for", group="optimisation"
    )
    photometric_weight: float = option(
        PHOTOMETRIC_WEIGHT, help="weight mu of the pictures", group="optimisation", at_least=0
    )
    batch_size: int = changed("batch_size", 8)
    max_steps: int = changed("max_steps", 20_000)
    learning_rate: float = changed("learning_rate", 2e-4)
    schedule: Literal["cosine", "one-cycle"] = changed("schedule", "one-cycle")
    ema_decay: float | None = changed("ema_decay", None)

    push_to_hub: str | None = option(None, help="repository ORG/REPO that gets the result", group="run")
    licence: str | None = option(
        None, help="of the trained weights, an identifier of the Hub, for the card", group="run"
    )

    def __post_init__(self):
        """Check ranges, and that network, data, loss and publishing make sense together."""
        super().__post_init__()
        require(len(self.crop_size) == 2, "crop_size", "must be height and width", self.crop_size)
        require(len(self.sources()) > 0, "data", "must name at least one source", self.data)
        require(
            self.photometric_range in PHOTOMETRIC_RANGES,
            "photometric_range",
            f"must be one of {PHOTOMETRIC_RANGES}",
            self.photometric_range,
        )
        require(
            self.push_to_hub is None or self.licence is not None,
            "licence",
            "must say what the licence of published weights is, where `push_to_hub` is given; data and --base bind "
            "you, see their cards",
            self.licence,
        )
        self._check_network()

    def _check_network(self) -> None:
        """Refuse two networks or none, and sizes that the network does not have or that --base has fixed."""
        require(
            (self.network is None) != (self.base is None),
            "network",
            "or `base` must be given, and not both",
            (self.network, self.base),
        )
        sizes = ("trunk_channels", "feature_channels", "hidden_channels", "correlation_levels", "correlation_radius")
        fixed = {None: sizes, "igev": sizes[:2], "raft": ()}[self.network]
        defaults = {field.name: field.default for field in fields(self)}
        for name in fixed:
            owner = "is fixed by `base`" if self.network is None else "is not an option of igev"
            require(getattr(self, name) == defaults[name], name, f"must be left out: it {owner}", getattr(self, name))

    def sources(self) -> list[DataSource]:
        """Return what `data` names."""
        return [parse_source(text, KINDS, EXAMPLE_SOURCE) for text in self.data]

    def step_options(self, network: StereoNetwork) -> StepOptions:
        """Return the options of a step for a network."""
        return StepOptions(
            iterations=self.iterations,
            max_disparity_px=self.max_disparity_px or default_max_disparity_px(network),
            variant=self.loss,
            photometric_range=self.photometric_range,
            photometric_weight=self.photometric_weight,
        )


def default_max_disparity_px(network: StereoNetwork) -> int:
    """Return the largest disparity that is learnt unless told otherwise, px."""
    return network.config.max_disparity_px if isinstance(network, IGEVStereo) else MAX_DISPARITY_PX["raft"]


def make_network(config: StereoConfig) -> StereoNetwork:
    """Make the network that learns, in float32: of random weights, which come from torch's global seed, or `base`.

    Raises:
        ValueError: sizes that a network cannot have, or see `load_network`.
        FileNotFoundError: see `load_network`.
    """
    if config.base is not None:
        return load_network(config.base)
    sizes: dict[str, Any] = {
        "hidden_channels": config.hidden_channels,
        "correlation_radius": config.correlation_radius,
    }
    if config.correlation_levels is not None:
        sizes["correlation_levels"] = config.correlation_levels
    if config.network == "raft":
        return RAFTStereo(config.trunk_channels, config.feature_channels, **sizes)
    return IGEVStereo(config.max_disparity_px or MAX_DISPARITY_PX["igev"], **sizes)


def load_network(reference: str) -> StereoNetwork:
    """Load a network to start from, in float32; which one it is is seen from the reference itself.

    Args:
        reference: a folder that `save_pretrained` wrote, ORG/REPO or ORG/REPO@REVISION of such a folder on the Hub, or
            a file that `convert_official_checkpoint` reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no network is to be had there, or it is none of this project's.
    """
    path = Path(reference)
    if path.suffix in OFFICIAL_SUFFIXES and not path.exists():
        raise FileNotFoundError(f"`base` must be a file that exists; got {reference}.")
    source, _, revision = (reference, "", "") if path.exists() else reference.partition("@")
    try:
        network: Any = load_stereo_network(source, revision or None)
    except (OSError, ValueError) as error:
        raise ValueError(
            "`base` must be a folder or repository ORG/REPO[@REVISION] with a stereo network, or an official "
            f"checkpoint (.pth, .safetensors); got {reference!r}: {str(error).strip().splitlines()[0]}"
        ) from error
    return network.float()
