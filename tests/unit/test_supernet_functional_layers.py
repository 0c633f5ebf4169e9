"""Layers that a model applies as functions are quantized like modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.network import ElasticSpace, LayerInfo, OpKind
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_parts import Net, conv


class PaddedConv2d(nn.Conv2d):
    """As in timm: padded as needed, then applied as a function."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, self.stride, (0, 0), self.dilation)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.2)


def described(model: nn.Module, *shape: int) -> tuple[Supernet, tuple[LayerInfo, ...]]:
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    supernet = Supernet.from_float(model.eval(), x[:2], ElasticSpace(bits=(4, 8)))
    torch.testing.assert_close(supernet(x), model(x), rtol=0, atol=1e-5)
    return supernet, supernet.network.layers


MODELS: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], tuple[int, ...], list[str], OpKind]] = {
    "conv1d": (
        lambda m, x: F.conv1d(x, m.filter_weight, m.filter_bias, stride=2, padding="valid"),
        {"filter_weight": weight(4, 3, 5), "filter_bias": weight(4)},
        (3, 16),
        ["filter"],
        OpKind.CONV,
    ),
    "conv2d": (
        lambda m, x: F.conv2d(input=x, weight=m.w, padding=1, groups=2),
        {"w": weight(6, 2, 3, 3)},
        (4, 8, 8),
        ["w_layer"],
        OpKind.CONV,
    ),
    "transposed": (
        lambda m, x: F.conv_transpose2d(x, m.w, m.b, 2, 1, 1, 2, 1),
        {"w": weight(4, 3, 3, 3), "b": weight(6)},
        (4, 5, 5),
        ["w_layer"],
        OpKind.CONV_TRANSPOSE,
    ),
    "linear": (
        lambda m, x: F.linear(x, m.w, bias=m.b),
        {"w": weight(6, 5), "b": weight(6)},
        (7, 5),
        ["w_layer"],
        OpKind.LINEAR,
    ),
    "product": (
        lambda m, x: m.b + x @ m.w,
        {"w": weight(5, 6), "b": weight(6)},
        (7, 5),
        ["w_layer"],
        OpKind.LINEAR,
    ),
    "product, then another addition": (
        lambda m, x: torch.matmul(x, m.w) + m.b,
        {"w": weight(5, 6), "b": weight(7, 6)},
        (7, 5),
        ["w_layer"],
        OpKind.LINEAR,
    ),
    "addmm": (
        lambda m, x: torch.addmm(m.b, x.flatten(1), m.w),
        {"w": weight(10, 6), "b": weight(6)},
        (2, 5),
        ["w_layer"],
        OpKind.LINEAR,
    ),
    "a module of a subclass": (
        lambda m, x: m.stack(x),
        {"stack": nn.Sequential(PaddedConv2d(3, 4, 3), nn.BatchNorm2d(4), PaddedConv2d(4, 4, 3, stride=2, bias=False))},
        (3, 8, 8),
        ["stack.0", "stack.2"],
        OpKind.CONV,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_functions_become_layers(name: str) -> None:
    forward, parts, shape, paths, kind = MODELS[name]
    supernet, layers = described(Net(forward, **parts), *shape)
    assert [(layer.name, layer.op) for layer in layers] == [(path, kind) for path in paths]
    known = dict(supernet.graph_module.named_parameters(remove_duplicate=False))
    assert {f"{path}.weight" for path in paths} <= set(known)
    assert not {"w", "b", "filter_weight", "filter_bias"} & (set(known) - ({"b"} if "another" in name else set()))


def test_a_layer_keeps_the_names_of_its_parameters_and_its_batch_norm() -> None:
    model = nn.Sequential(PaddedConv2d(3, 4, 3), nn.BatchNorm2d(4))
    supernet, (layer,) = described(model, 3, 8, 8)
    assert layer.batch_norm == "1"
    assert {name for name, _ in model.named_parameters()} <= set(supernet.graph_module.state_dict())


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(F.conv2d(x, m.kernel, padding=1)),  # a buffer: nothing to train
        lambda m, x: m.conv(F.conv2d(x, m.weight / m.weight.norm(), padding=1)),  # computed
        lambda m, x: m.conv(x) + (m.matrix @ m.matrix).sum(),  # no tensor of the graph
    ],
)
def test_what_is_no_parameter_or_computed_stays_a_function(forward: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(forward, conv=conv(3, 4), weight=weight(3, 3, 3, 3), matrix=weight(2, 2))
    model.register_buffer("kernel", torch.ones(3, 3, 3, 3))
    _, (layer,) = described(model, 3, 8, 8)
    assert layer.name == "conv"
