# SPDX-License-Identifier: Apache-2.0
"""RAFT-Stereo (Lipson, Teed and Deng, 3DV 2021, arXiv 2109.07547), which ZeroStereo trains as Zero-RAFT-Stereo.

Features of both pictures are compared at a quarter of their size; three GRUs refine a disparity that starts at zero by
looking up the comparisons around it; a learnt 3x3 mean brings it to full size.

The official network moves a two-channel flow whose vertical part it sets to zero; here the state is the disparity,
-flow, and the second channel is a constant zero where the weights expect it. Everything else agrees with the official
network (tests/test_raft_stereo.py). Letters as in layers.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from training.stereo_networks.layers import (
    NEIGHBOURS,
    UPSAMPLING,
    ContextEncoder,
    CorrelationLookup,
    DisplacementHead,
    FeatureEncoder,
    UpdateBlock,
    blend_neighbours,
    join_planes,
    scaled_features,
    stack_taps,
    start_states,
)
from training.stereo_networks.recurrent_stereo import LoopState, RecurrentStereo, check_sizes

FLOW_CHANNELS = 2  # horizontal and vertical, the latter always zero
MASK_GRADIENT_SCALE = 0.25  # the official network's, to balance gradients


class RAFTUpdateBlock(UpdateBlock):
    """The recurrent part, with the heads that read it."""

    def __init__(self, hidden_channels: int, lookup_channels: int):
        super().__init__(hidden_channels, lookup_channels, FLOW_CHANNELS, "f", ("gru08", "gru16", "gru32"))
        self.flow_head = DisplacementHead(hidden_channels, FLOW_CHANNELS)
        self.mask = nn.Sequential(
            nn.Conv2d(hidden_channels, 2 * hidden_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * hidden_channels, NEIGHBOURS * UPSAMPLING**2, 1),
        )


class RAFTStereo(RecurrentStereo):
    """RAFT-Stereo; the defaults are the published network, smaller numbers give a smaller one of the same kind.

    Args:
        trunk_channels: of both encoders at full, half and quarter size.
        feature_channels: of the features that are compared.
        hidden_channels: of each GRU; even.
        correlation_levels: L, 1 to 4.
        correlation_radius: R, at least 1.
    """

    @register_to_config
    def __init__(
        self,
        trunk_channels: Sequence[int] = (64, 96, 128),
        feature_channels: int = 256,
        hidden_channels: int = 128,
        correlation_levels: int = 4,
        correlation_radius: int = 4,
    ):
        super().__init__()
        if len(trunk_channels) != 3:
            raise ValueError(f"`trunk_channels` must be three numbers; got {list(trunk_channels)}.")
        check_sizes(hidden_channels, correlation_levels, correlation_radius)
        lookup_channels = correlation_levels * (2 * correlation_radius + 1)
        self.cnet = ContextEncoder(trunk_channels, hidden_channels, ("outputs08", "outputs16", "outputs32"))
        self.update_block = RAFTUpdateBlock(hidden_channels, lookup_channels)
        self.context_zqr_convs = nn.ModuleList(
            nn.Conv2d(hidden_channels, 3 * hidden_channels, 3, padding=1) for _ in range(3)
        )
        self.fnet = FeatureEncoder(trunk_channels, feature_channels)

    def extract_features(self, left: Tensor, right: Tensor, together: bool) -> tuple[Tensor, Tensor]:
        """Give both pictures' features [B,feature_channels,h,w]; apart takes half the memory."""
        if not together:
            return self.fnet(left), self.fnet(right)
        left_features, right_features = self.fnet(torch.cat([left, right])).chunk(2)
        return left_features, right_features

    def prepare(self, left: Tensor, right: Tensor, all_pairs: bool) -> LoopState:
        """See RecurrentStereo."""
        left_features, right_features = self.extract_features(left, right, together=all_pairs)
        correlation = CorrelationLookup(
            scaled_features(left_features),
            right_features,
            levels=self.config.correlation_levels,
            radius=self.config.correlation_radius,
            all_pairs=all_pairs,
        )
        hidden, context = start_states(self.cnet(left), self.context_zqr_convs)
        B, _, h, w = left_features.shape
        disparity = torch.zeros(B, 1, h, w, device=left.device)
        return LoopState(hidden, context, lambda d: stack_taps(correlation(d), d), disparity, None, None)

    def refine(
        self, hidden: list[Tensor], context: list, lookup: Tensor, disparity: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """See RecurrentStereo."""
        flow = join_planes(-disparity, torch.zeros_like(disparity))  # [B,2,h,w]
        hidden = self.update_block.advance(hidden, context, lookup, flow)
        return hidden, -self.update_block.flow_head(hidden[0])[:, :1]

    def enlarge(self, disparity: Tensor, hidden: Tensor, guide: Tensor | None) -> Tensor:
        """See RecurrentStereo; no guide is needed."""
        logits = MASK_GRADIENT_SCALE * self.update_block.mask(hidden).float()
        weights = logits.unflatten(1, (NEIGHBOURS, UPSAMPLING, UPSAMPLING)).softmax(1)  # [B,9,4,4,h,w]
        return blend_neighbours(disparity, weights.permute(0, 1, 4, 2, 5, 3))
