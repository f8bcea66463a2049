# SPDX-License-Identifier: Apache-2.0
"""IGEV-Stereo (Xu et al., CVPR 2023, arXiv 2303.06615), which ZeroStereo trains as Zero-IGEV-Stereo.

A small cost volume is filtered by 3D convolutions that the left picture steers; its soft maximum is the disparity to
begin with. Three GRUs refine it, looking up both the filtered volume and the plain comparisons around it; a learnt 3x3
mean, guided by the picture, brings it to full size.

The backbone is a MobileNetV2 (Sandler et al., CVPR 2018) under the names of timm, of which the official network cuts
it, so that no image library is needed. `max_disparity_px` bounds the cost volume, not the result: the refinements may
go beyond it. Letters as in layers.py, and G groups, D places of the volume (a quarter of the largest disparity).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from training.stereo_networks.layers import (
    NEIGHBOURS,
    UPSAMPLING,
    ContextEncoder,
    CorrelationLookup,
    DisplacementHead,
    InstanceNorm,
    UpdateBlock,
    blend_neighbours,
    join_planes,
    sample_taps,
    stack_taps,
    start_states,
)
from training.stereo_networks.recurrent_stereo import LoopState, RecurrentStereo, check_sizes

TRUNK_CHANNELS = (64, 96, 128)  # of the context encoder
# MobileNetV2: (expansion, channels, blocks, stride of the first) of each stage, grouped as IGEV-Stereo cuts them.
BACKBONE_STAGES = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2),),
)
BACKBONE_STEM = 32
STEM_CHANNELS = (32, 48)  # of the shallow features at half and quarter size
MATCH_CHANNELS = 96
GROUPS = 8  # G, of the cost volume
LEAK = 0.01  # slope of LeakyReLU below zero
VOLUME_MULTIPLE = 32  # px; the cost volume is halved three times, at a quarter of the pixels
CONVOLUTIONS = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------


def group_correlation(left: Tensor, right: Tensor, shifts: int, groups: int) -> Tensor:
    """Compare features group by group at whole shifts.

    Args:
        left: [B,C,h,w]; C is a multiple of `groups`.
        right: [B,C,h,w].
        shifts: D; shift d compares left column x with right column x - d, zero where x < d.
        groups: G.

    Returns:
        [B,G,D,h,w], the mean product over the C/G channels of a group.
    """
    B, C, h, w = left.shape
    left, right = (x.reshape(B, groups, C // groups, h, w) for x in (left, right))
    planes = []
    for shift in range(min(shifts, w)):
        plane = (left[..., shift:] * right[..., : w - shift]).mean(2)  # [B,G,h,w-shift]
        planes.append(F.pad(plane, (shift, 0)))
    volume = torch.stack(planes, dim=2)
    return F.pad(volume, (0, 0, 0, 0, 0, shifts - volume.shape[2]))


def expected_disparity(logits: Tensor) -> Tensor:
    """Average the places of a volume [B,D,h,w] by their softmax: [B,1,h,w], px at width w, float32."""
    probability = logits.float().softmax(1)
    places = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
    return (probability * places.view(1, -1, 1, 1)).sum(1, keepdim=True)


class GeometryLookup:
    """The filtered volume around a disparity, and the plain correlations around x - disparity, at L widths.

    Args:
        volume: [B,G,D,h,w], filtered.
        correlation: of the features, with the same levels and radius.
        levels: L; level i has the volume averaged over 2^i places.
        radius: R.
    """

    def __init__(self, volume: Tensor, correlation: CorrelationLookup, levels: int, radius: int):
        self.correlation, self.radius = correlation, radius
        rows = volume.float().permute(0, 3, 4, 1, 2).flatten(0, 2)  # [B*h*w,G,D]
        self.volumes = []
        for level in range(levels):
            rows = F.avg_pool1d(rows, 2) if level else rows
            self.volumes.append(F.pad(rows, (1, 1)).transpose(1, 2).contiguous())  # [B*h*w,D+2,G]

    def __call__(self, disparity: Tensor) -> Tensor:
        """[B,1,h,w], px at width w -> [B,L(G+1)T,h,w]: for each level all groups' taps, then the correlations'."""
        pieces = []
        for level, correlations in enumerate(self.correlation(disparity)):
            taps = sample_taps(self.volumes[level], disparity.float().flatten() / 2**level, self.radius)  # [B*h*w,T,G]
            pieces += [taps.transpose(1, 2).flatten(1), correlations]
        return stack_taps(pieces, disparity)


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


class ConvUnit(nn.Module):
    """A convolution without bias, a normalisation and a leaky ReLU, each as asked for.

    Args:
        in_channels: of the input.
        channels: of the output.
        norm: "batch", "instance" or None.
        dimensions: 2 or 3.
        transposed: enlarge instead of shrink.
        active: False leaves the ReLU out.
        options: kernel_size, stride, padding.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        norm: str | None,
        *,
        dimensions: int = 2,
        transposed: bool = False,
        active: bool = True,
        **options: int,
    ):
        super().__init__()
        plain, enlarging = CONVOLUTIONS[dimensions]
        self.conv = (enlarging if transposed else plain)(in_channels, channels, bias=False, **options)
        self.active = active
        self.instance = InstanceNorm() if norm == "instance" else nn.Identity()
        self.bn: nn.Module = nn.Identity()
        if norm == "batch":
            self.bn = nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,...] -> [B,channels,...]."""
        x = self.bn(self.instance(self.conv(x)))
        return F.leaky_relu(x, LEAK, inplace=True) if self.active else x


class Enlarge(nn.Module):
    """Double height and width, join a skip connection, and mix; the channels of both are kept."""

    def __init__(self, in_channels: int, channels: int, norm: str):
        super().__init__()
        self.conv1 = ConvUnit(in_channels, channels, norm, transposed=True, kernel_size=4, stride=2, padding=1)
        self.conv2 = ConvUnit(2 * channels, 2 * channels, norm, kernel_size=3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[B,in,h,w], [B,channels,2h,2w] -> [B,2 channels,2h,2w]."""
        return self.conv2(torch.cat([self.conv1(x), skip], dim=1))


