# SPDX-License-Identifier: Apache-2.0
"""The outside of a recurrent stereo network: pictures in, disparity out, whatever the network.

`RecurrentStereo` checks and pads the pictures, runs the loop, stops early if asked, and gives both networks one
convention: positive disparity in pixels, [B,1,H,W], left view. What is inside the loop is the subclass's.

It is a diffusers `ModelMixin` with `ConfigMixin` rather than a `PyTorchModelHubMixin`: the folders are those of every
other network of this project (`config.json`, `diffusion_pytorch_model.safetensors`), loading takes `dtype=`,
`variant=` and `revision=`, and the config names the class. It is made stricter in one thing: weights that lack a
tensor or have one too many are refused, where diffusers warns and goes on with random numbers.

Letters: B batch, H W pixels, h w a quarter of the padded ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from pipeline_zerostereo import pad_to_multiple, unpad
from training.stereo_networks.layers import UPSAMPLING, Context

SIZE_MULTIPLE = 32  # px; pictures are padded to it by repeating their borders
DEFAULT_ITERATIONS = 32  # of the published evaluation; training uses 22
CORRELATIONS = ("all_pairs", "on_the_fly")
MAX_LEVELS = 4  # at the smallest width, 32 px, the coarsest of 4 levels has one column


class StereoOutput(NamedTuple):
    """What a network gives for a batch of pairs."""

    disparity: Tensor  # [B,1,H,W], px, left view, float32; the last refinement
    refinements: list[Tensor]  # in training, one [B,1,H,W] per iteration, the last one is `disparity`; else empty
    initial_disparity: Tensor | None  # [B,1,H,W], px, in training and where the network makes one (IGEV-Stereo)
    iterations: int  # that were run; fewer than asked for after an early stop


class LoopState(NamedTuple):
    """What a network hands to the loop."""

    hidden: list[Tensor]  # of the GRUs, fine to coarse
    context: list[Context]
    look_up: Callable[[Tensor], Tensor]  # disparity [B,1,h,w] -> correlations [B,channels,h,w]
    disparity: Tensor  # [B,1,h,w], px at width w, to begin with
    guide: Tensor | None  # what the up-sampling needs of the picture
    initial_disparity: Tensor | None  # at full size


def check_pair(left_image: Any, right_image: Any) -> None:
    """Raise unless both are floating tensors [B,3,H,W] of one shape, type and device."""
    for name, image in (("left_image", left_image), ("right_image", right_image)):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"`{name}` must be a floating point tensor with values in 0..255; got {kind}.")
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"`{name}` must have the shape [B,3,H,W], none of them 0; got {list(image.shape)}.")
    if right_image.shape != left_image.shape:
        raise ValueError(
            f"`right_image` must have the shape of `left_image` {list(left_image.shape)}; "
            f"got {list(right_image.shape)}."
        )


def check_sizes(hidden_channels: int, correlation_levels: int, correlation_radius: int) -> None:
    """Raise unless a network of these sizes can be built and works on the smallest picture."""
    if hidden_channels < 4 or hidden_channels % 2:
        raise ValueError(f"`hidden_channels` must be even and at least 4; got {hidden_channels}.")
    if not 1 <= correlation_levels <= MAX_LEVELS:
        raise ValueError(f"`correlation_levels` must be 1 to {MAX_LEVELS}; got {correlation_levels}.")
    if correlation_radius < 1:
        raise ValueError(f"`correlation_radius` must be at least 1; got {correlation_radius}.")


def check_loop(iterations: Any, correlation: str, stop_below_px: float | None, training: bool) -> None:
    """Raise unless the loop's arguments make sense together."""
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
        raise ValueError(f"`iterations` must be a whole number of at least 1; got {iterations!r}.")
    if correlation not in CORRELATIONS:
        raise ValueError(f"`correlation` must be one of {', '.join(CORRELATIONS)}; got {correlation!r}.")
    if stop_below_px is not None and training:
        raise ValueError("`stop_below_px` must be None in training, where all refinements are needed; call eval().")
    if stop_below_px is not None and not stop_below_px > 0:
        raise ValueError(f"`stop_below_px` must be positive, or None for no early stop; got {stop_below_px!r}.")


