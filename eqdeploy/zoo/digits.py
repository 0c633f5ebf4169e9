"""The small residual network for 8x8 handwritten digits that the embedded supernet is made of."""

from __future__ import annotations

import torch
from pydantic import validate_call
from torch import Tensor, nn

from eqdeploy.zoo.blocks import STRICT, Channels, Classes, Width, conv_bn_act, initialize_convolutions
from eqdeploy.zoo.resnet import BasicBlock


class DigitsResNet(nn.Module):
    """One of each building block of a mobile network, small enough to train in a minute.

    Stem, residual block with identity shortcut, depthwise and pointwise convolution, residual block with
    stride 2 and projected shortcut, global average pooling, classifier.

    Args:
        width: Channels of the first half; the second half has twice as many.
        classes: Number of classes.
        input_channels: Channels of the image.
    """

    def __init__(self, *, width: int, classes: int, input_channels: int) -> None:
        super().__init__()
        self.stem = conv_bn_act(input_channels, width)
        self.block1 = BasicBlock(width, width, 1)
        self.depthwise = conv_bn_act(width, width, groups=width)
        self.pointwise = conv_bn_act(width, 2 * width, kernel=1)
        self.block2 = BasicBlock(2 * width, 2 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, input_channels, H, W) to logits (N, classes)."""
        x = self.block1(self.stem(x))
        x = self.block2(self.pointwise(self.depthwise(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


@validate_call(config=STRICT)
def digits_resnet(*, width: Width = 16, classes: Classes = 10, input_channels: Channels = 1) -> nn.Module:
    """Small residual CNN for 8x8 digits: the embedded default, about 25,000 parameters."""
    return DigitsResNet(width=width, classes=classes, input_channels=input_channels)
