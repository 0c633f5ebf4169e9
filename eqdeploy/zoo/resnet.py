"""ResNets for ImageNet and CIFAR (He et al., 2015, "Deep Residual Learning for Image Recognition").

State-dict keys are those of torchvision, so that public weights load. ReLUs are not in-place: a tensor that a
quantizer reads must not be overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import validate_call
from torch import Tensor, nn

from eqdeploy.zoo.blocks import STRICT, Channels, Classes, SmallImages, Width, initialize_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual add.

    Args:
        inputs: Input channels.
        width: Channels of both convolutions and of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, width, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu(out + shortcut)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a residual add; the 3x3 has the stride (as torchvision, "v1.5").

    Args:
        inputs: Input channels.
        width: Channels inside; the output has four times as many.
        stride: Stride of the 3x3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 4*width, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu(out + shortcut)
        return result


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block: None where the identity fits, else a 1x1 convolution with BatchNorm (option B)."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, linear classifier.

    Stage ``i`` (from 0) has ``width * 2**i`` channels and, from the second on, starts with stride 2.

    Args:
        block: Kind of residual block.
        depths: Number of blocks in each stage.
        width: Channels of the stem and of the first stage.
        classes: Number of classes.
        input_channels: Channels of the image.
        small_images: A 3x3 stem that keeps the resolution instead of 7x7 stride 2 and max-pooling.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        *,
        width: int,
        classes: int,
        input_channels: int,
        small_images: bool,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(input_channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = None if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self.stages = tuple(f"layer{index + 1}" for index in range(len(depths)))
        for index, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            blocks: list[nn.Module] = []
            for position in range(depth):
                first_of_later_stage = position == 0 and index > 0
                blocks.append(block(channels, width << index, 2 if first_of_later_stage else 1))
                channels = (width << index) * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, input_channels, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


@validate_call(config=STRICT)
def resnet18(
    *, width: Width = 64, classes: Classes = 1000, input_channels: Channels = 3, small_images: SmallImages = False
) -> nn.Module:
    """ResNet-18; state dict as torchvision's ``resnet18``."""
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        width=width,
        classes=classes,
        input_channels=input_channels,
        small_images=small_images,
    )


@validate_call(config=STRICT)
def resnet50(
    *, width: Width = 64, classes: Classes = 1000, input_channels: Channels = 3, small_images: SmallImages = False
) -> nn.Module:
    """ResNet-50; state dict as torchvision's ``resnet50``."""
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        width=width,
        classes=classes,
        input_channels=input_channels,
        small_images=small_images,
    )


@validate_call(config=STRICT)
def cifar_resnet20(*, width: Width = 16, classes: Classes = 10, input_channels: Channels = 3) -> nn.Module:
    """ResNet-20 for 32x32 images: three stages of three basic blocks, 272,474 parameters.

    Where the shape changes the shortcut is a 1x1 convolution with BatchNorm (option B of the paper), which every
    integer runtime has; option A (subsampling and zero padding of channels) is not offered.
    """
    return ResNet(BasicBlock, (3, 3, 3), width=width, classes=classes, input_channels=input_channels, small_images=True)
