"""MobileNetV2 (Sandler et al., 2018), state dict as torchvision's ``mobilenet_v2``."""

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

#: Table 2 of the paper: expansion t, output channels c, repeats n, stride s.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter depthwise, project linearly with 1x1; add the input where shapes agree.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the depthwise convolution.
        expansion: Factor on ``inputs`` for the channels inside; 1 leaves the first convolution out.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_act(inputs, hidden, kernel=1, activation=nn.ReLU6))
        layers += [
            conv_bn_act(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2 as in Table 2 of the paper.

    Args:
        width_multiplier: Factor on all channels; the last convolution's never falls below 1280.
        classes: Number of classes.
        input_channels: Channels of the image.
        dropout: Probability of dropping a feature before the classifier.
        small_images: Stride 1 instead of 2 in the stem and the first strided stage.
    """

    def __init__(
        self, *, width_multiplier: float, classes: int, input_channels: int, dropout: float, small_images: bool
    ) -> None:
        super().__init__()
        channels = round_channels(32 * width_multiplier)
        features: list[nn.Module] = [
            conv_bn_act(input_channels, channels, stride=1 if small_images else 2, activation=nn.ReLU6)
        ]
        for index, (expansion, base, repeats, stage_stride) in enumerate(STAGES):
            outputs = round_channels(base * width_multiplier)
            for position in range(repeats):
                stride = stage_stride if position == 0 and not (small_images and index == 1) else 1
                features.append(InvertedResidual(channels, outputs, stride=stride, expansion=expansion))
                channels = outputs
        last = round_channels(1280 * max(1.0, width_multiplier))
        features.append(conv_bn_act(channels, last, kernel=1, activation=nn.ReLU6))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, input_channels, H, W) to logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


@validate_call(config=STRICT)
def mobilenet_v2(
    *,
    width_multiplier: WidthMultiplier = 1.0,
    classes: Classes = 1000,
    input_channels: Channels = 3,
    dropout: Probability = 0.2,
    small_images: SmallImages = False,
) -> nn.Module:
    """MobileNetV2: depthwise convolutions, ReLU6, linear bottlenecks."""
    return MobileNetV2(
        width_multiplier=width_multiplier,
        classes=classes,
        input_channels=input_channels,
        dropout=dropout,
        small_images=small_images,
    )
