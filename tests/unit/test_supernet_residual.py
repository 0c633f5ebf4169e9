"""Residual additions that read the unquantized value: who reads what, in training and in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.errors import CheckpointError
from eqdeploy.network import ElasticSpace, NetworkDescription, OpKind, Residual
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from eqdeploy.supernet.operations import requantize
from eqdeploy.supernet.residual import split_residual_reads
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.tracing import trace
from eqdeploy.training.settings import SpaceSettings
from eqdeploy.zoo import build
from tests.unit.checkpoint_support import CASE, describe, trained_supernet
from tests.unit.checkpoint_support import build as build_case
from tests.unit.supernet_parts import Case, Net, conv, made

FLOAT = ElasticSpace(bits=(2, 4, 8), residual=Residual.FLOAT)
SHAPE = (3, 8, 8)


def supernet_of(case: Case, space: ElasticSpace = FLOAT) -> Supernet:
    return Supernet.from_float(made(case), torch.zeros(2, *case.shape), space).eval()


def copies(network: NetworkDescription) -> dict[str, str]:
    """Names of tensors with a quantized copy, and of the layers' outputs that are computed from the copy."""
    return {tensor.inputs[0]: ",".join(tensor.readers) for tensor in network.tensors if tensor.op is OpKind.REQUANTIZE}


def identity_shortcut(m: Any, x: Tensor) -> Any:
    x = m.relu(m.a(x))
    y = m.b(x)
    return m.c(m.relu(y + x))


