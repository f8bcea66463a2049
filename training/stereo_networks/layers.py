# SPDX-License-Identifier: Apache-2.0
"""What RAFT-Stereo and IGEV-Stereo share: encoders, correlation lookup, recurrent update, up-sampling.

Tensor functions first, modules after them. Nothing here knows of files, losses or training.

Modules and parameters carry the names of the official checkpoints (princeton-vl/RAFT-Stereo, gangweiX/IGEV), with one
exception: where the official residual block names one normalisation twice (`norm3` and `downsample.1`), it is `norm3`
here, so every tensor has one name. The code is written from the papers (RAFT-Stereo, arXiv 2109.07547; IGEV-Stereo,
arXiv 2303.06615) and tested against numbers that the official networks produced.

Letters: B batch, C channels, H W pixels (multiples of 32), h w a quarter of them, S places along a row, R radius,
T = 2R + 1 taps, L levels. Convention: disparity is positive, in pixels of the tensor's own width, of the left view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

UPSAMPLING = 4  # the recurrent part works at a quarter of the picture
NEIGHBOURS = 9  # a full-size disparity is a weighted mean of the 3x3 coarse ones around it
ON_THE_FLY_BYTES = 2**26  # of correlations that exist at a time when they are not kept

Context = tuple[Tensor, Tensor]  # what a ConvGRU adds: [B,2C,h,w] to its gates, [B,C,h,w] to its candidate


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switch autocast off: dot products over hundreds of channels and places in pixels need float32."""
    return torch.autocast(device.type, enabled=False)


def halve(x: Tensor) -> Tensor:
    """Average 3x3 cells at stride 2; the zeros beyond the border count. [B,C,h,w] -> [B,C,ceil(h/2),ceil(w/2)]."""
    return F.avg_pool2d(x, 3, stride=2, padding=1)


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of `like`, corners on corners."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


def sample_taps(values: Tensor, position: Tensor, radius: int) -> Tensor:
    """Sample rows at 2R+1 places one apart around a position, linearly, zero beyond the ends.

    Args:
        values: [N,S+2,C]; the first and the last of the S+2 places are zero: they stand for all that lies outside.
        position: [N], of the middle tap, counted from the first of the S inner places; any real number.
        radius: R.

    Returns:
        [N,2R+1,C]. Nothing flows back into `position`.
    """
    places, channels = values.shape[1:]
    reach = radius + 2.0  # farther outside than this, every tap is zero whatever the position
    position = position.detach().clamp(-reach, places - 3 + reach)
    below = position.floor()
    offsets = torch.arange(-radius, radius + 2, device=position.device)
    index = (below.long()[:, None] + offsets + 1).clamp(0, places - 1)  # [N,2R+2]
    taps = values.gather(1, index[:, :, None].expand(-1, -1, channels))  # [N,2R+2,C]
    return torch.lerp(taps[:, :-1], taps[:, 1:], (position - below)[:, None, None].to(taps.dtype))


