"""What the architectures share: argument types with their bounds, and the convolution-BatchNorm-activation unit."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from torch import nn

#: Arguments may come from an untrusted checkpoint: exact types, no conversion.
STRICT = ConfigDict(strict=True)

Classes = Annotated[int, Field(ge=1, le=100_000, description="number of classes, or output channels of a decoder")]
Channels = Annotated[int, Field(ge=1, le=64, description="channels of the input image")]
Width = Annotated[int, Field(ge=1, le=512, description="channels after the first convolution")]
WidthMultiplier = Annotated[float, Field(ge=0.05, le=8.0, allow_inf_nan=False, description="factor on all channels")]
Probability = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False, description="probability of dropping")]
SmallImages = Annotated[bool, Field(description="stem for images of about 32x32 that keeps their resolution")]


def conv_bn_act(
    inputs: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias that keeps the size (divided by ``stride``), BatchNorm, activation.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Odd kernel size.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        activation: Class of the activation, None for none.

    Returns:
        ``Sequential(Conv2d, BatchNorm2d[, activation])``, the layout of torchvision's ``Conv2dNormActivation``.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def round_channels(channels: float, *, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor`` that is at most 10 % below ``channels``.

    The rule of the MobileNet and EfficientNet reference code, needed for their published channel counts.

    >>> round_channels(32 * 1.4), round_channels(11)
    (48, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def initialize_convolutions(model: nn.Module) -> None:
    """Draw every convolution's weight after He et al. (2015), fan-out mode, and zero its bias, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