def linear_bottlenecks(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    x = x + m.b(x)
    return x + m.c(x)


def pre_activation(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    y = m.relu(m.n(x))
    return m.c(m.relu(m.b(y))) + y + x


def two_layers_and_pool(m: Any, x: Tensor) -> Any:
    x = m.relu(m.a(x))
    return m.b(x) + x + m.c(x) + F.max_pool2d(x, 3, 1, 1)


def subsampled_shortcut(m: Any, x: Tensor) -> Any:
    x = m.relu(m.a(x))
    return m.s(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


def dropout_between(m: Any, x: Tensor) -> Any:
    x = m.relu(m.a(x))
    return m.b(m.d(x)) + x


def dropout_before_both(m: Any, x: Tensor) -> Any:
    x = m.d(m.relu(m.a(x)))
    return m.b(x) + x


def from_the_input(m: Any, x: Tensor) -> Any:
    return x + m.a(m.b(x))


def projection(m: Any, x: Tensor) -> Any:
    x = m.relu(m.a(x))
    return m.b(x) + m.c(x)


def added_to_a_constant(m: Any, x: Tensor) -> Any:
    x = m.relu(m.a(x))
    return m.b(x) * (x + 1.0)


def make(body: Callable[[Any, Tensor], Any], **parts: nn.Module) -> Case:
    layers = {"a": conv(3, 4), "b": conv(4, 4), "c": conv(4, 4), "relu": nn.ReLU(), **parts}
    return Case(lambda: Net(body, **{name: layers[name] for name in body.__code__.co_names if name in layers}), SHAPE)


CASES = {
    "identity": (make(identity_shortcut), {"relu": "b"}),
    "linear": (make(linear_bottlenecks), {"a": "b", "add": "c"}),
    "pre_activation": (make(pre_activation, n=nn.BatchNorm2d(4)), {"relu": "b"}),
    "several": (make(two_layers_and_pool), {"relu": "b,c"}),
    "subsampled": (make(subsampled_shortcut, s=conv(4, 8, stride=2)), {"relu": "s"}),
    "dropout": (make(dropout_between, d=nn.Dropout(0.5)), {"relu": "b"}),
    "dropout_both": (make(dropout_before_both, d=nn.Dropout(0.5)), {"relu": "b"}),
    "input": (make(from_the_input, a=conv(4, 3), b=conv(3, 4)), {"x": "b"}),
    "projection": (make(projection), {}),
    "constant": (make(added_to_a_constant), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_read_a_copy_of_what_an_addition_reads(name: str) -> None:
    case, expected = CASES[name]
    network = supernet_of(case).network
    assert copies(network) == expected
    for source in expected:
        tensor, copy = network.tensor[source], network.tensor[f"{source}_requantize"]
        assert (copy.trained, tensor.trained) == (True, False)
        assert (copy.shape, copy.non_negative, copy.upper_bound) == (
            tensor.shape,
            tensor.non_negative,
            tensor.upper_bound,
        )
        assert not set(tensor.readers) & {layer.output_tensor for layer in network.layers}
    assert {layer.input_tensor for layer in network.layers} == {t.name for t in network.tensors if t.trained}


@pytest.mark.parametrize("name", CASES)
def test_the_float_network_stays_the_same(name: str) -> None:
    case, _ = CASES[name]
    model, supernet = made(case), supernet_of(case)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(supernet(x), model(x), atol=1e-5)


def test_the_addition_reads_the_float_value_at_two_bits() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y: Tensor = x + self.b(x)
            return y

    model = Twice()
    with torch.no_grad():
        model.b.weight.zero_()
        assert model.b.bias is not None
        model.b.bias.zero_()
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    levels = {}
    for residual in Residual:
        space = ElasticSpace(bits=(2, 8), residual=residual)
        supernet = Supernet.from_float(model, x[:2], space).eval()
        supernet.initialize(x)
        forms = [
            (t.name, space.activation_form(8 if t.op is OpKind.INPUT else 2, Symmetry.SYMMETRIC, non_negative=False))
            for t in supernet.network.tensors
            if t.trained
        ]
        weight = space.weight_form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC)
        supernet.activate(SubnetConfig((("a", weight), ("b", weight)), tuple(forms)))
        levels[residual] = len(supernet(x).detach().unique())
    assert levels[Residual.QUANTIZED] <= 4 < 50 < levels[Residual.FLOAT]


def test_gradients_reach_the_tensor_through_both_readers() -> None:
    supernet = supernet_of(CASES["identity"][0])
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    supernet.initialize(x)
    supernet.activate(
        SubnetConfig.uniform(
            supernet.network,
            weight_bits=2,
            activation_bits=2,
            granularity=Granularity.PER_CHANNEL,
            weight_symmetry=Symmetry.SYMMETRIC,
            activation_symmetry=Symmetry.SYMMETRIC,
        )
    )
    supernet(x).sum().backward()
    quantizer = supernet.activation_quantizers()["relu_requantize"]
    gradient = next(value.grad for key, value in quantizer.log2_scale.items() if key.startswith("2-"))
    assert gradient is not None
    assert float(gradient.abs()) > 0


def test_dropout_before_both_readers_still_follows_the_mode() -> None:
    supernet = supernet_of(CASES["dropout_both"][0])
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(supernet(x), supernet(x))
    supernet.train()
    assert not torch.equal(supernet(x), supernet(x))


def test_a_split_graph_can_be_traced_again() -> None:
    case, expected = CASES["identity"]
    x = torch.zeros(2, *SHAPE)
    graph_module = trace(made(case), x)
    split_residual_reads(graph_module)
    again = trace(graph_module, x)
    split_residual_reads(again)  # changes nothing
    assert [n.target for n in again.graph.nodes] == [n.target for n in graph_module.graph.nodes]
    assert [n.target for n in again.graph.nodes].count(requantize) == len(expected)


@pytest.mark.parametrize(
    ("architecture", "count"),
    [("cifar-resnet20", 7), ("resnet18", 5), ("resnet50", 12), ("mobilenet_v2", 10), ("densenet-small", 0)],
)
def test_blocks_of_the_zoo(architecture: str, count: int) -> None:
    with torch.device("meta"):
        model = build(architecture, {})
    model = model.to_empty(device="cpu")
    for parameter in (*model.parameters(), *model.buffers()):
        nn.init.ones_(parameter) if parameter.is_floating_point() else None
    network = Supernet.from_float(model, torch.zeros(2, 3, 32, 32), FLOAT).network
    names = copies(network)
    assert len(names) == count
    for name in names:
        assert OpKind.ADD in {network.tensor[reader].op for reader in network.tensor[name].readers}


def test_a_checkpoint_keeps_the_option(tmp_path: Path) -> None:
    space = ElasticSpace(bits=(2, 8), residual=Residual.FLOAT)
    supernet = trained_supernet(1, space)
    path = tmp_path / "a.safetensors"
    save_checkpoint(supernet, describe(supernet), path)
    assert read_metadata(path).space.residual == "float"
    loaded = load_checkpoint(path, build_case).supernet
    assert loaded.network == supernet.network
    x = torch.randn(4, *CASE.shape)
    assert torch.equal(loaded(x), supernet(x))


def test_a_checkpoint_without_the_option_says_nothing_of_it(tmp_path: Path) -> None:
    supernet = trained_supernet(1, ElasticSpace(bits=(2, 8)))
    path = tmp_path / "a.safetensors"
    save_checkpoint(supernet, describe(supernet), path)
    assert b"residual" not in path.read_bytes()
    assert load_checkpoint(path, build_case).supernet.network.space.residual is Residual.QUANTIZED


def test_an_unknown_option_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    supernet = trained_supernet(1, ElasticSpace(bits=(2, 8)))
    metadata = describe(supernet)
    damaged = metadata.model_copy(update={"space": metadata.space.model_copy(update={"residual": "half"})})
    path = tmp_path / "a.safetensors"
    save_checkpoint(supernet, damaged, path)
    with pytest.raises(CheckpointError, match="half"):
        load_checkpoint(path, build_case)


def test_settings_name_the_option_only_where_it_is_used() -> None:
    assert SpaceSettings.model_validate_json('{"residual": "float"}').to_space().residual is Residual.FLOAT
    assert SpaceSettings.model_validate_json('{"residual": "float"}').model_dump(mode="json")["residual"] == "float"
    assert "residual" not in SpaceSettings().model_dump(mode="json")
    assert SpaceSettings().to_space() == ElasticSpace()
