"""A small DenseNet (Huang et al., 2017): every layer's output is concatenated to all before it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, validate_call
from torch import Tensor, nn

from eqdeploy.zoo.blocks import STRICT, Channels, Classes, Width, conv_bn_act, initialize_convolutions

Order = Literal["conv-bn-relu", "bn-relu-conv"]


def unit(inputs: int, outputs: int, *, kernel: int, order: Order) -> nn.Sequential:
    """One convolution with its BatchNorm and ReLU, in either order.

    ``conv-bn-relu`` lets BatchNorm fold into the convolution; ``bn-relu-conv`` is the paper's order, in which
    BatchNorm follows a concatenation and stays an operation of its own.
    """
    if order == "conv-bn-relu":
        return conv_bn_act(inputs, outputs, kernel=kernel)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class DenseBlock(nn.Module):
    """Layers that each read everything before them in the block.

    Args:
        inputs: Input channels.
        growth: Channels that each layer adds.
        depth: Number of layers.
        order: Order of convolution, BatchNorm and ReLU.
    """

    def __init__(self, inputs: int, *, growth: int, depth: int, order: Order) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            unit(inputs + index * growth, growth, kernel=3, order=order) for index in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, inputs + depth*growth, H, W)."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class DenseNet(nn.Module):
    """Stem, three dense blocks with halving transitions between them, global average pooling, classifier.

    Args:
        width: Channels of the stem.
        growth: Channels that each layer adds.
        depth: Layers in each block.
        classes: Number of classes.
        input_channels: Channels of the image.
        order: Order of convolution, BatchNorm and ReLU.
    """

    def __init__(self, *, width: int, growth: int, depth: int, classes: int, input_channels: int, order: Order) -> None:
        super().__init__()
        post_activation = order == "conv-bn-relu"
        stem = nn.Conv2d(input_channels, width, 3, padding=1, bias=False)
        features: list[nn.Module] = [conv_bn_act(input_channels, width) if post_activation else stem]
        channels = width
        for index in range(3):
            if index > 0:
                features += [unit(channels, channels // 2, kernel=1, order=order), nn.AvgPool2d(2)]
                channels //= 2
            features.append(DenseBlock(channels, growth=growth, depth=depth, order=order))
            channels += growth * depth
        if not post_activation:
            features += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, input_channels, H, W), H and W at least 4, to logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


@validate_call(config=STRICT)
def densenet_small(
    *,
    width: Width = 16,
    growth: Annotated[int, Field(ge=1, le=128, description="channels that each layer adds")] = 12,
    depth: Annotated[int, Field(ge=1, le=32, description="layers in each of the three blocks")] = 3,
    classes: Classes = 10,
    input_channels: Channels = 3,
    order: Order = "conv-bn-relu",
) -> nn.Module:
    """Small DenseNet: concatenations read by later layers, average pooling."""
    return DenseNet(
        width=width, growth=growth, depth=depth, classes=classes, input_channels=input_channels, order=order
    )