class RecurrentStereo(ModelMixin, ConfigMixin):
    """Stereo matching by repeated refinement; `RAFTStereo` and `IGEVStereo` say what is refined how."""

    @abstractmethod
    def prepare(self, left: Tensor, right: Tensor, all_pairs: bool) -> LoopState:
        """Look at both pictures, [B,3,H,W] in [-1,1], H and W multiples of 32."""

    @abstractmethod
    def refine(
        self, hidden: list[Tensor], context: list[Context], lookup: Tensor, disparity: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the next hidden states and what to add to the disparity, [B,1,h,w], px at width w."""

    @abstractmethod
    def enlarge(self, disparity: Tensor, hidden: Tensor, guide: Tensor | None) -> Tensor:
        """Bring a disparity [B,1,h,w] to full size with the finest hidden state: [B,1,4h,4w], px at width 4w."""

    def forward(
        self,
        left_image: Tensor,
        right_image: Tensor,
        iterations: int = DEFAULT_ITERATIONS,
        *,
        correlation: str = "all_pairs",
        stop_below_px: float | None = None,
    ) -> StereoOutput:
        """Estimate the disparity of rectified pairs.

        Convention: a left pixel at column x with disparity d is at column x - d of the right picture.

        Args:
            left_image: [B,3,H,W], RGB, float, 0..255; any H and W.
            right_image: the same shape.
            iterations: refinements, at least 1.
            correlation: "all_pairs" keeps all correlations of a row with a row: fast, but memory grows with the width
                squared. "on_the_fly" computes them anew in each refinement, a few rows at a time, and looks at the
                pictures one after the other: for large pictures. The results are equal but for rounding.
            stop_below_px: end when the mean change of the disparity, in px of the padded picture, is below this for
                every pair of the batch. None: run all iterations. Not in training.

        Returns:
            StereoOutput. In training mode (`train()`) with all refinements; in evaluation mode only the last is
            brought to full size. Everything in float32, under autocast too.

        Raises:
            TypeError: a picture is no floating tensor.
            ValueError: shapes, iterations, correlation or stop_below_px break a rule above.

        Degenerate cases: pictures smaller than 32x32, down to 1x1, are padded by repeating their borders.
        """
        check_pair(left_image, right_image)
        check_loop(iterations, correlation, stop_below_px, self.training)
        left, padding = pad_to_multiple(left_image, SIZE_MULTIPLE)
        right, _ = pad_to_multiple(right_image, SIZE_MULTIPLE)
        left, right = (self.normalize(image) for image in (left, right))
        state = self.prepare(left, right, correlation == "all_pairs")
        hidden, disparity = state.hidden, state.disparity
        refinements = []
        done = 0
        while done < iterations:
            disparity = disparity.detach()
            hidden, change = self.refine(hidden, state.context, state.look_up(disparity), disparity)
            disparity = disparity + change.float()
            done += 1
            if self.training:
                refinements.append(unpad(self.enlarge(disparity, hidden[0], state.guide), padding))
            elif stop_below_px is not None and UPSAMPLING * largest_mean(change) < stop_below_px:
                break
        final = refinements[-1] if refinements else unpad(self.enlarge(disparity, hidden[0], state.guide), padding)
        initial = None if state.initial_disparity is None else unpad(state.initial_disparity, padding)
        return StereoOutput(final, refinements, initial, done)

    def normalize(self, image: Tensor) -> Tensor:
        """0..255 -> [-1,1] in the type of the weights, channels last in memory: what convolutions like best."""
        image = 2 * (image.float() / 255) - 1
        return image.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def freeze_batch_norm(self) -> None:
        """Let `BatchNorm2d` use and keep its running statistics in training, as the official training does.

        `train()` undoes it: call it afterwards. The `BatchNorm3d` of IGEV-Stereo goes on learning.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load as diffusers does, but refuse weights that lack a tensor or have one too many.

        Args:
            pretrained_model_name_or_path: a folder written by `save_pretrained`, or a repository of the Hub.
            kwargs: what `diffusers.ModelMixin.from_pretrained` takes.

        Raises:
            ValueError: names differ; official checkpoints go through `convert_official_checkpoint`.
        """
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        model, info = loaded
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise ValueError(
                f"`pretrained_model_name_or_path` must hold the weights of a {cls.__name__}; in "
                f"{pretrained_model_name_or_path} are missing: {missing}, and unexpected: {unexpected}. "
                "Official checkpoints are read by `convert_official_checkpoint`."
            )
        return (model, info) if with_info else model


def largest_mean(change: Tensor) -> float:
    """Return the largest mean size of change, px at width w, among the pairs of a batch."""
    return float(change.detach().float().abs().flatten(1).mean(1).max())
