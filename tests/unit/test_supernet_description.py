"""The description of a network says the truth about its tensors and layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from eqdeploy.network import NetworkDescription, OpKind
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.zoo import architectures
from tests.unit.supernet_models import CONVERTIBLE
from tests.unit.supernet_parts import SPACE, Case, Net, conv, made

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def supernet_of(case: Case, seed: int = 0) -> Supernet:
    return Supernet.from_float(made(case, seed), torch.zeros(2, *case.shape), SPACE).eval()


def description(model: nn.Module, *shape: int) -> NetworkDescription:
    return Supernet.from_float(model, torch.zeros(2, *shape), SPACE).network


class Recorder(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


@torch.no_grad()
def values_of(supernet: Supernet, x: Tensor) -> dict[str, Any]:
    recorder = Recorder(supernet.graph_module)
    recorder.run(x)
    return recorder.values


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_shapes_and_promised_bounds_hold_for_every_tensor(name: str) -> None:
    for seed in range(3):
        supernet = supernet_of(CONVERTIBLE[name], seed)
        x = 5 * torch.randn(4, *CONVERTIBLE[name].shape, generator=torch.Generator().manual_seed(seed))
        values = values_of(supernet, x)
        for tensor in supernet.network.tensors:
            value = values[tensor.name]
            assert tuple(value.shape[1:]) == tensor.shape or value.shape[0] != 4
            if tensor.non_negative:
                assert (value >= 0).all(), f"{tensor.name} is said to be never negative"
            if tensor.upper_bound is not None:
                assert (value <= tensor.upper_bound).all(), f"{tensor.name} is said to be at most {tensor.upper_bound}"


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_inputs_and_readers_mirror_each_other(name: str) -> None:
    network = supernet_of(CONVERTIBLE[name]).network
    assert len(network.tensor) == len(network.tensors), "names are unique"
    seen: set[str] = set()
    for tensor in network.tensors:
        assert set(tensor.inputs) <= seen, "tensors stand in order of execution"
        seen.add(tensor.name)
        assert all(tensor.name in network.tensor[source].readers for source in tensor.inputs)
        assert all(tensor.name in network.tensor[reader].inputs for reader in tensor.readers)
        assert (tensor.layer is not None) == (tensor.op in (OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.LINEAR))
    assert [tensor.op for tensor in network.tensors].count(OpKind.INPUT) == 1
    for layer in network.layers:
        assert network.tensor[layer.output_tensor].layer == layer.name
        assert network.tensor[layer.output_tensor].inputs == (layer.input_tensor,)
        assert network.tensor[layer.input_tensor].trained


COUNTED = ["one-dimensional", "transposed convolutions", "channel shuffle", "kinds of padding", "squeeze and excite"]
COUNTED += ["linear on the last axis of an image", "chunk and split", "double precision", "norm over the sequence"]
COUNTED += ["pixels in the batch"]


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_accumulates_are_those_that_torch_counts(name: str) -> None:
    case = CONVERTIBLE[name]
    model = made(case)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *case.shape, dtype=next(model.parameters()).dtype))
    network = supernet_of(case).network
    assert 2 * sum(layer.macs for layer in network.layers) == counter.get_total_flops()


def test_a_hand_counted_layer() -> None:
    network = description(
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(96, 7)), 4, 9, 9
    )
    first, last = network.layers
    assert first.macs == 4 * 4 * 6 * (4 // 2) * 3 * 3
    assert (first.parameters, first.groups, first.weight_shape) == (6 * 2 * 9, 2, (6, 2, 3, 3))
    assert (last.macs, last.parameters) == (96 * 7, 96 * 7)
    assert [network.tensor[name].elements for name in ("_0", "_1", "_2")] == [96, 96, 7]


def activations(m: Any, x: Tensor) -> Any:
    x = F.relu(m.a(x))
    x = F.relu6(m.b(x))
    x = F.hardtanh(m.c(x), -2.0, 2.0)
    x = m.d(x).clamp(max=1)
    x = torch.sigmoid(m.e(x)).clamp(max=0.5)
    return m.f(F.max_pool2d(x, 2))


def test_ranges_that_follow_from_the_operations() -> None:
    model = Net(activations, a=conv(), **{name: conv(4, 4) for name in "bcdef"})
    tensors = description(model, 3, 8, 8).tensor
    facts = {name: (tensor.op, tensor.non_negative, tensor.upper_bound) for name, tensor in tensors.items()}
    assert facts["x"] == (OpKind.INPUT, False, None)
    assert facts["relu"] == (OpKind.RELU, True, None)
    assert facts["relu6"] == (OpKind.CLIP, True, 6.0)
    assert facts["hardtanh"] == (OpKind.CLIP, False, 2.0)
    assert facts["clamp"] == (OpKind.CLIP, False, 1.0)
    assert facts["sigmoid"] == (OpKind.SIGMOID, True, 1.0)
    assert facts["clamp_1"] == (OpKind.CLIP, True, 0.5)
    assert facts["max_pool2d"] == (OpKind.MAX_POOL, True, 0.5)


@pytest.mark.parametrize(
    ("operation", "kind", "non_negative"),
    [
        (lambda a, b: a + b, OpKind.ADD, True),
        (lambda a, b: torch.add(a, b, alpha=-1), OpKind.OTHER, False),
        (lambda a, b: a * b, OpKind.MUL, True),
        (lambda a, b: a * -1.0, OpKind.OTHER, False),
        (lambda a, b: a + 1, OpKind.OTHER, False),
        (lambda a, b: a - b, OpKind.OTHER, False),
        (lambda a, b: torch.cat([a, b], 1), OpKind.CONCAT, True),
        (lambda a, b: torch.cat([a, -b], 1), OpKind.CONCAT, False),
        (lambda a, b: F.avg_pool2d(a, 2), OpKind.AVERAGE_POOL, True),
        (lambda a, b: a.mean((2, 3), keepdim=True), OpKind.GLOBAL_AVERAGE_POOL, True),
        (lambda a, b: a.mean((1, 2), keepdim=True), OpKind.OTHER, False),
        (lambda a, b: F.interpolate(a, scale_factor=2.0), OpKind.RESIZE, True),
        (lambda a, b: F.interpolate(a, scale_factor=2.0, mode="bicubic"), OpKind.OTHER, False),
        (lambda a, b: torch.tanh(a), OpKind.TANH, False),
        (lambda a, b: a.flatten(1), OpKind.RESHAPE, True),
        (lambda a, b: a.permute(0, 2, 3, 1), OpKind.TRANSPOSE, True),
        (lambda a, b: a @ b, OpKind.MATMUL, False),
        (lambda a, b: F.gelu(a), OpKind.OTHER, False),
        (lambda a, b: F.softmax(a, dim=1), OpKind.SOFTMAX, True),
        (lambda a, b: F.hardsigmoid(a), OpKind.HARD_SIGMOID, True),
    ],
)
def test_operations_of_two_non_negative_tensors(operation: Any, kind: OpKind, non_negative: bool) -> None:
    model = Net(lambda m, x: operation(F.relu(m.a(x)), F.relu(m.b(x))), a=conv(), b=conv())
    last = description(model, 3, 8, 8).tensors[-1]
    assert (last.op, last.non_negative, last.is_output) == (kind, non_negative, True)


def test_parameters_bound_nothing() -> None:
    """A trained parameter may be negative whatever it is now, so the tensor must not get an unsigned form."""
    tensors = supernet_of(CONVERTIBLE["parameters of the model"]).network.tensor
    for name in ("mul", "add", "cat"):
        assert not tensors[name].non_negative
        assert tensors[name].op in (OpKind.OTHER, OpKind.CONCAT)
    model = Net(
        lambda m, x: torch.cat([F.relu(m.a(x)), m.token], 0), a=conv(), token=nn.Parameter(torch.ones(1, 4, 8, 8))
    )
    assert not description(model, 3, 8, 8).tensor["cat"].non_negative


def test_sizes_are_no_inputs() -> None:
    tensors = supernet_of(CONVERTIBLE["channel shuffle"]).network.tensor
    assert [tensor.inputs for tensor in tensors.values()][-2:] == [("transpose",), ("view_1",)]


FOLDABLE: dict[str, dict[str, str | None]] = {
    "negative gains": {"0": "1", "3": "4"},
    "identity and dropout before the norm": {"0": "2", "4": "6"},
    "size read between layer and norm": {"a": "norm", "head": None},
    "norms without gains": {"0": "1", "3": "4"},
    "normalization before the layer": {"1": None},
    "output read by a layer and a norm": {"a": None, "b": None, "c": None},
    "output read by two norms": {"a": None},
    "raw output returned beside the norm's": {"a": None},
    "one norm behind two layers": {"a": "norm", "b": "norm"},
    "norm over the sequence": {"0": None, "3": None},
    "norm as a function": {"0": "1", "2": "3"},
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_norm_is_folded_only_where_nothing_else_needs_what_is_before_it(name: str) -> None:
    network = supernet_of(CONVERTIBLE[name]).network
    assert {layer.name: layer.batch_norm for layer in network.layers} == FOLDABLE[name]


def test_boundary_layers_and_outputs() -> None:
    network = supernet_of(CONVERTIBLE["tuple"]).network
    assert network.boundary_layers == ("a", "b")
    assert network.boundary_tensors == ("x",)
    assert [tensor.name for tensor in network.tensors if tensor.is_output] == ["relu", "b"]


def test_one_quantizer_for_a_tensor_with_many_readers_and_all_read_it() -> None:
    body = lambda m, x: (lambda y: m.b(y) + m.c(y) + y)(F.relu(m.a(x)))  # noqa: E731
    model = Net(body, a=conv(), b=conv(4, 4), c=conv(4, 4))
    supernet = Supernet.from_float(model, torch.zeros(2, 3, 8, 8), SPACE)
    assert supernet.network.tensor["relu"].readers == ("b", "c", "add_1")
    quantizers = [node for node in supernet.graph_module.graph.nodes if "quantizers.relu" in str(node.target)]
    assert len(quantizers) == 1
    relu = next(node for node in supernet.graph_module.graph.nodes if node.name == "relu")
    assert list(relu.users) == quantizers, "the unquantized tensor has no other reader"


ZOO = {
    "digits-resnet": (1, 8, 8),
    "cifar-resnet20": (3, 32, 32),
    "mlp": (1, 8, 8),
    "decoder": (3, 32, 32),
    "densenet-small": (3, 32, 32),
    "mobilenet_v2": (3, 32, 32),
    "efficientnet_b0": (3, 32, 32),
    "resnet18": (3, 32, 32),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_models_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    model = architectures.build(name, {}).eval()
    supernet = Supernet.from_float(model, torch.zeros(2, *ZOO[name]), SPACE).eval()
    x = torch.randn(2, *ZOO[name], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(x), supernet(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)]
    assert len(supernet.network.layers) == len(layers), "every layer is elastic"
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    folded = [layer.batch_norm for layer in supernet.network.layers if layer.batch_norm is not None]
    assert len(set(folded)) == len(folded) <= len(norms)
    if name != "densenet-small":  # its norms stand before the layers
        assert len(folded) == len(norms)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *ZOO[name]))
    assert 2 * sum(layer.macs for layer in supernet.network.layers) == counter.get_total_flops()
    assert supernet.network.boundary_layers[0] == supernet.network.layers[0].name