class SeparableBlock(nn.Module):
    """The first block of MobileNetV2: every channel for itself, then 1x1. Names as in timm."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] -> [B,channels,H,W]."""
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)), inplace=True)))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: widen, every channel for itself, narrow; a skip where the shape stays. Names of timm."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int):
        super().__init__()
        width = expansion * in_channels
        self.has_skip = stride == 1 and in_channels == channels
        self.conv_pw = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv_dw = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv_pwl = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] -> [B,channels,H/stride,W/stride]."""
        y = F.relu6(self.bn1(self.conv_pw(x)), inplace=True)
        y = F.relu6(self.bn2(self.conv_dw(y)), inplace=True)
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_skip else y


class Backbone(nn.Module):
    """MobileNetV2 down to 1/32 and back up to 1/4, with a skip connection at each size."""

    def __init__(self):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, BACKBONE_STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(BACKBONE_STEM)
        in_channels = BACKBONE_STEM
        for number, stages in enumerate(BACKBONE_STAGES):
            block = nn.Sequential()
            for expansion, channels, count, stride in stages:
                stage = nn.Sequential()
                for i in range(count):
                    if expansion == 1:
                        stage.append(SeparableBlock(in_channels, channels))
                    else:
                        stage.append(InvertedResidual(in_channels, channels, expansion, stride if i == 0 else 1))
                    in_channels = channels
                block.append(stage)
            self.add_module(f"block{number}", block)
        self.deconv32_16 = Enlarge(160, 96, "instance")
        self.deconv16_8 = Enlarge(192, 32, "instance")
        self.deconv8_4 = Enlarge(64, 24, "instance")
        self.conv4 = ConvUnit(48, 48, "instance", kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[B,3,H,W] in [-1,1] -> 48, 64, 192 and 160 channels at 1/4, 1/8, 1/16 and 1/32."""
        x = F.relu6(self.bn1(self.conv_stem(image)), inplace=True)
        down = []
        for number in range(len(BACKBONE_STAGES)):
            x = self.get_submodule(f"block{number}")(x)
            down.append(x)
        x16 = self.deconv32_16(down[4], down[3])
        x8 = self.deconv16_8(x16, down[2])
        x4 = self.conv4(self.deconv8_4(x8, down[1]))
        return [x4, x8, x16, down[4]]


