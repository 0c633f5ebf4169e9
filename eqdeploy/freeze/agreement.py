"""Check that the exported structure computes what the network computes, in float.

Torch's ONNX exporter leaves out some arguments without a word (``divisor_override`` of a pool). Everything after the
export is held against the exported graph, so this is the place to notice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, fx

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.freeze.affine import channel_affine, to_numpy
from eqdeploy.freeze.folding import expand
from eqdeploy.large_models import session_source
from eqdeploy.supernet.inputs import Inputs, parts, positional, probe
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.supernet import Supernet

#: Largest difference of a tensor, relative to its largest value: float32 arithmetic in another order.
_TOLERANCE = 1e-3

#: Severity above which ONNX Runtime logs: fatal errors only, as errors are raised anyway.
_FATAL = 4


def folded_values(supernet: Supernet) -> dict[str, NDArray[np.float32]]:
    """Float weights and biases of all layers with BatchNorm folded in, by initializer name."""
    values: dict[str, NDArray[np.float32]] = {}
    for layer in supernet.network.layers:
        module = supernet.graph_module.get_submodule(layer.name)
        affine = channel_affine(supernet, layer)
        weight = to_numpy(module.weight).astype(np.float64) * expand(affine.gain, layer)
        values[f"{layer.name}.weight"] = weight.astype(np.float32)
        if layer.batch_norm is not None or getattr(module, "bias", None) is not None:
            values[f"{layer.name}.bias"] = affine.shift.astype(np.float32)
    return values


def check_agreement(supernet: Supernet, graph: ir.Model, inputs: Inputs | None = None) -> None:
    """Compare a float graph with the float network on random values.

    Args:
        supernet: The network; its active subnet stays active.
        graph: Its graph, holding :func:`folded_values`.
        inputs: What to compare on; None for random values in the shape of the network's input.

    Raises:
        UnsupportedOperationError: If outputs differ by more than rounding; names the first tensor that does.
    """
    random = probe(supernet.example, 3) if inputs is None else inputs
    recorder = _Recorder(supernet)
    with torch.no_grad(), evaluation_mode(supernet):
        expected = recorder.values(random)
    outputs = [str(value.name) for value in graph.graph.outputs if value.name in expected]
    if all(map(_agree, (expected[name] for name in outputs), _run(graph, outputs, random))):
        return
    computed = {value.name for node in graph.graph for value in node.outputs}
    names = [name for name, tensor in expected.items() if name in computed and tensor.is_floating_point()]
    found = dict(zip(names, _run(graph, names, random), strict=True))
    first = next((name for name in names if not _agree(expected[name], found[name])), outputs[0])
    raise UnsupportedOperationError(
        f"{supernet.network.tensor[first].operation} is written to ONNX as another function",
        where=first,
        hint="torch's exporter ignores one of its arguments: express it by other operations",
    )


class _Recorder(fx.Interpreter):
    """Runs the float network and keeps every tensor of its description."""

    def __init__(self, supernet: Supernet) -> None:
        super().__init__(supernet.graph_module)
        self._supernet = supernet
        self._tensors: dict[str, Tensor] = {}

    def values(self, inputs: Inputs) -> dict[str, Tensor]:
        """Tensors by name in order of execution, for one batch."""
        quantizers = [
            *(self._supernet.weight_quantizer(layer.name) for layer in self._supernet.network.layers),
            *self._supernet.activation_quantizers().values(),
        ]
        active = [quantizer.active for quantizer in quantizers]
        self._supernet.deactivate()
        try:
            self.run(*positional(self._supernet.graph_module.graph, inputs))
        finally:
            for quantizer, form in zip(quantizers, active, strict=True):
                quantizer.activate(form)
            self._supernet.update_accumulator_scales()
        return self._tensors

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._supernet.network.tensor and isinstance(result, Tensor):
            self._tensors[n.name] = result
        return result


def _run(graph: ir.Model, names: list[str], inputs: Inputs) -> list[NDArray[Any]]:
    """Tensors of a graph for one batch."""
    present = {value.name for value in graph.graph.outputs}
    more = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL
    with session_source(graph, more) as source:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    feeds = {read.name: part.numpy() for read, part in zip(session.get_inputs(), parts(inputs), strict=True)}
    results: list[NDArray[Any]] = session.run(names, feeds)
    return results


def _agree(expected: Tensor, found: NDArray[Any]) -> bool:
    """Whether two tensors are equal but for rounding. What is not finite says nothing."""
    wanted = expected.numpy()
    if wanted.shape != found.shape:
        return False
    largest = float(np.abs(wanted).max(initial=0.0))
    return not np.isfinite(largest) or bool(np.all(np.abs(found - wanted) <= _TOLERANCE * largest))
