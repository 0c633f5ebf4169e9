"""Constructs of model libraries (timm's MobileViT and EfficientViT, torchvision's pyramids and heads), small."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.supernet.costs import count_costs
from eqdeploy.validation.parity import ParityVerdict
from tests.parity.proving import prove
from tests.unit.supernet_parts import Net, conv, randomize


def _patches(m: Any, x: Tensor) -> Tensor:
    """Attention among the pixels of equal position in patches (MobileViT); the image is resized if it does not fit."""
    x = F.silu(m.norm(m.local(x)))
    batch, channels, height, width = x.shape
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    resized = rows * 2 != height or columns * 2 != width
    y = F.interpolate(x, size=(rows * 2, columns * 2), mode="bilinear", align_corners=False) if resized else x
    y = y.reshape(batch * channels * rows, 2, columns, 2).transpose(1, 2)
    y = y.reshape(batch, channels, rows * columns, 4).transpose(1, 3).reshape(batch * 4, rows * columns, channels)
    query, key, value = m.qkv(m.normal(y)).reshape(batch * 4, rows * columns, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value)
    y = y + m.out(attended.transpose(1, 2).flatten(2))
    y = y.contiguous().view(batch, 4, rows * columns, -1).transpose(1, 3)
    y = (
        y.reshape(batch * channels * rows, columns, 2, 2)
        .transpose(1, 2)
        .reshape(batch, channels, rows * 2, columns * 2)
    )
    if resized:
        y = F.interpolate(y, size=(height, width), mode="bilinear", align_corners=False)
    result: Tensor = m.head(m.fusion(torch.cat((x, y), dim=1)).mean((2, 3)))
    return result


def patches() -> nn.Module:
    parts: dict[str, nn.Module] = {"qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "normal": nn.LayerNorm(8)}
    convolutions = {"local": conv(3, 8, bias=False), "norm": nn.BatchNorm2d(8), "fusion": conv(16, 8)}
    return Net(_patches, head=nn.Linear(8, 4), **parts, **convolutions)


def _linear_attention(m: Any, x: Tensor) -> Tensor:
    """Attention without softmax (EfficientViT): a column of ones makes the sums that divide."""
    x = m.stem(x)
    batch, _, height, width = x.shape
    scales = torch.cat([scale := m.qkv(x), m.aggregated(scale)], dim=1)
    query, key, value = scales.reshape(batch, -1, 3 * 4, height * width).transpose(-1, -2).chunk(3, dim=-1)
    query, key = F.relu(query), F.relu(key)
    value = F.pad(value, (0, 1), mode="constant", value=1.0)
    mixed = query @ (key.transpose(-1, -2) @ value)
    mixed = mixed[..., :-1] / (mixed[..., -1:] + 1e-5)
    y = m.project(mixed.transpose(-1, -2).reshape(batch, -1, height, width))
    result: Tensor = m.head((x + y).mean((2, 3)))
    return result


def linear_attention() -> nn.Module:
    aggregated = nn.Sequential(conv(24, 24, 5, groups=24, bias=False), conv(24, 24, 1, groups=6, bias=False))
    convolutions = {"stem": conv(3, 8), "qkv": conv(8, 24, 1, bias=False), "project": conv(16, 8, 1)}
    return Net(_linear_attention, aggregated=aggregated, head=nn.Linear(8, 4), **convolutions)


def _pyramid(m: Any, x: Tensor) -> dict[str, Tensor]:
    """A feature pyramid and a segmentation head that returns maps of the image's size, by name."""
    features = [F.relu(m.first(x))]
    features.append(F.relu(m.second(features[-1])))
    inner = m.lateral_second(features[1])
    outputs = [m.smooth_second(inner)]
    inner = m.lateral_first(features[0]) + F.interpolate(inner, size=features[0].shape[-2:], mode="nearest")
    outputs.insert(0, m.smooth_first(inner))
    outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2, padding=0))
    pooled = F.adaptive_avg_pool2d(features[1], 1)
    context = F.interpolate(F.relu(m.pool(pooled)), size=features[1].shape[-2:], mode="bilinear", align_corners=False)
    classes = F.interpolate(m.classes(context), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return OrderedDict([("fine", outputs[0]), ("coarse", outputs[1]), ("pool", outputs[2]), ("out", classes)])


def pyramid() -> nn.Module:
    sizes = {"lateral_first": (8, 6, 1), "lateral_second": (8, 6, 1), "smooth_first": (6, 6), "smooth_second": (6, 6)}
    layers = {name: conv(*size) for name, size in sizes.items()}
    first, second = conv(3, 8, stride=2), conv(8, 8, stride=2)
    return Net(_pyramid, first=first, second=second, pool=conv(8, 8, 1), classes=conv(8, 5, 1), **layers)


BLOCKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "patches": (patches, (3, 7, 8), 16),
    "linear attention": (linear_attention, (3, 8, 8), 0),
    "pyramid": (pyramid, (3, 16, 16), 0),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_model_libraries_are_proved(name: str, tmp_path: Path) -> None:
    make, shape, float_parameters = BLOCKS[name]
    torch.manual_seed(0)
    proved = prove(randomize(make()).eval(), torch.randn(16, *shape), tmp_path)
    assert proved.parity.verdict is not ParityVerdict.FAILED, proved.parity.summary
    # Inside linear attention a quotient of small sums may lie far from float; what comes out of it must not.
    assert all(tensor.passed for tensor in proved.distance.tensors if tensor.is_output), proved.distance.summary
    assert sum(count_costs(proved.supernet).parameters.values()) == float_parameters
