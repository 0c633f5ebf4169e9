"""The float graph of a frozen network: computes what torch computes, under the names of the description."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.freeze.capture import OPSET
from eqdeploy.freeze.float_graph import IR_VERSION, export_float_graph
from eqdeploy.network import OpKind
from eqdeploy.plan import Coverage
from eqdeploy.quantized_model import operation_of
from eqdeploy.supernet.supernet import Supernet
from tests.unit.freeze_support import frozen, images_for, onnx_outputs, refreeze, supernet_of, torch_outputs
from tests.unit.supernet_models import CONVERTIBLE
from tests.unit.supernet_parts import SPACE, Case, Net, conv

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

#: Models whose export differs from that of the others.
EXPORTED = [
    "functional activations",
    "adaptive pools that divide",
    "silu and hardswish",
    "chunk and split",
    "attention",
    "one-dimensional",
    "transposed convolutions",
    "channel shuffle",
    "skip connection and resizing",
    "normalization before the layer",
    "raw output returned beside the norm's",
    "parameters of the model",
    "names of parameters and operations clash",
    "methods named like attributes of modules",
    "names that torch's exporter gives to helpers",
    "names that are no identifiers",
    "norms without gains",
    "norm over the sequence",
    "kinds of padding",
    "reshape that changes nothing",
    "sequence first",
    "another axis before the batch",
    "pixels in the batch",
    "norm as a function",
]


@pytest.mark.parametrize("name", EXPORTED)
def test_the_graph_computes_what_torch_computes_under_the_networks_names(name: str) -> None:
    case = CONVERTIBLE[name]
    done = frozen(case, "onnxruntime-x86", seed=2)
    graph = done.model.graph
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    assert graph.ir_version == IR_VERSION
    assert len(graph.graph.input) == 1
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"

    # Names: every tensor that is not inside Conv+BatchNorm is a value, every node belongs to a tensor.
    network = done.supernet.network
    values = {value for node in graph.graph.node for value in node.output} | {graph.graph.input[0].name}
    folded = {layer.output_tensor for layer in network.layers if layer.batch_norm is not None}
    assert {tensor.name for tensor in network.tensors} - folded <= values
    assert not folded & values
    assert {operation_of(node.name) for node in graph.graph.node} <= set(network.tensor)
    assert len({node.name for node in graph.graph.node}) == len(graph.graph.node)
    for node in graph.graph.node:
        if node.name in network.tensor:
            assert node.name in node.output
    assert all(entry in values for entry in done.model.activations)
    names = {tensor.name for tensor in graph.graph.initializer}
    assert len(names) == len(graph.graph.initializer)
    assert not names & values
    assert {f"{layer.name}.weight" for layer in network.layers} <= names

    for count in (1, 5):
        images = images_for(case, count, seed=9)
        expected, found = torch_outputs(done.supernet, done.model, images), onnx_outputs(graph, images)
        assert len(found) == len(expected)
        for got, wanted in zip(found, expected, strict=True):
            assert np.allclose(got, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


def test_a_reused_graph_follows_recalibration() -> None:
    case = CONVERTIBLE["normalization before the layer"]
    done = frozen(case, "onnxruntime-x86")
    images = images_for(case, 4, seed=5)
    other = refreeze(done.supernet, done.plan, done.graph, 3.0 + 2.0 * images_for(case, 24, seed=8))
    before, after = onnx_outputs(done.model.graph, images), onnx_outputs(other.graph, images)
    assert not np.allclose(before[0], after[0], atol=1e-2)
    assert np.allclose(after[0], torch_outputs(done.supernet, other, images)[0], rtol=1e-5, atol=1e-5)


def test_filling_refuses_what_does_not_fit_and_changes_nothing_then() -> None:
    graph = export_float_graph(supernet_of(Case(lambda: nn.Sequential(conv(), nn.BatchNorm2d(4)))))
    before = graph.filled({}).SerializeToString()
    good = np.zeros((4, 3, 3, 3), dtype=np.float32)
    with pytest.raises(KeyError, match="nonsense"):
        graph.filled({"0.weight": good, "nonsense": good})
    for wrong in (good.astype(np.float64), good[:3], good.reshape(-1)):
        with pytest.raises(ValueError, match=r"0\.weight: .* does not fit"):
            graph.filled({"0.bias": np.ones(4, np.float32), "0.weight": wrong})
    assert graph.filled({}).SerializeToString() == before
    filled = graph.filled({"0.weight": good})
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in filled.graph.initializer}
    assert not stored["0.weight"].any()


def test_exporting_changes_nothing_about_the_supernet(capfd: pytest.CaptureFixture[str]) -> None:
    supernet = supernet_of(CONVERTIBLE["multi-head attention"]).train()
    supernet.graph_module.get_submodule("head").eval()
    modes = [module.training for module in supernet.modules()]
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    types = [type(module) for module in supernet.modules()]
    export_float_graph(supernet)
    assert [module.training for module in supernet.modules()] == modes
    assert [type(module) for module in supernet.modules()] == types
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert not supernet.graph_module.get_submodule("head").training
    assert capfd.readouterr() == ("", ""), "torch's exporter must not talk to the user"


def test_a_tensor_that_nothing_computes_anew_is_still_a_value_of_its_own() -> None:
    """Dropping a copy or a reshape to the same shape would leave its encoding without a tensor."""
    case = CONVERTIBLE["reshape that changes nothing"]
    graph = frozen(case, "onnxruntime-x86").model.graph
    assert [node.op_type for node in graph.graph.node if node.name in ("view", "flatten")] == ["Reshape", "Reshape"]


def test_stochastic_and_no_ops_vanish() -> None:
    def body(m: Net, x: Tensor) -> Any:
        x = m.drop(m.a(x).contiguous().clone())  # type: ignore[operator]
        return m.b(m.identity(x).to(torch.float32).detach())  # type: ignore[operator]

    case = Case(lambda: Net(body, a=conv(), b=conv(4, 4), drop=nn.Dropout(0.3), identity=nn.Identity()))
    supernet = supernet_of(case)
    assert [tensor.name for tensor in supernet.network.tensors] == ["x", "a", "b"]
    assert [node.op_type for node in export_float_graph(supernet).filled({}).graph.node] == ["Conv", "Conv"]


def test_operations_that_onnx_has_no_words_for_are_refused() -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = torch.linalg.eigvalsh(x @ x.transpose(-1, -2))
            return values

    model = nn.Sequential(conv(3, 3), Strange())
    supernet = Supernet.from_float(model, torch.zeros(2, 3, 8, 8), SPACE)
    with pytest.raises(UnsupportedOperationError, match="torch cannot export") as caught:
        export_float_graph(supernet)
    assert "\n" not in str(caught.value)


def test_coverage_and_reasons_name_every_tensor_and_global_pools_are_what_runtimes_fuse() -> None:
    done = frozen(CONVERTIBLE["squeeze and excite"], "snpe-dsp")
    names = [tensor.name for tensor in done.supernet.network.tensors]
    assert list(done.model.coverage) == list(done.model.reasons) == names
    quantized = [name for name in names if done.model.coverage[name] is Coverage.QUANTIZED]
    assert list(done.model.activations) == quantized
    assert all(done.model.reasons.values())
    pools = [tensor.name for tensor in done.supernet.network.tensors if tensor.op is OpKind.GLOBAL_AVERAGE_POOL]
    kinds = {node.name: node.op_type for node in done.model.graph.graph.node}
    assert pools
    assert all(kinds[name] == "GlobalAveragePool" for name in pools)
    assert "ReduceMean" not in kinds.values()