class CorrelationLookup:
    """Dot products of left features with right features around x - disparity, at L widths of the right ones.

    Level i sees the right features averaged over 2^i columns; since a mean of dot products is the dot product with
    the mean, no volume of correlations has to be pooled. Calling it gives, for a disparity [B,1,h,w], one tensor
    [B*h*w,T] per level, tap k at (x - disparity) / 2^i - R + k, float32.

    Args:
        left: [B,C,h,w], features of the left picture.
        right: [B,C,h,w], of the right one.
        levels: L; w must be at least 2^(L-1).
        radius: R.
        all_pairs: True keeps every correlation, 4 B h w (2w + 2L) bytes at most; False computes them at each call,
            rows by rows in pieces of ON_THE_FLY_BYTES, and again for the gradient. The results are equal.
    """

    def __init__(self, left: Tensor, right: Tensor, *, levels: int, radius: int, all_pairs: bool):
        B, C, h, w = left.shape
        self.radius = radius
        self.left = left.float().permute(0, 2, 3, 1).reshape(B * h, w, C)
        right = right.float().permute(0, 2, 1, 3).reshape(B * h, C, w)
        self.right = []
        for level in range(levels):
            right = F.avg_pool1d(right, 2) if level else right
            self.right.append(F.pad(right, (1, 1)))  # [B*h,C,S+2]: zero features give zero correlations outside
        self.volumes = self._correlate(slice(None)) if all_pairs else None

    def _correlate(self, rows: slice) -> list[Tensor]:
        with full_precision(self.left.device):
            return [torch.bmm(self.left[rows], right[rows]) for right in self.right]  # [rows,w,S+2]

    def _look_up(self, volumes: Sequence[Tensor], disparity: Tensor) -> list[Tensor]:
        place = torch.arange(disparity.shape[-1], device=disparity.device) - disparity  # [rows,w]
        return [
            sample_taps(volume.flatten(0, 1)[:, :, None], place.flatten() / 2**level, self.radius)[:, :, 0]
            for level, volume in enumerate(volumes)
        ]

    def __call__(self, disparity: Tensor) -> list[Tensor]:
        """Return [B*h*w,T] for each level."""
        disparity = disparity.detach().float().flatten(0, 2)  # [B*h,w]
        if self.volumes is not None:
            return self._look_up(self.volumes, disparity)
        bytes_per_row = 4 * self.left.shape[1] * sum(right.shape[-1] for right in self.right)
        step = max(1, ON_THE_FLY_BYTES // bytes_per_row)
        pieces = [self._piece(slice(top, top + step), disparity) for top in range(0, len(disparity), step)]
        return [torch.cat(level) for level in zip(*pieces, strict=True)]

    def _piece(self, rows: slice, disparity: Tensor) -> list[Tensor]:
        def look_up() -> list[Tensor]:
            return self._look_up(self._correlate(rows), disparity[rows])

        if torch.is_grad_enabled() and self.left.requires_grad:
            return checkpoint(look_up, use_reentrant=False)  # type: ignore[return-value]
        return look_up()


def stack_taps(taps: Sequence[Tensor], like: Tensor) -> Tensor:
    """Join [B*h*w,K] pieces to [B,sum of K,h,w] of the height and width of `like`; channels lie last in memory."""
    B, _, h, w = like.shape
    return torch.cat(list(taps), dim=1).view(B, h, w, -1).permute(0, 3, 1, 2)


def join_planes(*planes: Tensor) -> Tensor:
    """Join C planes [B,1,h,w] to [B,C,h,w] with channels last in memory, even a single one.

    A tensor that lies otherwise makes every later operation with it copy the others, several times their own cost.
    """
    return torch.stack([plane[:, 0] for plane in planes], dim=-1).permute(0, 3, 1, 2)


def blend_neighbours(disparity: Tensor, weights: Tensor) -> Tensor:
    """Enlarge a disparity: each fine one is a weighted sum of the 3x3 coarse ones around it.

    Args:
        disparity: [B,1,h,w], px at width w. Beyond the border it counts as zero.
        weights: [B,9,h,4,w,4]: for each neighbour (row by row) and each of the 4x4 fine pixels of a coarse one.

    Returns:
        [B,1,4h,4w], px at width 4w, float32.
    """
    B, _, h, w = disparity.shape
    neighbours = F.unfold(UPSAMPLING * disparity.float(), 3, padding=1).view(B, NEIGHBOURS, h, 1, w, 1)
    return (weights.float() * neighbours).sum(1).view(B, 1, UPSAMPLING * h, UPSAMPLING * w)


# ---------------------------------------------------------------------------------------------------------------------
# Encoders
# ---------------------------------------------------------------------------------------------------------------------


class InstanceNorm(nn.Module):
    """Subtract each channel's mean in each picture and divide by its deviation; no parameters.

    As a group norm with one channel a group: the same numbers, several times as fast on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,...] -> the same shape."""
        return F.group_norm(x, x.shape[1])


def make_norm(kind: str, channels: int) -> nn.Module:
    """Build "batch" or "instance" normalisation of [B,C,H,W]."""
    return nn.BatchNorm2d(channels) if kind == "batch" else InstanceNorm()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip, which has a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, norm: str, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = make_norm(norm, channels)
        self.norm2 = make_norm(norm, channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.norm3 = make_norm(norm, channels)
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] -> [B,channels,H/stride,W/stride]."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        skip = x if self.downsample is None else self.norm3(self.downsample(x))
        total = y + skip if torch.is_grad_enabled() else y.add_(skip)  # at full size each tensor counts
        return F.relu(total, inplace=True)


def two_blocks(in_channels: int, channels: int, norm: str, stride: int) -> nn.Sequential:
    """Chain two residual blocks, the first with the stride."""
    return nn.Sequential(ResidualBlock(in_channels, channels, norm, stride), ResidualBlock(channels, channels, norm))


class Trunk(nn.Module):
    """The way down to a quarter of the picture, the same in both encoders."""

    def __init__(self, channels: Sequence[int], norm: str):
        super().__init__()
        first, second, third = channels
        self.norm1 = make_norm(norm, first)
        self.conv1 = nn.Conv2d(3, first, 7, padding=3)
        self.layer1 = two_blocks(first, first, norm, stride=1)
        self.layer2 = two_blocks(first, second, norm, stride=2)
        self.layer3 = two_blocks(second, third, norm, stride=2)

    def descend(self, image: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,third,h,w]."""
        x = F.relu(self.norm1(self.conv1(image)), inplace=True)
        return self.layer3(self.layer2(self.layer1(x)))


class FeatureEncoder(Trunk):
    """Features to match: instance-normalised trunk and a 1x1 convolution."""

    def __init__(self, channels: Sequence[int], feature_channels: int):
        super().__init__(channels, "instance")
        self.conv2 = nn.Conv2d(channels[-1], feature_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1] -> [B,feature_channels,h,w]."""
        return self.conv2(self.descend(image))


class ContextEncoder(Trunk):
    """First hidden states and context of the three GRUs, at 1/4, 1/8 and 1/16 of the picture."""

    def __init__(self, channels: Sequence[int], hidden_channels: int, head_names: Sequence[str]):
        super().__init__(channels, "batch")
        width = channels[-1]
        self.layer4 = two_blocks(width, width, "batch", stride=2)
        self.layer5 = two_blocks(width, width, "batch", stride=2)
        self.head_names = tuple(head_names)
        for name in self.head_names[:2]:
            heads = [
                nn.Sequential(ResidualBlock(width, width, "batch"), nn.Conv2d(width, hidden_channels, 3, padding=1))
                for _ in range(2)
            ]
            self.add_module(name, nn.ModuleList(heads))
        coarsest = [nn.Conv2d(width, hidden_channels, 3, padding=1) for _ in range(2)]
        self.add_module(self.head_names[2], nn.ModuleList(coarsest))

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """[B,3,H,W] in [-1,1] -> (hidden, context) before their non-linearities, fine to coarse, [B,hidden,.,.]."""
        fine = self.descend(image)
        middle = self.layer4(fine)
        features = (fine, middle, self.layer5(middle))
        outputs = []
        for name, feature in zip(self.head_names, features, strict=True):
            outputs.append((self.get_submodule(f"{name}.0")(feature), self.get_submodule(f"{name}.1")(feature)))
        return outputs


# ---------------------------------------------------------------------------------------------------------------------
# Recurrent update
# ---------------------------------------------------------------------------------------------------------------------


class ConvGRU(nn.Module):
    """A gated recurrent unit with 3x3 convolutions; the context's share of each gate is added from outside."""

    def __init__(self, hidden_channels: int, input_channels: int):
        super().__init__()
        channels = hidden_channels + input_channels
        self.convz = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.convr = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.convq = nn.Conv2d(channels, hidden_channels, 3, padding=1)

    def forward(self, hidden: Tensor, context: Context, inputs: Sequence[Tensor]) -> Tensor:
        """Return the next hidden state [B,C,h,w]; both gates are one convolution."""
        weight = torch.cat([self.convz.weight, self.convr.weight])
        bias = torch.cat([self.convz.bias, self.convr.bias])  # type: ignore[list-item]
        gates = F.conv2d(torch.cat([hidden, *inputs], dim=1), weight, bias, padding=1)
        update, reset = gates.add_(context[0]).sigmoid_().chunk(2, dim=1)
        candidate = self.convq(torch.cat([reset * hidden, *inputs], dim=1)).add_(context[1]).tanh_()
        return torch.lerp(hidden, candidate, update)


class MotionEncoder(nn.Module):
    """Looked-up correlations and the present displacement -> what the finest GRU sees.

    The official networks name the displacement's convolutions by what they call it: f for flow, d for disparity.
    """

    def __init__(self, lookup_channels: int, displacement_channels: int, channels: int, letter: str):
        super().__init__()
        width = channels // 2
        self.letter = letter
        self.convc1 = nn.Conv2d(lookup_channels, width, 1)
        self.convc2 = nn.Conv2d(width, width, 3, padding=1)
        self.add_module(f"conv{letter}1", nn.Conv2d(displacement_channels, width, 7, padding=3))
        self.add_module(f"conv{letter}2", nn.Conv2d(width, width, 3, padding=1))
        self.conv = nn.Conv2d(2 * width, channels - displacement_channels, 3, padding=1)

    def forward(self, lookup: Tensor, displacement: Tensor) -> Tensor:
        """[B,lookup,h,w], [B,displacement,h,w] -> [B,channels,h,w]; the displacement itself comes last."""
        correlation = F.relu(self.convc1(lookup), inplace=True)
        correlation = F.relu(self.convc2(correlation), inplace=True)
        motion = F.relu(self.get_submodule(f"conv{self.letter}1")(displacement), inplace=True)
        motion = F.relu(self.get_submodule(f"conv{self.letter}2")(motion), inplace=True)
        joined = F.relu(self.conv(torch.cat([correlation, motion], dim=1)), inplace=True)
        return torch.cat([joined, displacement], dim=1)


class DisplacementHead(nn.Module):
    """Hidden state -> change of the displacement."""

    def __init__(self, hidden_channels: int, displacement_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(hidden_channels, 2 * hidden_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(2 * hidden_channels, displacement_channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B,hidden,h,w] -> [B,displacement,h,w]."""
        return self.conv2(F.relu(self.conv1(hidden), inplace=True))


class UpdateBlock(nn.Module):
    """Three GRUs at 1/4, 1/8 and 1/16 of the picture that hand their states up and down."""

    def __init__(
        self, hidden_channels: int, lookup_channels: int, displacement_channels: int, letter: str, names: Sequence[str]
    ):
        super().__init__()
        C = hidden_channels
        self.encoder = MotionEncoder(lookup_channels, displacement_channels, C, letter)
        self.gru_names = tuple(names)  # fine to coarse
        for name, input_channels in zip(self.gru_names, (2 * C, 2 * C, C), strict=True):
            self.add_module(name, ConvGRU(C, input_channels))

    def advance(
        self, hidden: Sequence[Tensor], context: Sequence[Context], lookup: Tensor, displacement: Tensor
    ) -> list[Tensor]:
        """Return the next hidden states, fine to coarse; each GRU sees the coarser one's new state."""
        fine, middle, coarse = hidden
        gru_fine, gru_middle, gru_coarse = (self.get_submodule(name) for name in self.gru_names)
        coarse = gru_coarse(coarse, context[2], [halve(middle)])
        middle = gru_middle(middle, context[1], [halve(fine), resize_like(coarse, middle)])
        motion = self.encoder(lookup.to(fine.dtype), displacement.to(fine.dtype))
        fine = gru_fine(fine, context[0], [motion, resize_like(middle, fine)])
        return [fine, middle, coarse]


def start_states(
    outputs: Sequence[tuple[Tensor, Tensor]], context_convolutions: Iterable[nn.Module]
) -> tuple[list[Tensor], list[Context]]:
    """Turn what the context encoder gives into first hidden states and each GRU's context, fine to coarse."""
    hidden = [torch.tanh(state) for state, _ in outputs]
    context = []
    for (state, feature), convolution in zip(outputs, context_convolutions, strict=True):
        joined = convolution(F.relu(feature))  # [B,3C,.,.]: update gate, reset gate, candidate
        C = state.shape[1]
        gates, candidate = (
            part.contiguous(memory_format=torch.channels_last) for part in joined.split([2 * C, C], dim=1)
        )
        context.append((gates, candidate))
    return hidden, context


def scaled_features(features: Tensor) -> Tensor:
    """Divide by the root of the number of channels, so that dot products do not grow with it."""
    return features.float() / math.sqrt(features.shape[1])