class FeatureAttention(nn.Module):
    """Let the left picture's features open and close the channels of a volume."""

    def __init__(self, volume_channels: int, feature_channels: int):
        super().__init__()
        self.feat_att = nn.Sequential(
            ConvUnit(feature_channels, feature_channels // 2, "batch", kernel_size=1),
            nn.Conv2d(feature_channels // 2, volume_channels, 1),
        )

    def forward(self, volume: Tensor, features: Tensor) -> Tensor:
        """[B,volume,D,h,w], [B,feature,h,w] -> [B,volume,D,h,w]."""
        return volume * torch.sigmoid(self.feat_att(features))[:, :, None]


def volume_pair(in_channels: int, channels: int) -> nn.Sequential:
    """Halve a volume in all three directions, then mix."""
    return nn.Sequential(
        ConvUnit(in_channels, channels, "batch", dimensions=3, kernel_size=3, stride=2, padding=1),
        ConvUnit(channels, channels, "batch", dimensions=3, kernel_size=3, padding=1),
    )


def volume_mixer(in_channels: int, channels: int) -> nn.Sequential:
    """Mix a volume and its skip connection."""
    return nn.Sequential(
        ConvUnit(in_channels, channels, "batch", dimensions=3, kernel_size=1),
        ConvUnit(channels, channels, "batch", dimensions=3, kernel_size=3, padding=1),
        ConvUnit(channels, channels, "batch", dimensions=3, kernel_size=3, padding=1),
    )


def enlarge_volume(in_channels: int, channels: int, norm: str | None) -> ConvUnit:
    """Double a volume in all three directions; without a norm, without ReLU."""
    size = {"kernel_size": 4, "stride": 2, "padding": 1}
    return ConvUnit(in_channels, channels, norm, dimensions=3, transposed=True, active=norm is not None, **size)


class Hourglass(nn.Module):
    """Filter the cost volume at a half, a quarter and an eighth of its size, the left picture steering."""

    def __init__(self, channels: int):
        super().__init__()
        two, four, six = 2 * channels, 4 * channels, 6 * channels
        self.conv1 = volume_pair(channels, two)
        self.conv2 = volume_pair(two, four)
        self.conv3 = volume_pair(four, six)
        self.conv3_up = enlarge_volume(six, four, "batch")
        self.conv2_up = enlarge_volume(four, two, "batch")
        self.conv1_up = enlarge_volume(two, channels, None)
        self.agg_0 = volume_mixer(2 * four, four)
        self.agg_1 = volume_mixer(2 * two, two)
        self.feature_att_8 = FeatureAttention(two, 64)
        self.feature_att_16 = FeatureAttention(four, 192)
        self.feature_att_32 = FeatureAttention(six, 160)
        self.feature_att_up_16 = FeatureAttention(four, 192)
        self.feature_att_up_8 = FeatureAttention(two, 64)

    def forward(self, volume: Tensor, features: list[Tensor]) -> Tensor:
        """[B,channels,D,h,w] and the backbone's features -> the same shape; D, h and w are multiples of 8."""
        half = self.feature_att_8(self.conv1(volume), features[1])
        quarter = self.feature_att_16(self.conv2(half), features[2])
        eighth = self.feature_att_32(self.conv3(quarter), features[3])
        quarter = self.agg_0(torch.cat([self.conv3_up(eighth), quarter], dim=1))
        quarter = self.feature_att_up_16(quarter, features[2])
        half = self.agg_1(torch.cat([self.conv2_up(quarter), half], dim=1))
        return self.conv1_up(self.feature_att_up_8(half, features[1]))


class IGEVUpdateBlock(UpdateBlock):
    """The recurrent part, with the heads that read it."""

    def __init__(self, hidden_channels: int, lookup_channels: int):
        super().__init__(hidden_channels, lookup_channels, 1, "d", ("gru04", "gru08", "gru16"))
        self.disp_head = DisplacementHead(hidden_channels, 1)
        self.mask_feat_4 = nn.Sequential(
            nn.Conv2d(hidden_channels, STEM_CHANNELS[0], 3, padding=1), nn.ReLU(inplace=True)
        )


def stem(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions with instance normalisation; the second ends in a plain ReLU."""
    return nn.Sequential(
        ConvUnit(in_channels, channels, "instance", kernel_size=3, stride=stride, padding=1),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        InstanceNorm(),
        nn.ReLU(inplace=True),
    )


def neighbour_weights(channels: int) -> nn.Sequential:
    """Features at half size -> a logit for each of nine neighbours at full size."""
    return nn.Sequential(nn.ConvTranspose2d(channels, NEIGHBOURS, 4, stride=2, padding=1))


class IGEVStereo(RecurrentStereo):
    """IGEV-Stereo; the defaults are the published network.

    Args:
        max_disparity_px: of the cost volume, at full size; a positive multiple of 32. The refinements may exceed it.
        hidden_channels: of each GRU; even.
        correlation_levels: L, 1 to 4.
        correlation_radius: R, at least 1.
    """

    @register_to_config
    def __init__(
        self,
        max_disparity_px: int = 192,
        hidden_channels: int = 128,
        correlation_levels: int = 2,
        correlation_radius: int = 4,
    ):
        super().__init__()
        if max_disparity_px < VOLUME_MULTIPLE or max_disparity_px % VOLUME_MULTIPLE:
            raise ValueError(
                f"`max_disparity_px` must be a positive multiple of {VOLUME_MULTIPLE}; got {max_disparity_px}."
            )
        check_sizes(hidden_channels, correlation_levels, correlation_radius)
        lookup_channels = correlation_levels * (GROUPS + 1) * (2 * correlation_radius + 1)
        half, quarter = STEM_CHANNELS
        self.cnet = ContextEncoder(TRUNK_CHANNELS, hidden_channels, ("outputs04", "outputs08", "outputs16"))
        self.update_block = IGEVUpdateBlock(hidden_channels, lookup_channels)
        self.context_zqr_convs = nn.ModuleList(
            nn.Conv2d(hidden_channels, 3 * hidden_channels, 3, padding=1) for _ in range(3)
        )
        self.feature = Backbone()
        self.stem_2 = stem(3, half, stride=2)
        self.stem_4 = stem(half, quarter, stride=2)
        self.spx = neighbour_weights(64)
        self.spx_2 = Enlarge(24, half, "instance")
        self.spx_4 = stem(MATCH_CHANNELS, 24, stride=1)
        self.spx_2_gru = Enlarge(half, half, "batch")
        self.spx_gru = neighbour_weights(64)
        self.conv = ConvUnit(MATCH_CHANNELS, MATCH_CHANNELS, "instance", kernel_size=3, padding=1)
        self.desc = nn.Conv2d(MATCH_CHANNELS, MATCH_CHANNELS, 1)
        self.corr_stem = ConvUnit(GROUPS, GROUPS, "batch", dimensions=3, kernel_size=3, padding=1)
        self.corr_feature_att = FeatureAttention(GROUPS, MATCH_CHANNELS)
        self.cost_agg = Hourglass(GROUPS)
        self.classifier = nn.Conv3d(GROUPS, 1, 3, padding=1, bias=False)

    def extract_features(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return features at 1/4 to 1/32, the stem at half size [B,32,H/2,W/2], what is compared [B,96,h,w]."""
        features = self.feature(image)
        stem_half = self.stem_2(image)
        features[0] = torch.cat([features[0], self.stem_4(stem_half)], dim=1)
        return features, stem_half, self.desc(self.conv(features[0]))

    def filter_volume(self, left_match: Tensor, right_match: Tensor, features: list[Tensor]) -> Tensor:
        """Build the cost volume [B,8,D,h,w] and filter it."""
        volume = group_correlation(left_match, right_match, self.config.max_disparity_px // UPSAMPLING, GROUPS)
        volume = self.corr_feature_att(self.corr_stem(volume), features[0])
        return self.cost_agg(volume, features)

    def prepare(self, left: Tensor, right: Tensor, all_pairs: bool) -> LoopState:
        """See RecurrentStereo."""
        features, stem_half, left_match = self.extract_features(left)
        right_match = self.extract_features(right)[2]
        volume = self.filter_volume(left_match, right_match, features)
        disparity = expected_disparity(self.classifier(volume).squeeze(1))
        initial = None
        if self.training:
            weights = self.spx(self.spx_2(self.spx_4(features[0]), stem_half))
            initial = blend_neighbours(disparity, split_weights(weights))
        levels, radius = self.config.correlation_levels, self.config.correlation_radius
        correlation = CorrelationLookup(left_match, right_match, levels=levels, radius=radius, all_pairs=all_pairs)
        hidden, context = start_states(self.cnet(left), self.context_zqr_convs)
        look_up = GeometryLookup(volume, correlation, levels, radius)
        return LoopState(hidden, context, look_up, disparity, stem_half, initial)

    def refine(
        self, hidden: list[Tensor], context: list, lookup: Tensor, disparity: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """See RecurrentStereo."""
        hidden = self.update_block.advance(hidden, context, lookup, join_planes(disparity))
        return hidden, self.update_block.disp_head(hidden[0])

    def enlarge(self, disparity: Tensor, hidden: Tensor, guide: Any) -> Tensor:
        """See RecurrentStereo; the guide is the stem's features at half size."""
        weights = self.spx_gru(self.spx_2_gru(self.update_block.mask_feat_4(hidden), guide))
        return blend_neighbours(disparity, split_weights(weights))


def split_weights(logits: Tensor) -> Tensor:
    """Softmax over nine neighbours, [B,9,4h,4w], as `blend_neighbours` takes them: [B,9,h,4,w,4]."""
    weights = logits.float().softmax(1)
    return weights.unflatten(3, (-1, UPSAMPLING)).unflatten(2, (-1, UPSAMPLING))
