"""A small convolutional encoder and decoder with transposed convolutions and skip connections (after U-Net, 2015)."""

from __future__ import annotations

import torch
from pydantic import validate_call
from torch import Tensor, nn

from eqdeploy.zoo.blocks import STRICT, Channels, Classes, Width, conv_bn_act, initialize_convolutions


def upsample(inputs: int, outputs: int) -> nn.Sequential:
    """Transposed convolution that doubles height and width, BatchNorm, ReLU."""
    conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Decoder(nn.Module):
    """Two halvings, two doublings, and the features of equal size concatenated on the way up.

    Args:
        width: Channels at full resolution; twice and four times as many at half and quarter.
        classes: Output channels.
        input_channels: Channels of the image.
    """

    def __init__(self, *, width: int, classes: int, input_channels: int) -> None:
        super().__init__()
        self.encoder1 = conv_bn_act(input_channels, width)
        self.encoder2 = conv_bn_act(width, 2 * width, stride=2)
        self.encoder3 = conv_bn_act(2 * width, 4 * width, stride=2)
        self.up2 = upsample(4 * width, 2 * width)
        self.decoder2 = conv_bn_act(4 * width, 2 * width)
        self.up1 = upsample(2 * width, width)
        self.decoder1 = conv_bn_act(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, input_channels, H, W), H and W multiples of 4, to (N, classes, H, W)."""
        full = self.encoder1(x)
        half = self.encoder2(full)
        up = self.up2(self.encoder3(half))
        up = self.decoder2(torch.cat([up, half], 1))
        up = self.decoder1(torch.cat([self.up1(up), full], 1))
        out: Tensor = self.head(up)
        return out


@validate_call(config=STRICT)
def decoder(*, width: Width = 16, classes: Classes = 3, input_channels: Channels = 3) -> nn.Module:
    """Image decoder or segmenter: transposed convolutions and skip concatenations."""
    return Decoder(width=width, classes=classes, input_channels=input_channels)
