"""EfficientNet-B0 (Tan and Le, 2019), state dict as torchvision's ``efficientnet_b0``."""

from __future__ import annotations

import torch
from pydantic import validate_call
from torch import Tensor, nn

from eqdeploy.zoo.blocks import (
    STRICT,
    Channels,
    Classes,
    Probability,
    SmallImages,
    WidthMultiplier,
    conv_bn_act,
    initialize_convolutions,
    round_channels,
)

#: Table 1 of the paper: expansion, kernel, stride, output channels, repeats.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def stochastic_depth(probability: float) -> nn.Module:
    """Drop whole images of a residual branch while training (Huang et al., 2016), scaled to keep the mean.

    ``Dropout3d`` on a tensor without batch axis, (C, D, H, W), zeroes whole (D, H, W) volumes. Given a batch
    (N, C, H, W) it therefore zeroes whole images, which is stochastic depth. Being a module of torch.nn it is a
    leaf for torch.fx, so a traced model still follows ``train()`` and ``eval()``; a module of our own would be
    traced through and its ``self.training`` frozen.
    """
    return nn.Dropout3d(probability) if probability > 0 else nn.Identity()


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate computed from the channels' means (Hu et al., 2018).

    Args:
        channels: Channels of input and output.
        squeezed: Channels between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU()
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        gate: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x


class MBConv(nn.Module):
    """Expand, filter depthwise, squeeze-and-excite, project; add the input where shapes agree.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel of the depthwise convolution.
        stride: Stride of the depthwise convolution.
        expansion: Factor on ``inputs`` for the channels inside.
        drop: Probability of dropping the branch while training.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int, drop: float) -> None:
        super().__init__()
        hidden = round_channels(inputs * expansion)
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(conv_bn_act(inputs, hidden, kernel=1, activation=nn.SiLU))
        layers += [
            conv_bn_act(hidden, hidden, kernel=kernel, stride=stride, groups=hidden, activation=nn.SiLU),
            SqueezeExcitation(hidden, max(1, inputs // 4)),
            conv_bn_act(hidden, outputs, kernel=1, activation=None),
        ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs
        self.stochastic_depth = stochastic_depth(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        out: Tensor = self.block(x)
        return self.stochastic_depth(out) + x if self.residual else out


class EfficientNet(nn.Module):
    """The B0 layout of Table 1.

    Args:
        width_multiplier: Factor on all channels.
        classes: Number of classes.
        input_channels: Channels of the image.
        dropout: Probability of dropping a feature before the classifier.
        drop_path: Probability of stochastic depth, reached linearly at the last block.
        small_images: Stride 1 instead of 2 in the stem and the first strided stage.
    """

    def __init__(
        self,
        *,
        width_multiplier: float,
        classes: int,
        input_channels: int,
        dropout: float,
        drop_path: float,
        small_images: bool,
    ) -> None:
        super().__init__()
        channels = round_channels(32 * width_multiplier)
        stem_stride = 1 if small_images else 2
        features: list[nn.Module] = [conv_bn_act(input_channels, channels, stride=stem_stride, activation=nn.SiLU)]
        blocks, done = sum(repeats for *_, repeats in STAGES), 0
        for index, (expansion, kernel, stage_stride, base, repeats) in enumerate(STAGES):
            outputs = round_channels(base * width_multiplier)
            stage: list[nn.Module] = []
            for position in range(repeats):
                stride = stage_stride if position == 0 and not (small_images and index == 1) else 1
                drop = drop_path * done / blocks
                stage.append(MBConv(channels, outputs, kernel=kernel, stride=stride, expansion=expansion, drop=drop))
                channels, done = outputs, done + 1
            features.append(nn.Sequential(*stage))
        features.append(conv_bn_act(channels, 4 * channels, kernel=1, activation=nn.SiLU))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, classes))
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, input_channels, H, W) to logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


@validate_call(config=STRICT)
def efficientnet_b0(
    *,
    width_multiplier: WidthMultiplier = 1.0,
    classes: Classes = 1000,
    input_channels: Channels = 3,
    dropout: Probability = 0.2,
    drop_path: Probability = 0.2,
    small_images: SmallImages = False,
) -> nn.Module:
    """EfficientNet-B0: SiLU, squeeze-and-excite, stochastic depth."""
    return EfficientNet(
        width_multiplier=width_multiplier,
        classes=classes,
        input_channels=input_channels,
        dropout=dropout,
        drop_path=drop_path,
        small_images=small_images,
    )
