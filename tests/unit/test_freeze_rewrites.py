"""Rewrites of the float graph that make it portable, and the comparison with torch that guards them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import numpy_helper
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.freeze import agreement
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.supernet.supernet import Supernet
from tests.unit.freeze_support import onnx_outputs
from tests.unit.supernet_parts import SPACE, Net, conv, randomize


def exported(model: nn.Module, *shape: int) -> onnx.ModelProto:
    """The float graph of a model, checked to compute what the model computes for another batch."""
    torch.manual_seed(0)
    model = randomize(model).eval()
    supernet = Supernet.from_float(model, torch.zeros(2, *shape), SPACE).eval()
    graph = export_float_graph(supernet).filled(agreement.folded_values(supernet))
    onnx.checker.check_model(graph, full_check=True)
    images = torch.randn(5, *shape)
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(onnx_outputs(graph, images)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return graph


def operators(graph: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in graph.graph.node}


def input_of(graph: onnx.ModelProto, op_type: str, position: int) -> list[float]:
    """The constant that the only operation of a kind reads."""
    (node,) = [node for node in graph.graph.node if node.op_type == op_type]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    found: list[float] = arrays[node.input[position]].tolist()
    return found


def shuffled(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    n, c, h, w = x.shape
    return F.channel_shuffle(x, 2) + x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)


def gated(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return x * torch.sigmoid(x.mean((2, 3))).view(x.size(0), x.size(1), 1, 1).expand_as(x)


def enlarged(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    result: Tensor = y + F.interpolate(F.max_pool2d(y, 2), size=y.shape[-2:], mode="nearest")
    return result


@pytest.mark.parametrize("body", [shuffled, gated, enlarged])
def test_shapes_are_constants(body: Any) -> None:
    graph = exported(Net(body, a=conv()), 3, 8, 8)
    assert not operators(graph) & {"Shape", "Gather", "Cast"}


def test_a_resize_to_sizes_becomes_one_by_scales_where_they_are_exact() -> None:
    assert input_of(exported(Net(enlarged, a=conv()), 3, 8, 8), "Resize", 2) == [1.0, 1.0, 2.0, 2.0]

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return F.interpolate(F.avg_pool2d(y, 2), size=y.shape[-2:], mode="bilinear")

    assert input_of(exported(Net(body, a=conv()), 3, 6, 12), "Resize", 2) == [1.0, 1.0, 2.0, 2.0]

    def odd(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return F.interpolate(F.max_pool2d(y, 2), size=y.shape[-2:], mode="nearest")

    (resize,) = [node for node in exported(Net(odd, a=conv()), 3, 7, 7).graph.node if node.op_type == "Resize"]
    assert (bool(resize.input[2]), bool(resize.input[3])) == (False, True)  # 7/3 is no float32 number


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 10)])
def test_group_normalization_becomes_instance_normalization(groups: int, shape: tuple[int, ...]) -> None:
    layer = conv() if len(shape) == 3 else nn.Conv1d(3, 4, 3, padding=1)
    norm = nn.GroupNorm(groups, 4, eps=0.01)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = operators(exported(nn.Sequential(layer, norm, nn.ReLU()), *shape))
    assert "GroupNormalization" not in found
    assert "InstanceNormalization" in found


def test_a_convolution_without_bias_gets_none_and_a_bias_of_zeros_is_kept() -> None:
    upwards = nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False)
    zero = conv(4, 4)
    zero.bias = nn.Parameter(torch.zeros(4))
    model = nn.Sequential(conv(bias=False), nn.ReLU(), zero, nn.ReLU(), upwards)
    graph = exported(model, 3, 8, 8)
    layers = [node for node in graph.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert [node.input[1:] for node in layers] == [["0.weight"], ["2.weight", "2.bias"], ["4.weight"]]


def test_an_argument_that_torch_leaves_out_is_noticed() -> None:
    model = nn.Sequential(conv(), nn.AvgPool2d(2, divisor_override=3), conv(4, 4))
    with pytest.raises(UnsupportedOperationError, match=r"_1: torch.nn.AvgPool2d is written to ONNX as another"):
        exported(model, 3, 8, 8)


def test_the_comparison_leaves_the_active_subnet_alone() -> None:
    supernet = Supernet.from_float(nn.Sequential(conv(), nn.ReLU(), conv(4, 4)), torch.zeros(2, 3, 8, 8), SPACE)
    supernet.initialize(torch.randn(4, 3, 8, 8))
    form = SPACE.weight_forms()[0]
    supernet.weight_quantizer("0").activate(form)
    export_float_graph(supernet)
    assert supernet.weight_quantizer("0").active == form
    assert supernet.weight_quantizer("2").active is None
    assert supernet.training


def test_a_network_whose_values_leave_float32_is_not_blamed_on_the_export() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4))
    supernet = Supernet.from_float(model, torch.zeros(2, 3, 8, 8), SPACE)
    variance = supernet.graph_module.get_submodule("1").running_var
    assert isinstance(variance, Tensor)
    variance.fill_(-1.0)  # not a number, until BatchNorm is calibrated
    export_float_graph(supernet)
